//! Attributes as ONNX stores them, and the reading and writing of typed ones.

use std::collections::BTreeMap;

use crate::ir::Initializer;

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attr {
    /// `i`
    Int(i64),
    /// `f`
    Float(f32),
    /// `s`, which must be UTF-8
    String(String),
    /// `ints`
    Ints(Vec<i64>),
    /// `floats`
    Floats(Vec<f32>),
    /// `strings`
    Strings(Vec<String>),
    /// `t`
    Tensor(Initializer),
}

/// Attributes of a node by name.
pub type Attrs = BTreeMap<String, Attr>;

/// Why a node's attributes do not make the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttrError {
    /// A required attribute is absent.
    #[error("attribute `{name}` is missing")]
    Missing {
        /// Attribute.
        name: &'static str,
    },
    /// It is there but of another kind.
    #[error("attribute `{name}` is not {expected}")]
    Kind {
        /// Attribute.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// An attribute or value that the typed operator cannot express.
    #[error("attribute `{name}` is not one this operator carries")]
    Unknown {
        /// Attribute.
        name: String,
    },
}

/// Takes attributes out of a map one by one; what is left at the end is unknown.
pub struct Reader<'a> {
    attrs: &'a Attrs,
    seen: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    /// Reads from `attrs`.
    pub fn new(attrs: &'a Attrs) -> Self {
        Self { attrs, seen: Vec::new() }
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Attr> {
        self.seen.push(name);
        self.attrs.get(name)
    }

    /// An integer with a default.
    pub fn int_or(&mut self, name: &'static str, default: i64) -> Result<i64, AttrError> {
        match self.take(name) {
            None => Ok(default),
            Some(Attr::Int(v)) => Ok(*v),
            Some(_) => Err(AttrError::Kind { name, expected: "an integer" }),
        }
    }

    /// An integer that must be there.
    pub fn int(&mut self, name: &'static str) -> Result<i64, AttrError> {
        match self.take(name) {
            None => Err(AttrError::Missing { name }),
            Some(Attr::Int(v)) => Ok(*v),
            Some(_) => Err(AttrError::Kind { name, expected: "an integer" }),
        }
    }

    /// A float with a default.
    pub fn float_or(&mut self, name: &'static str, default: f32) -> Result<f32, AttrError> {
        match self.take(name) {
            None => Ok(default),
            Some(Attr::Float(v)) => Ok(*v),
            Some(_) => Err(AttrError::Kind { name, expected: "a float" }),
        }
    }

    /// A float, if given.
    pub fn float(&mut self, name: &'static str) -> Result<Option<f32>, AttrError> {
        match self.take(name) {
            None => Ok(None),
            Some(Attr::Float(v)) => Ok(Some(*v)),
            Some(_) => Err(AttrError::Kind { name, expected: "a float" }),
        }
    }

    /// A list of floats, if given.
    pub fn floats(&mut self, name: &'static str) -> Result<Option<Vec<f32>>, AttrError> {
        match self.take(name) {
            None => Ok(None),
            Some(Attr::Floats(v)) => Ok(Some(v.clone())),
            Some(_) => Err(AttrError::Kind { name, expected: "a list of floats" }),
        }
    }

    /// A list of integers, if given.
    pub fn ints(&mut self, name: &'static str) -> Result<Option<Vec<i64>>, AttrError> {
        match self.take(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v.clone())),
            Some(_) => Err(AttrError::Kind { name, expected: "a list of integers" }),
        }
    }

    /// A string with a default.
    pub fn string_or(&mut self, name: &'static str, default: &str) -> Result<String, AttrError> {
        match self.take(name) {
            None => Ok(default.to_owned()),
            Some(Attr::String(v)) => Ok(v.clone()),
            Some(_) => Err(AttrError::Kind { name, expected: "a string" }),
        }
    }

    /// A tensor, if given.
    pub fn tensor(&mut self, name: &'static str) -> Result<Option<Initializer>, AttrError> {
        match self.take(name) {
            None => Ok(None),
            Some(Attr::Tensor(v)) => Ok(Some(v.clone())),
            Some(_) => Err(AttrError::Kind { name, expected: "a tensor" }),
        }
    }

    /// Refuses attributes that nobody asked for.
    pub fn finish(self) -> Result<(), AttrError> {
        match self.attrs.keys().find(|k| !self.seen.contains(&k.as_str())) {
            Some(name) => Err(AttrError::Unknown { name: name.clone() }),
            None => Ok(()),
        }
    }
}
