//! Matrix products.

use super::shapes::{broadcast, one, required};
use super::{Attr, AttrError, Attrs, OpDef, Reader};
use crate::ir::{Dim, InferError, Info, Shape};

/// `[…, m, k] × […, k, n] → […, m, n]` with broadcasting of the leading dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatMul;

fn inner(left: &Dim, right: &Dim) -> Result<(), InferError> {
    match (left.as_fixed(), right.as_fixed()) {
        (Some(a), Some(b)) if a != b => Err(InferError::Inner { left: left.clone(), right: right.clone() }),
        _ => Ok(()),
    }
}

impl OpDef for MatMul {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let (x, y) = (&a.ty.shape.0, &b.ty.shape.0);
        if x.len() < 2 || y.len() < 2 {
            return Err(InferError::Undecided);
        }
        inner(&x[x.len() - 1], &y[y.len() - 2])?;
        let mut shape = broadcast(&Shape(x[..x.len() - 2].to_vec()), &Shape(y[..y.len() - 2].to_vec()))?;
        shape.0.extend([x[x.len() - 2].clone(), y[y.len() - 1].clone()]);
        Ok(one(a.ty.dtype, shape))
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn from_attrs(_: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self)
    }
}

/// `alpha · A' B' + beta · C`, where `A'` may be `Aᵀ` and `B'` may be `Bᵀ`; matrices only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the summand.
    pub beta: f32,
    /// Whether the first operand is transposed.
    pub trans_a: bool,
    /// Whether the second operand is transposed.
    pub trans_b: bool,
}

impl OpDef for Gemm {
    fn infer(&self, inputs: &[Option<&Info>]) -> Result<Vec<Info>, InferError> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let ([a0, a1], [b0, b1]) = (a.ty.shape.0.as_slice(), b.ty.shape.0.as_slice()) else {
            return Err(InferError::Undecided);
        };
        let (m, k) = if self.trans_a { (a1, a0) } else { (a0, a1) };
        let (l, n) = if self.trans_b { (b1, b0) } else { (b0, b1) };
        inner(k, l)?;
        Ok(one(a.ty.dtype, Shape(vec![m.clone(), n.clone()])))
    }

    fn attrs(&self) -> Attrs {
        [
            ("alpha".to_owned(), Attr::Float(self.alpha)),
            ("beta".to_owned(), Attr::Float(self.beta)),
            ("transA".to_owned(), Attr::Int(self.trans_a.into())),
            ("transB".to_owned(), Attr::Int(self.trans_b.into())),
        ]
        .into()
    }

    fn from_attrs(r: &mut Reader<'_>) -> Result<Self, AttrError> {
        Ok(Self {
            alpha: r.float_or("alpha", 1.0)?,
            beta: r.float_or("beta", 1.0)?,
            trans_a: r.int_or("transA", 0)? != 0,
            trans_b: r.int_or("transB", 0)? != 0,
        })
    }
}
