//! Convolution and resizing.

use super::shapes::{one, required, window};
use super::{Attr, AttrError, Attrs, OpDef, Reader};
use crate::ir::{InferError, Info, Shape};

/// `[N, C, …] * [out, C/group, …] → [N, out, …]`; any number of spatial axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv {
    /// Stride per spatial axis.
    pub strides: Vec<i64>,
    /// Zeros added: all beginnings, then all ends.
    pub pads: Vec<i64>,
    /// Distance of taps per spatial axis.
    pub dilations: Vec<i64>,
    /// Groups of channels.
    pub group: i64,
}

impl Conv {
    /// Same padding on both ends of each axis, dilation 1, one group.
    pub fn new(strides: &[i64], padding: &[i64]) -> Self {
        let pads = padding.iter().chain(padding).copied().collect();
        Self { strides: strides.to_vec(), pads, dilations: vec![1; strides.len()], group: 1 }
    }
}

impl OpDef for Conv {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
        let (x_dims, w_dims) = (&x.ty.shape.0, &w.ty.shape.0);
        let axes = x_dims.len().checked_sub(2).filter(|&n| n > 0 && w_dims.len() == n + 2);
        let axes = axes.ok_or(InferError::Undecided)?;
        let lengths = [self.strides.len(), self.pads.len() / 2, self.dilations.len()];
        if lengths != [axes; 3] || !self.pads.len().is_multiple_of(2) || self.group < 1 {
            return Err(InferError::Undecided);
        }
        if let (Some(c), Some(k)) = (x_dims[1].as_fixed(), w_dims[1].as_fixed())
            && k.checked_mul(self.group as usize) != Some(c)
        {
            return Err(InferError::Inner { left: x_dims[1].clone(), right: w_dims[1].clone() });
        }
        let mut shape = vec![x_dims[0].clone(), w_dims[0].clone()];
        for i in 0..axes {
            let taps = w_dims[i + 2].as_fixed().ok_or(InferError::Undecided)? as i64;
            let span = self.dilations[i].saturating_mul(taps - 1).saturating_add(1);
            shape.push(window(
                &x_dims[i + 2],
                self.pads[i].saturating_add(self.pads[i + axes]),
                span,
                self.strides[i],
            )?);
        }
        Ok(one(x.ty.dtype, Shape(shape)))
    }

    fn attrs(&self) -> Attrs {
        [
            ("strides".to_owned(), Attr::Ints(self.strides.clone())),
            ("pads".to_owned(), Attr::Ints(self.pads.clone())),
            ("dilations".to_owned(), Attr::Ints(self.dilations.clone())),
            ("group".to_owned(), Attr::Int(self.group)),
        ]
        .into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        let kernel = r.ints("kernel_shape")?;
        let strides = r.ints("strides")?;
        let pads = r.ints("pads")?;
        let dilations = r.ints("dilations")?;
        let auto_pad = r.string_or("auto_pad", "NOTSET")?;
        let group = r.int_or("group", 1)?;
        let known = [kernel.as_ref(), strides.as_ref(), dilations.as_ref()].into_iter().flatten().map(Vec::len).next();
        let axes = known.or(pads.as_ref().map(|p| p.len() / 2)).unwrap_or(2);
        if !matches!(auto_pad.as_str(), "NOTSET" | "VALID") {
            return Err(AttrError::Kind { name: "auto_pad", expected: "NOTSET or VALID" });
        }
        Ok(Self {
            strides: strides.unwrap_or_else(|| vec![1; axes]),
            pads: pads.unwrap_or_else(|| vec![0; 2 * axes]),
            dilations: dilations.unwrap_or_else(|| vec![1; axes]),
            group,
        })
    }
}

/// Nearest-neighbour resizing to given `scales` (input 2) or `sizes` (input 3); source index `⌊i · in / out⌋`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resize;

impl OpDef for Resize {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        match inputs.get(3).copied().flatten().and_then(|sizes| sizes.content.clone()) {
            Some(sizes) if sizes.len() == x.ty.shape.rank() => Ok(one(x.ty.dtype, Shape(sizes))),
            _ => Err(InferError::Undecided),
        }
    }

    fn attrs(&self) -> Attrs {
        [("mode", "nearest"), ("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")]
            .map(|(k, v)| (k.to_owned(), Attr::String(v.to_owned())))
            .into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        let given = (
            r.string_or("mode", "nearest")?,
            r.string_or("coordinate_transformation_mode", "half_pixel")?,
            r.string_or("nearest_mode", "round_prefer_floor")?,
        );
        match (given.0.as_str(), given.1.as_str(), given.2.as_str()) {
            ("nearest", "asymmetric", "floor") => Ok(Self),
            _ => Err(AttrError::Kind { name: "mode", expected: "nearest, asymmetric, floor" }),
        }
    }
}
