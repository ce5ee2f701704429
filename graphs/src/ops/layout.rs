//! Operators that move, cut or make tensors, and those that compute shapes.

use super::shapes::{axis, broadcast, one, required};
use super::{Attr, AttrError, Attrs, OpDef, Reader};
use crate::ir::{DType, Dim, InferError, Info, Initializer, InitializerData, Shape, TensorType};

fn content_of(inputs: &[Option<&Info>], i: usize) -> Result<Vec<Dim>, InferError> {
    required(inputs, i)?.content.clone().ok_or(InferError::Undecided)
}

fn fixed_of(inputs: &[Option<&Info>], i: usize) -> Result<Vec<usize>, InferError> {
    content_of(inputs, i)?.iter().map(|d| d.as_fixed().ok_or(InferError::Undecided)).collect()
}

fn no_attrs() -> Attrs {
    Attrs::new()
}

/// New shape, same order of elements; 0 keeps the input's dimension, −1 (at most one) is what remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reshape;

/// How `Reshape` targets say "what remains": content holds sizes, so −1 is kept as this marker symbol.
pub(crate) const REMAINDER: &str = "-1";

impl OpDef for Reshape {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        let mut target = content_of(inputs, 1)?;
        for (i, d) in target.iter_mut().enumerate() {
            if d.as_fixed() == Some(0) {
                *d = x.ty.shape.0.get(i).cloned().ok_or(InferError::Undecided)?;
            }
        }
        let is_rest = |d: &Dim| d.as_symbol() == Some(REMAINDER);
        let known = target.iter().filter(|d| !is_rest(d)).cloned().fold(Dim::fixed(1), |a, b| a * b);
        let all = x.ty.shape.elements();
        match target.iter().position(is_rest) {
            Some(at) => target[at] = all.exact_quotient(&known).ok_or(InferError::Undecided)?,
            None if known != all && known.as_fixed().is_some() && all.as_fixed().is_some() => {
                return Err(InferError::Elements { from: x.ty.shape.clone(), to: Shape(target) });
            }
            None => {}
        }
        Ok(vec![Info { ty: TensorType::new(x.ty.dtype, Shape(target)), content: x.content.clone() }])
    }

    fn attrs(&self) -> Attrs {
        no_attrs()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        match r.int_or("allowzero", 0)? {
            0 => Ok(Self),
            _ => Err(AttrError::Kind { name: "allowzero", expected: "0" }),
        }
    }
}

/// Axes in a new order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transpose {
    /// Input axis of each output axis.
    pub perm: Vec<i64>,
}

impl OpDef for Transpose {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        let rank = x.ty.shape.rank();
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        if sorted != (0..rank as i64).collect::<Vec<_>>() {
            return Err(InferError::Permutation { rank });
        }
        Ok(one(x.ty.dtype, Shape(self.perm.iter().map(|&i| x.ty.shape.0[i as usize].clone()).collect())))
    }

    fn attrs(&self) -> Attrs {
        [("perm".to_owned(), Attr::Ints(self.perm.clone()))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self { perm: r.ints("perm")?.ok_or(AttrError::Missing { name: "perm" })? })
    }
}

/// Tensors side by side along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concat {
    /// The axis.
    pub axis: i64,
}

impl OpDef for Concat {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let first = required(inputs, 0)?;
        let at = axis(self.axis, first.ty.shape.rank())?;
        let parts = (0..inputs.len()).map(|i| required(inputs, i)).collect::<Result<Vec<_>, _>>()?;
        let content = parts.iter().map(|p| p.content.clone()).collect::<Option<Vec<_>>>().map(|c| c.concat());
        let mut shape = first.ty.shape.clone();
        for part in &parts[1..] {
            if part.ty.shape.rank() != shape.rank() {
                return Err(InferError::Broadcast { left: shape.elements(), right: part.ty.shape.elements() });
            }
            for (i, (a, b)) in shape.0.iter().zip(&part.ty.shape.0).enumerate() {
                if i != at && a != b {
                    let fixed = a.as_fixed().is_some() && b.as_fixed().is_some();
                    let clash = InferError::Broadcast { left: a.clone(), right: b.clone() };
                    return Err(if fixed { clash } else { InferError::Undecided });
                }
            }
            shape.0[at] = sum(&shape.0[at], &part.ty.shape.0[at])?;
        }
        Ok(vec![Info { ty: TensorType::new(first.ty.dtype, shape), content }])
    }

    fn attrs(&self) -> Attrs {
        [("axis".to_owned(), Attr::Int(self.axis))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self { axis: r.int("axis")? })
    }
}

fn sum(a: &Dim, b: &Dim) -> Result<Dim, InferError> {
    match (a.as_fixed(), b.as_fixed()) {
        (Some(a), Some(b)) => a.checked_add(b).map(Dim::fixed).ok_or(InferError::Undecided),
        _ => Err(InferError::Undecided),
    }
}

/// Equal parts along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// The axis.
    pub axis: i64,
    /// How many parts.
    pub num_outputs: i64,
}

impl OpDef for Split {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        let at = axis(self.axis, x.ty.shape.rank())?;
        let (Some(size), 1..=64) = (x.ty.shape.0[at].as_fixed(), self.num_outputs) else {
            return Err(InferError::Undecided);
        };
        let parts = self.num_outputs as usize;
        if !size.is_multiple_of(parts) || inputs.len() > 1 {
            return Err(InferError::Undecided);
        }
        let mut ty = x.ty.clone();
        ty.shape.0[at] = Dim::fixed(size / parts);
        Ok(vec![Info { ty, content: None }; parts])
    }

    fn attrs(&self) -> Attrs {
        [("axis".to_owned(), Attr::Int(self.axis)), ("num_outputs".to_owned(), Attr::Int(self.num_outputs))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self { axis: r.int_or("axis", 0)?, num_outputs: r.int("num_outputs")? })
    }
}

/// `x[start : end]` along the axes of input 3, with steps of input 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice;

impl OpDef for Slice {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        let (starts, ends) = (fixed_of(inputs, 1)?, fixed_of(inputs, 2)?);
        let axes = fixed_of(inputs, 3)?;
        if inputs.len() > 4 || starts.len() != axes.len() || ends.len() != axes.len() {
            return Err(InferError::Undecided);
        }
        let mut ty = x.ty.clone();
        for ((&start, &end), &at) in starts.iter().zip(&ends).zip(&axes) {
            let size = ty.shape.0.get(at).and_then(Dim::as_fixed).ok_or(InferError::Undecided)?;
            ty.shape.0[at] = Dim::fixed(end.min(size).saturating_sub(start.min(size)));
        }
        let content = match (&x.content, starts.as_slice(), ends.as_slice()) {
            (Some(c), &[start], &[end]) => c.get(start..end.min(c.len())).map(<[Dim]>::to_vec),
            _ => None,
        };
        Ok(vec![Info { ty, content }])
    }

    fn attrs(&self) -> Attrs {
        no_attrs()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}

/// Rows by index: `x[indices]` along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    /// The axis.
    pub axis: i64,
}

impl OpDef for Gather {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (x, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let at = axis(self.axis, x.ty.shape.rank())?;
        let mut shape = x.ty.shape.0[..at].to_vec();
        shape.extend(indices.ty.shape.0.iter().cloned());
        shape.extend(x.ty.shape.0[at + 1..].iter().cloned());
        let content = match (&x.content, &indices.content) {
            (Some(c), Some(i)) => i.iter().map(|i| c.get(i.as_fixed()?).cloned()).collect(),
            _ => None,
        };
        Ok(vec![Info { ty: TensorType::new(x.ty.dtype, Shape(shape)), content }])
    }

    fn attrs(&self) -> Attrs {
        [("axis".to_owned(), Attr::Int(self.axis))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self { axis: r.int_or("axis", 0)? })
    }
}

/// Broadcasts to the shape of input 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expand;

impl OpDef for Expand {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        Ok(one(x.ty.dtype, broadcast(&x.ty.shape, &Shape(content_of(inputs, 1)?))?))
    }

    fn attrs(&self) -> Attrs {
        no_attrs()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}

/// Removes axes of size one, those of input 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Squeeze;

impl OpDef for Squeeze {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (x, gone) = (required(inputs, 0)?, fixed_of(inputs, 1)?);
        let kept = x.ty.shape.0.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, d)| d.clone()).collect();
        Ok(vec![Info { ty: TensorType::new(x.ty.dtype, Shape(kept)), content: x.content.clone() }])
    }

    fn attrs(&self) -> Attrs {
        no_attrs()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}

/// Inserts axes of size one at the positions of input 1, counted in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsqueeze;

impl OpDef for Unsqueeze {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (x, mut at) = (required(inputs, 0)?, fixed_of(inputs, 1)?);
        at.sort_unstable();
        let mut shape = x.ty.shape.0.clone();
        for i in at {
            if i > shape.len() {
                return Err(InferError::Axis { axis: i as i64, rank: shape.len() });
            }
            shape.insert(i, Dim::fixed(1));
        }
        Ok(vec![Info { ty: TensorType::new(x.ty.dtype, Shape(shape)), content: x.content.clone() }])
    }

    fn attrs(&self) -> Attrs {
        no_attrs()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}

/// The sizes of a tensor as `i64`, from axis `start` to before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShapeOf {
    /// First axis.
    pub start: i64,
    /// Axis after the last; `None` for all.
    pub end: Option<i64>,
}

impl OpDef for ShapeOf {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let dims = &required(inputs, 0)?.ty.shape.0;
        let rank = dims.len() as i64;
        let clamp = |i: i64| (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize;
        let (start, end) = (clamp(self.start), clamp(self.end.unwrap_or(rank)));
        let content = dims.get(start..end).unwrap_or_default().to_vec();
        Ok(vec![Info { ty: TensorType::new(DType::I64, Shape::fixed(&[content.len()])), content: Some(content) }])
    }

    fn attrs(&self) -> Attrs {
        let mut attrs: Attrs = [("start".to_owned(), Attr::Int(self.start))].into();
        attrs.extend(self.end.map(|end| ("end".to_owned(), Attr::Int(end))));
        attrs
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        let (start, end) = (r.int_or("start", 0)?, r.int_or("end", i64::MAX)?);
        Ok(Self { start, end: (end != i64::MAX).then_some(end) })
    }
}

/// `start, start + delta, …` before `limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range;

impl OpDef for Range {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let dtype = required(inputs, 0)?.ty.dtype;
        let (start, limit, delta) = (content_of(inputs, 0)?, content_of(inputs, 1)?, content_of(inputs, 2)?);
        match (start.as_slice(), limit.as_slice(), delta.as_slice()) {
            ([s], [n], [d]) if s.as_fixed() == Some(0) && d.as_fixed() == Some(1) => {
                Ok(one(dtype, Shape(vec![n.clone()])))
            }
            _ => Err(InferError::Undecided),
        }
    }

    fn attrs(&self) -> Attrs {
        no_attrs()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}

/// A tensor of one value in the shape of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct ConstantOfShape {
    /// The value, one element.
    pub value: Initializer,
}

impl OpDef for ConstantOfShape {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        Ok(one(self.value.dtype, Shape(content_of(inputs, 0)?)))
    }

    fn attrs(&self) -> Attrs {
        [("value".to_owned(), Attr::Tensor(self.value.clone()))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        let value = r.tensor("value")?.unwrap_or_else(|| Initializer::from_f32(&[1], &[0.0]));
        match value.data {
            InitializerData::Inline(_) => Ok(Self { value }),
            InitializerData::External(_) => Err(AttrError::Kind { name: "value", expected: "stored inline" }),
        }
    }
}

/// Mean over the axes of input 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReduceMean {
    /// Whether reduced axes stay with size one.
    pub keepdims: bool,
}

impl OpDef for ReduceMean {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (x, axes) = (required(inputs, 0)?, fixed_of(inputs, 1)?);
        let dims = x.ty.shape.0.iter().enumerate();
        let shape = dims.filter_map(|(i, d)| match (axes.contains(&i), self.keepdims) {
            (true, true) => Some(Dim::fixed(1)),
            (true, false) => None,
            (false, _) => Some(d.clone()),
        });
        Ok(one(x.ty.dtype, Shape(shape.collect())))
    }

    fn attrs(&self) -> Attrs {
        [("keepdims".to_owned(), Attr::Int(self.keepdims.into()))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        match r.int_or("noop_with_empty_axes", 0)? {
            0 => Ok(Self { keepdims: r.int_or("keepdims", 1)? != 0 }),
            _ => Err(AttrError::Kind { name: "noop_with_empty_axes", expected: "0" }),
        }
    }
}

/// `[N, C·b², H, W] → [N, C, b·H, b·W]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepthToSpace {
    /// Block size `b`.
    pub blocksize: i64,
    /// `true`: channels are ordered `(c, y, x)` as torch's `pixel_shuffle` has them; `false`: `(y, x, c)`.
    pub column_row_depth: bool,
}

impl OpDef for DepthToSpace {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        let ([n, c, h, w], 1..=64) = (x.ty.shape.0.as_slice(), self.blocksize) else {
            return Err(InferError::Undecided);
        };
        let b = Dim::fixed(self.blocksize as usize);
        let depth = c.exact_quotient(&(b.clone() * b.clone())).ok_or(InferError::Undecided)?;
        Ok(one(x.ty.dtype, Shape(vec![n.clone(), depth, h.clone() * b.clone(), w.clone() * b])))
    }

    fn attrs(&self) -> Attrs {
        let mode = if self.column_row_depth { "CRD" } else { "DCR" };
        [("blocksize".to_owned(), Attr::Int(self.blocksize)), ("mode".to_owned(), Attr::String(mode.to_owned()))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        let blocksize = r.int("blocksize")?;
        Ok(Self { blocksize, column_row_depth: r.string_or("mode", "DCR")? == "CRD" })
    }
}
