//! Operators: one typed enum. A new operator is a struct with [`OpDef`] in the fitting file and one line in `ops!`.

mod attrs;
mod call;
mod elementwise;
mod layout;
mod matrix;
mod norm;
mod shapes;
mod spatial;
#[cfg(test)]
mod tests;

use std::fmt;

pub use attrs::{Attr, AttrError, Attrs, Reader};
pub use call::{Call, Constant};
pub use elementwise::{Binary, BinaryKind, Cast, Clip, Unary, UnaryKind, Where};
pub use layout::{
    Concat, ConstantOfShape, DepthToSpace, Expand, Gather, Range, ReduceMean, Reshape, ShapeOf, Slice, Split, Squeeze,
    Transpose, Unsqueeze,
};
pub use matrix::{Gemm, MatMul};
pub use norm::{InstanceNormalization, LayerNormalization, Softmax};
pub use spatial::{Conv, Resize};

use crate::ir::{InferError, Info};

/// What an operator declares about itself.
pub trait OpDef: Sized {
    /// Types of the outputs from those of the inputs; absent optional inputs are `None`.
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError>;
    /// Attributes in ONNX form; defaults may be left out.
    fn attrs(&self) -> Attrs;
    /// Reads the operator from its ONNX attributes.
    fn from_attrs(reader: &mut Reader<'_>) -> Result<Self, AttrError>;
}

macro_rules! ops {
    ($($name:ident = $onnx:literal),* $(,)?) => {
        /// An operator. `Unary` and `Binary` stand for families of one shape; `Call` for everything this crate
        /// does not type: model-local functions and operators that only an engine knows.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("`", $onnx, "`")] $name($name),)*
            /// Function of one operand, element by element.
            Unary(Unary),
            /// Function of two operands with broadcasting.
            Binary(Binary),
            /// Model-local function or foreign operator.
            Call(Call),
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Self { Self::$name(op) }
        })*

        impl Op {
            /// Reads a node of the standard domain; `None` for operators this crate does not type.
            pub fn from_onnx(op_type: &str, attrs: &Attrs) -> Option<Result<Self, AttrError>> {
                let mut reader = Reader::new(attrs);
                let op = match op_type {
                    $($onnx => $name::from_attrs(&mut reader).map(Self::$name),)*
                    other => match (UnaryKind::from_onnx(other), BinaryKind::from_onnx(other)) {
                        (Some(kind), _) => Ok(Self::Unary(Unary(kind))),
                        (_, Some(kind)) => Ok(Self::Binary(Binary(kind))),
                        _ => return None,
                    },
                };
                Some(op.and_then(|op| reader.finish().map(|()| op)))
            }

            /// Operator type in ONNX.
            pub fn op_type(&self) -> &str {
                match self {
                    $(Self::$name(_) => $onnx,)*
                    Self::Unary(op) => op.0.onnx(),
                    Self::Binary(op) => op.0.onnx(),
                    Self::Call(op) => &op.name,
                }
            }

            /// Attributes in ONNX form.
            pub fn attrs(&self) -> Attrs {
                match self {
                    $(Self::$name(op) => op.attrs(),)*
                    Self::Unary(_) | Self::Binary(_) => Attrs::new(),
                    Self::Call(op) => op.attributes.clone(),
                }
            }

            /// Types of the outputs; calls are not looked into here (see `infer_types`).
            pub fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
                match self {
                    $(Self::$name(op) => op.infer(inputs),)*
                    Self::Unary(op) => op.infer(inputs),
                    Self::Binary(op) => op.infer(inputs),
                    Self::Call(_) => Err(InferError::Undecided),
                }
            }
        }

        /// ONNX names of all typed operators but the unary and binary ones.
        pub const OP_TYPES: &[&str] = &[$($onnx),*];
    };
}

ops! {
    Cast = "Cast",
    Clip = "Clip",
    Concat = "Concat",
    Constant = "Constant",
    ConstantOfShape = "ConstantOfShape",
    Conv = "Conv",
    DepthToSpace = "DepthToSpace",
    Expand = "Expand",
    Gather = "Gather",
    Gemm = "Gemm",
    InstanceNormalization = "InstanceNormalization",
    LayerNormalization = "LayerNormalization",
    MatMul = "MatMul",
    Range = "Range",
    ReduceMean = "ReduceMean",
    Reshape = "Reshape",
    Resize = "Resize",
    ShapeOf = "Shape",
    Slice = "Slice",
    Softmax = "Softmax",
    Split = "Split",
    Squeeze = "Squeeze",
    Transpose = "Transpose",
    Unsqueeze = "Unsqueeze",
    Where = "Where",
}

impl From<UnaryKind> for Op {
    fn from(kind: UnaryKind) -> Self {
        Self::Unary(Unary(kind))
    }
}

impl From<BinaryKind> for Op {
    fn from(kind: BinaryKind) -> Self {
        Self::Binary(Binary(kind))
    }
}

impl From<Call> for Op {
    fn from(call: Call) -> Self {
        Self::Call(call)
    }
}

impl Op {
    /// Operator domain; empty for standard ONNX.
    pub fn domain(&self) -> &str {
        match self {
            Self::Call(call) => &call.domain,
            _ => "",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain().is_empty() {
            write!(f, "{}::", self.domain())?;
        }
        f.write_str(self.op_type())
    }
}
