//! Element-wise operators: one kind each, one rule for shapes.

use super::shapes::{broadcast, one, required};
use super::{Attr, AttrError, Attrs, OpDef, Reader};
use crate::ir::{DType, Dim, InferError, Info, TensorType};

/// Function of one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnaryKind {
    /// Absolute value.
    Abs,
    /// Cosine.
    Cos,
    /// Gauss error function.
    Erf,
    /// Exponential.
    Exp,
    /// `x · Φ(x)` with the error function (opset 20).
    Gelu,
    /// The operand itself.
    Identity,
    /// Natural logarithm.
    Log,
    /// Negation.
    Neg,
    /// `1/x`.
    Reciprocal,
    /// Maximum with zero.
    Relu,
    /// Logistic function.
    Sigmoid,
    /// Sine.
    Sin,
    /// Square root.
    Sqrt,
    /// Hyperbolic tangent.
    Tanh,
}

const UNARY: &[(UnaryKind, &str)] = &[
    (UnaryKind::Abs, "Abs"),
    (UnaryKind::Cos, "Cos"),
    (UnaryKind::Erf, "Erf"),
    (UnaryKind::Exp, "Exp"),
    (UnaryKind::Gelu, "Gelu"),
    (UnaryKind::Identity, "Identity"),
    (UnaryKind::Log, "Log"),
    (UnaryKind::Neg, "Neg"),
    (UnaryKind::Reciprocal, "Reciprocal"),
    (UnaryKind::Relu, "Relu"),
    (UnaryKind::Sigmoid, "Sigmoid"),
    (UnaryKind::Sin, "Sin"),
    (UnaryKind::Sqrt, "Sqrt"),
    (UnaryKind::Tanh, "Tanh"),
];

impl UnaryKind {
    pub(super) fn from_onnx(op_type: &str) -> Option<Self> {
        UNARY.iter().find(|row| row.1 == op_type).map(|row| row.0)
    }

    pub(super) fn onnx(self) -> &'static str {
        UNARY.iter().find(|row| row.0 == self).expect("every kind has a row").1
    }
}

/// Function of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BinaryKind {
    /// Sum.
    Add,
    /// Quotient; rounds towards zero for integers.
    Div,
    /// Equality, a `bool`.
    Equal,
    /// Comparison, a `bool`.
    Greater,
    /// Comparison, a `bool`.
    Less,
    /// Comparison, a `bool`.
    LessOrEqual,
    /// Product.
    Mul,
    /// Power.
    Pow,
    /// Difference.
    Sub,
}

const BINARY: &[(BinaryKind, &str)] = &[
    (BinaryKind::Add, "Add"),
    (BinaryKind::Div, "Div"),
    (BinaryKind::Equal, "Equal"),
    (BinaryKind::Greater, "Greater"),
    (BinaryKind::Less, "Less"),
    (BinaryKind::LessOrEqual, "LessOrEqual"),
    (BinaryKind::Mul, "Mul"),
    (BinaryKind::Pow, "Pow"),
    (BinaryKind::Sub, "Sub"),
];

impl BinaryKind {
    pub(super) fn from_onnx(op_type: &str) -> Option<Self> {
        BINARY.iter().find(|row| row.1 == op_type).map(|row| row.0)
    }

    pub(super) fn onnx(self) -> &'static str {
        BINARY.iter().find(|row| row.0 == self).expect("every kind has a row").1
    }

    fn is_comparison(self) -> bool {
        matches!(self, Self::Equal | Self::Greater | Self::Less | Self::LessOrEqual)
    }
}

/// A unary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Unary(pub UnaryKind);

impl Unary {
    pub(super) fn infer(self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        let content = if self.0 == UnaryKind::Identity { x.content.clone() } else { None };
        Ok(vec![Info { ty: x.ty.clone(), content }])
    }
}

/// A binary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Binary(pub BinaryKind);

impl Binary {
    pub(super) fn infer(self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        if a.ty.dtype != b.ty.dtype && self.0 != BinaryKind::Pow {
            return Err(InferError::DTypes { left: a.ty.dtype, right: b.ty.dtype });
        }
        let dtype = if self.0.is_comparison() { DType::Bool } else { a.ty.dtype };
        let shape = broadcast(&a.ty.shape, &b.ty.shape)?;
        Ok(vec![Info { ty: TensorType::new(dtype, shape), content: self.content(a, b) }])
    }

    /// Products and quotients of sizes stay known.
    fn content(self, a: &Info, b: &Info) -> Option<Vec<Dim>> {
        let (a, b) = (a.content.as_ref()?, b.content.as_ref()?);
        let pairs = a.iter().zip(b);
        match self.0 {
            _ if a.len() != b.len() => None,
            BinaryKind::Mul => Some(pairs.map(|(a, b)| a.clone() * b.clone()).collect()),
            BinaryKind::Div => pairs.map(|(a, b)| a.exact_quotient(b)).collect(),
            _ => None,
        }
    }
}

/// Conversion to another element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// Type of the result.
    pub to: DType,
}

impl OpDef for Cast {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        Ok(vec![Info { ty: TensorType::new(self.to, x.ty.shape.clone()), content: x.content.clone() }])
    }

    fn attrs(&self) -> Attrs {
        [("to".to_owned(), Attr::Int(i64::from(self.to.onnx_code())))].into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        let code = r.int("to")?;
        let to = i32::try_from(code).ok().and_then(DType::from_onnx_code);
        to.map(|to| Self { to }).ok_or(AttrError::Kind { name: "to", expected: "a known element type" })
    }
}

/// Limits values to `[min, max]`, both optional inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clip;

impl OpDef for Clip {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let x = required(inputs, 0)?;
        Ok(one(x.ty.dtype, x.ty.shape.clone()))
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}

/// Chooses by a `bool` tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Where;

impl OpDef for Where {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (c, a, b) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        if a.ty.dtype != b.ty.dtype {
            return Err(InferError::DTypes { left: a.ty.dtype, right: b.ty.dtype });
        }
        Ok(one(a.ty.dtype, broadcast(&c.ty.shape, &broadcast(&a.ty.shape, &b.ty.shape)?)?))
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}
