//! Normalisation.

use super::shapes::{axis, one, required};
use super::{Attr, AttrError, Attrs, OpDef, Reader};
use crate::ir::{InferError, Info};

/// Zero mean and unit variance over the spatial axes of `[N, C, …]`, then scale and bias per channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InstanceNormalization {
    /// Added to the variance.
    pub epsilon: f32,
}

impl OpDef for InstanceNormalization {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        Ok(one(x.ty.dtype, x.ty.shape.clone()))
    }

    fn attrs(&self) -> Attrs {
        [("epsilon".to_owned(), Attr::Float(self.epsilon))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self { epsilon: r.float_or("epsilon", 1e-5)? })
    }
}

/// Zero mean and unit variance over all axes from `axis` on, then scale and bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormalization {
    /// First normalised axis.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
}

impl OpDef for LayerNormalization {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        axis(self.axis, x.ty.shape.rank())?;
        Ok(one(x.ty.dtype, x.ty.shape.clone()))
    }

    fn attrs(&self) -> Attrs {
        [("axis".to_owned(), Attr::Int(self.axis)), ("epsilon".to_owned(), Attr::Float(self.epsilon))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        match r.int_or("stash_type", 1)? {
            1 => Ok(Self { axis: r.int_or("axis", -1)?, epsilon: r.float_or("epsilon", 1e-5)? }),
            _ => Err(AttrError::Kind { name: "stash_type", expected: "1 (statistics in f32)" }),
        }
    }
}

/// Exponentials that sum to one along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Softmax {
    /// The axis.
    pub axis: i64,
}

impl OpDef for Softmax {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        axis(self.axis, x.ty.shape.rank())?;
        Ok(one(x.ty.dtype, x.ty.shape.clone()))
    }

    fn attrs(&self) -> Attrs {
        [("axis".to_owned(), Attr::Int(self.axis))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self { axis: r.int_or("axis", -1)? })
    }
}
