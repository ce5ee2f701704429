//! Constants in the graph, and nodes whose meaning lies elsewhere: in a function of the model or in the engine.

use super::shapes::known;
use super::{Attr, AttrError, Attrs, OpDef, Reader};
use crate::ir::{InferError, Info, Initializer, InitializerData};

/// A node of a function or a foreign operator, carried with its attributes as they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Operator domain; empty for a standard operator that this crate does not type.
    pub domain: String,
    /// Operator type.
    pub name: String,
    /// Attributes, uninterpreted.
    pub attributes: Attrs,
}

impl Call {
    /// A call of a function in the `vldm` domain.
    pub fn vldm(name: &str, attributes: impl IntoIterator<Item = (&'static str, Attr)>) -> Self {
        let attributes = attributes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Self { domain: crate::DOMAIN.to_owned(), name: name.to_owned(), attributes }
    }
}

/// A constant written as a node; function bodies have no initializers.
#[derive(Debug, Clone, PartialEq)]
pub enum Constant {
    /// `value_int`: a scalar `i64`.
    Int(i64),
    /// `value_float`: a scalar `f32`.
    Float(f32),
    /// `value_ints`: a vector of `i64`.
    Ints(Vec<i64>),
    /// `value_floats`: a vector of `f32`.
    Floats(Vec<f32>),
    /// `value`: any tensor.
    Tensor(Initializer),
}

impl Constant {
    /// Type and content.
    pub fn info(&self) -> Info {
        known(&self.initializer())
    }

    /// The constant as an initializer.
    pub fn initializer(&self) -> Initializer {
        match self {
            Self::Int(v) => Initializer::from_i64(&[], &[*v]),
            Self::Float(v) => Initializer::from_f32(&[], &[*v]),
            Self::Ints(v) => Initializer::from_i64(&[v.len()], v),
            Self::Floats(v) => Initializer::from_f32(&[v.len()], v),
            Self::Tensor(t) => t.clone(),
        }
    }
}

impl OpDef for Constant {
    fn infer(&self, _: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        Ok(vec![self.info()])
    }

    fn attrs(&self) -> Attrs {
        let (name, attr) = match self {
            Self::Int(v) => ("value_int", Attr::Int(*v)),
            Self::Float(v) => ("value_float", Attr::Float(*v)),
            Self::Ints(v) => ("value_ints", Attr::Ints(v.clone())),
            Self::Floats(v) => ("value_floats", Attr::Floats(v.clone())),
            Self::Tensor(v) => ("value", Attr::Tensor(v.clone())),
        };
        [(name.to_owned(), attr)].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        if let Some(tensor) = r.tensor("value")? {
            return match tensor.data {
                InitializerData::Inline(_) => Ok(Self::Tensor(tensor)),
                InitializerData::External(_) => Err(AttrError::Kind { name: "value", expected: "stored inline" }),
            };
        }
        if let Some(ints) = r.ints("value_ints")? {
            return Ok(Self::Ints(ints));
        }
        if let Some(floats) = r.floats("value_floats")? {
            return Ok(Self::Floats(floats));
        }
        if let Some(float) = r.float("value_float")? {
            return Ok(Self::Float(float));
        }
        r.int("value_int").map(Self::Int)
    }
}
