//! `Value`: a tensor in the making, with the operators that layers are written in.

use std::ops::{Add, Mul, Sub};

use super::{BuildError, GraphBuilder};
use crate::ir::{DType, Dim, Function, Shape, TensorType, ValueId};
use crate::ops::{
    BinaryKind, Call, Cast, Clip, Concat, Constant, Conv, Expand, Gather, InstanceNormalization, LayerNormalization,
    MatMul, Op, Range, Reshape, Resize, ShapeOf, Softmax, Split, Transpose, UnaryKind, Unsqueeze,
};

/// A symbolic tensor. Copies are free; equal expressions are computed once.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    builder: &'g GraphBuilder<'g>,
    id: ValueId,
}

impl<'g> Value<'g> {
    pub(super) fn new(builder: &'g GraphBuilder<'g>, id: ValueId) -> Self {
        Self { builder, id }
    }

    /// Its id in the graph.
    pub fn id(self) -> ValueId {
        self.id
    }

    /// Its shape; `[]` after an error.
    pub fn shape(self) -> Shape {
        self.builder.info(self.id).ty.shape
    }

    /// Element type.
    pub fn dtype(self) -> DType {
        self.builder.info(self.id).ty.dtype
    }

    /// One dimension; 0 after an error.
    pub fn dim(self, axis: usize) -> Dim {
        self.shape().0.get(axis).cloned().unwrap_or(Dim::fixed(0))
    }

    /// Size of an axis that is known at export, such as channels; 0 after an error.
    pub fn size(self, axis: usize) -> usize {
        self.dim(axis).as_fixed().unwrap_or(0)
    }

    /// Channels of `[N, C, …]`; 0 after an error.
    pub fn channels(self) -> usize {
        self.size(1)
    }

    fn emit(self, op: impl Into<Op>, inputs: &[ValueId]) -> Self {
        Self::new(self.builder, self.builder.emit(op, inputs))
    }

    fn unary(self, kind: UnaryKind) -> Self {
        self.emit(kind, &[self.id])
    }

    fn binary(self, kind: BinaryKind, other: Self) -> Self {
        self.emit(kind, &[self.id, other.id])
    }

    /// A scalar of this value's graph.
    pub fn scalar(self, x: f32) -> Self {
        Self::new(self.builder, self.builder.constant(&Constant::Float(x)))
    }

    /// A vector of this value's graph.
    pub fn vector(self, x: &[f32]) -> Self {
        Self::new(self.builder, self.builder.constant(&Constant::Floats(x.to_vec())))
    }

    /// A vector of integers of this value's graph.
    pub fn ints(self, x: &[i64]) -> Self {
        Self::new(self.builder, self.builder.constant(&Constant::Ints(x.to_vec())))
    }

    /// `1 / (1 + e^−x)`
    pub fn sigmoid(self) -> Self {
        self.unary(UnaryKind::Sigmoid)
    }

    /// `x · sigmoid(x)`
    pub fn silu(self) -> Self {
        self * self.sigmoid()
    }

    /// `x · Φ(x)`, exact.
    pub fn gelu(self) -> Self {
        self.unary(UnaryKind::Gelu)
    }

    /// Sine.
    pub fn sin(self) -> Self {
        self.unary(UnaryKind::Sin)
    }

    /// Cosine.
    pub fn cos(self) -> Self {
        self.unary(UnaryKind::Cos)
    }

    /// Exponential.
    pub fn exp(self) -> Self {
        self.unary(UnaryKind::Exp)
    }

    /// Limited to `[low, high]`.
    pub fn clip(self, low: f32, high: f32) -> Self {
        let (low, high) = (self.scalar(low), self.scalar(high));
        self.emit(Clip, &[self.id, low.id, high.id])
    }

    /// Softmax along the last axis.
    pub fn softmax(self) -> Self {
        self.emit(Softmax { axis: -1 }, &[self.id])
    }

    /// Matrix product with broadcasting.
    pub fn matmul(self, other: Self) -> Self {
        self.emit(MatMul, &[self.id, other.id])
    }

    /// Convolution with `weight` and `bias`.
    pub fn conv(self, conv: Conv, weight: Self, bias: Self) -> Self {
        self.emit(conv, &[self.id, weight.id, bias.id])
    }

    /// Statistics per channel of `[N, C, …]`, then `scale` and `bias`.
    pub fn instance_norm(self, scale: Self, bias: Self, epsilon: f32) -> Self {
        self.emit(InstanceNormalization { epsilon }, &[self.id, scale.id, bias.id])
    }

    /// Statistics over the last axis, then `scale` and `bias`.
    pub fn layer_norm(self, scale: Self, bias: Self, epsilon: f32) -> Self {
        self.emit(LayerNormalization { axis: -1, epsilon }, &[self.id, scale.id, bias.id])
    }

    /// Axes in a new order.
    pub fn transpose(self, perm: &[i64]) -> Self {
        self.emit(Transpose { perm: perm.to_vec() }, &[self.id])
    }

    /// New axes of size one at these positions of the result.
    pub fn unsqueeze(self, axes: &[i64]) -> Self {
        let axes = self.ints(axes);
        self.emit(Unsqueeze, &[self.id, axes.id])
    }

    /// Rows `indices` of a table along its first axis.
    pub fn gather(self, indices: Self) -> Self {
        self.gather_along(0, indices)
    }

    /// The slices `indices` along `axis`, whose place the axes of `indices` take.
    pub fn gather_along(self, axis: i64, indices: Self) -> Self {
        self.emit(Gather { axis }, &[self.id, indices.id])
    }

    /// Column `index` along `axis`, which disappears.
    pub fn select(self, axis: i64, index: i64) -> Self {
        let index = Self::new(self.builder, self.builder.constant(&Constant::Int(index)));
        self.emit(Gather { axis }, &[self.id, index.id])
    }

    /// `i + 1`, for indices whose −1 means "not given".
    pub fn next_index(self) -> Self {
        let one = Self::new(self.builder, self.builder.constant(&Constant::Int(1)));
        self + one
    }

    /// Conversion to `i64`, towards zero.
    pub fn to_i64(self) -> Self {
        self.emit(Cast { to: DType::I64 }, &[self.id])
    }

    /// Conversion to `f32`.
    pub fn to_f32(self) -> Self {
        self.emit(Cast { to: DType::F32 }, &[self.id])
    }

    /// `N` equal parts along an axis.
    pub fn split<const N: usize>(self, axis: i64) -> [Self; N] {
        let ids = self.builder.emit_all(Split { axis, num_outputs: N as i64 }.into(), &[Some(self.id)]);
        std::array::from_fn(|i| Self::new(self.builder, ids[i]))
    }

    /// This and `others` side by side along an axis.
    pub fn concat(self, others: &[Self], axis: i64) -> Self {
        let ids: Vec<ValueId> = std::iter::once(self.id).chain(others.iter().map(|v| v.id)).collect();
        self.emit(Concat { axis }, &ids)
    }

    /// `0, 1, … n − 1` as `i64`, for a size of the graph.
    pub fn indices(self, n: &Dim) -> Self {
        let count = self.scalar_size(n);
        let [zero, one] = [0, 1].map(|v| self.builder.constant(&Constant::Int(v)));
        self.emit(Range, &[zero, count.id, one])
    }

    /// `0, 1, … n − 1` as `f32`, for a size of the graph.
    pub fn positions(self, n: &Dim) -> Self {
        self.indices(n).to_f32()
    }

    /// Calls a function of domain `vldm`; `body` is asked for once a graph.
    pub fn call(self, call: Call, body: impl FnOnce() -> Function, others: &[Self], shape: Shape) -> Self {
        let ids: Vec<ValueId> = std::iter::once(self.id).chain(others.iter().map(|v| v.id)).collect();
        let result = TensorType::new(self.dtype(), shape);
        Self::new(self.builder, self.builder.call(call, body, &ids, result))
    }

    /// The same elements in another shape. Sizes are taken from this value's own shape or the graph's inputs.
    pub fn reshape(self, shape: impl IntoIterator<Item = Dim>) -> Self {
        self.reshape_by(self, shape)
    }

    /// [`Value::reshape`], with sizes taken from the shape of `like` as well.
    pub fn reshape_by(self, like: Self, shape: impl IntoIterator<Item = Dim>) -> Self {
        let shape: Vec<Dim> = shape.into_iter().collect();
        if shape == self.shape().0 {
            return self;
        }
        let target = self.reshape_target(like, &shape);
        self.emit(Reshape, &[self.id, target.id])
    }

    /// Broadcast to a shape.
    pub fn expand(self, shape: impl IntoIterator<Item = Dim>) -> Self {
        let shape: Vec<Dim> = shape.into_iter().collect();
        if shape == self.shape().0 {
            return self;
        }
        let target = self.sizes(&shape);
        self.emit(Expand, &[self.id, target.id])
    }

    /// Nearest neighbour in the last two axes, to the given height and width; sizes are taken from `like` as well.
    pub fn resize(self, like: Self, height: &Dim, width: &Dim) -> Self {
        let (rows, columns) = (self.size_of(like, height), self.size_of(like, width));
        let outer = self.emit(ShapeOf { start: 0, end: Some(2) }, &[self.id]);
        let sizes = outer.concat(&[rows, columns], 0);
        let inputs = [Some(self.id), None, None, Some(sizes.id)];
        Self::new(self.builder, self.builder.emit_all(Resize.into(), &inputs)[0])
    }

    /// The operand of `Reshape`: constants, 0 for kept axes, −1 for one that remains; else computed sizes.
    fn reshape_target(self, like: Self, shape: &[Dim]) -> Self {
        let own = self.shape().0;
        let plain: Vec<Option<i64>> = shape
            .iter()
            .enumerate()
            .map(|(i, d)| match d.as_fixed() {
                Some(n) => Some(n as i64),
                None => (own.get(i) == Some(d)).then_some(0),
            })
            .collect();
        let open: Vec<usize> = (0..shape.len()).filter(|&i| plain[i].is_none()).collect();
        if open.len() <= 1 {
            return self.ints(&plain.iter().map(|d| d.unwrap_or(-1)).collect::<Vec<_>>());
        }
        // One computed size can be left to −1: the one with the most factors.
        let rest = open.iter().copied().max_by_key(|&i| (shape[i].factors().len(), i)).unwrap_or(0);
        let parts: Vec<Self> = (0..shape.len())
            .map(|i| match plain[i] {
                Some(n) => self.ints(&[n]),
                None if i == rest => self.ints(&[-1]),
                None => self.size_of(like, &shape[i]),
            })
            .collect();
        parts[0].concat(&parts[1..], 0)
    }

    fn sizes(self, shape: &[Dim]) -> Self {
        let fixed: Option<Vec<i64>> = shape.iter().map(|d| d.as_fixed().map(|n| n as i64)).collect();
        if let Some(fixed) = fixed {
            return self.ints(&fixed);
        }
        let parts: Vec<Self> = shape.iter().map(|d| self.size_of(self, d)).collect();
        parts[0].concat(&parts[1..], 0)
    }

    fn scalar_size(self, dim: &Dim) -> Self {
        let zero = self.builder.constant(&Constant::Int(0));
        let size = self.size_of(self, dim);
        self.emit(Gather { axis: 0 }, &[size.id, zero])
    }

    /// A size as `[1]` of `i64`: a constant, an axis of this value or of `like`, or a product of sizes of the inputs.
    fn size_of(self, like: Self, dim: &Dim) -> Self {
        if let Some(n) = dim.as_fixed() {
            return self.ints(&[n as i64]);
        }
        // Inputs first: a size that all layers take from one place is computed once.
        let source = dim.as_symbol().and_then(|symbol| self.builder.source_of(symbol));
        let candidates = [self, like];
        let own = || candidates.iter().find_map(|v| Some((v.id, v.shape().0.iter().position(|d| d == dim)?)));
        if let Some((id, axis)) = source.or_else(own) {
            return self.axis_size(id, axis);
        }
        // A product: one axis times the rest, or one symbol of the inputs times the rest.
        let by_axis = candidates.iter().find_map(|v| {
            let dims = v.shape().0;
            let open = dims.iter().enumerate().filter(|(_, d)| d.as_fixed().is_none());
            open.into_iter().find_map(|(axis, d)| dim.exact_quotient(d).map(|rest| (v.id, axis, rest)))
        });
        let by_symbol = || {
            dim.factors().iter().filter(|f| f.divisor == 1).find_map(|f| {
                let (id, axis) = self.builder.source_of(&f.symbol)?;
                dim.exact_quotient(&Dim::symbol(&f.symbol)).map(|rest| (id, axis, rest))
            })
        };
        if let Some((id, axis, rest)) = by_axis.or_else(by_symbol) {
            return self.axis_size(id, axis) * self.size_of(like, &rest);
        }
        self.builder.fail(BuildError::Size { path: self.builder.path(), dim: dim.clone() });
        self
    }

    fn axis_size(self, id: ValueId, axis: usize) -> Self {
        let (start, end) = (axis as i64, Some(axis as i64 + 1));
        self.emit(ShapeOf { start, end }, &[id])
    }
}

impl Add for Value<'_> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.binary(BinaryKind::Add, other)
    }
}

impl Sub for Value<'_> {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.binary(BinaryKind::Sub, other)
    }
}

impl Mul for Value<'_> {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        self.binary(BinaryKind::Mul, other)
    }
}

impl Add<f32> for Value<'_> {
    type Output = Self;
    fn add(self, x: f32) -> Self {
        self + self.scalar(x)
    }
}

impl Mul<f32> for Value<'_> {
    type Output = Self;
    fn mul(self, x: f32) -> Self {
        self * self.scalar(x)
    }
}
