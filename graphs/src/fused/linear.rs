//! `vldm::Linear` and its kin: a matrix product with what follows it.

use crate::ir::{Function, ValueId};
use crate::nn::{Body, function_body};
use crate::ops::{BinaryKind, Constant, MatMul, Transpose, UnaryKind};

/// What follows `x wᵀ + b`. `x` is `[…, k]`, `w` `[n, k]`, `b` `[n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linear {
    /// Nothing.
    Plain,
    /// A sum with a second input of the result's shape.
    Add,
    /// `x · Φ(x)`
    Gelu,
    /// `x · sigmoid(1.702 x)`
    QuickGelu,
    /// `x · sigmoid(x)`
    Silu,
    /// `a · gelu(b)` of the two halves of the last axis.
    Geglu,
}

/// Every form with the name of its function. All take `x, w, b`; [`Linear::Add`] takes `x, summand, w, b`.
pub const LINEARS: &[(Linear, &str)] = &[
    (Linear::Plain, "Linear"),
    (Linear::Add, "LinearAdd"),
    (Linear::Gelu, "LinearGelu"),
    (Linear::QuickGelu, "LinearQuickGelu"),
    (Linear::Silu, "LinearSilu"),
    (Linear::Geglu, "LinearGeglu"),
];

impl Linear {
    /// Name of its function.
    pub fn name(self) -> &'static str {
        LINEARS.iter().find(|row| row.0 == self).map_or("Linear", |row| row.1)
    }
}

/// The function of a form.
pub fn linear(form: Linear) -> Function {
    if form == Linear::Add {
        let doc = "x w' + b + summand.";
        return function_body(doc, &[], ["x", "summand", "w", "b"], |f, [x, summand, w, b]| {
            let y = product(f, x, w, b);
            f.emit(BinaryKind::Add, &[y, summand])
        });
    }
    let doc = match form {
        Linear::Plain | Linear::Add => "x w' + b.",
        Linear::Gelu => "gelu(x w' + b), with the error function.",
        Linear::QuickGelu => "y sigmoid(1.702 y) of y = x w' + b.",
        Linear::Silu => "y sigmoid(y) of y = x w' + b.",
        Linear::Geglu => "u gelu(v) of [u, v] = x w' + b, halves of the last axis.",
    };
    function_body(doc, &[], ["x", "w", "b"], |f, [x, w, b]| {
        let y = product(f, x, w, b);
        match form {
            Linear::Plain | Linear::Add => y,
            Linear::Gelu => f.emit(UnaryKind::Gelu, &[y]),
            Linear::QuickGelu => {
                let rate = f.emit(Constant::Float(1.702), &[]);
                let scaled = f.emit(BinaryKind::Mul, &[y, rate]);
                gated(f, y, scaled)
            }
            Linear::Silu => gated(f, y, y),
            Linear::Geglu => {
                let [u, v] = f.halves(y);
                let gate = f.emit(UnaryKind::Gelu, &[v]);
                f.emit(BinaryKind::Mul, &[u, gate])
            }
        }
    })
}

fn product(f: &mut Body, x: ValueId, w: ValueId, b: ValueId) -> ValueId {
    let w = f.emit(Transpose { perm: vec![1, 0] }, &[w]);
    let y = f.emit(MatMul, &[x, w]);
    f.emit(BinaryKind::Add, &[y, b])
}

fn gated(f: &mut Body, y: ValueId, x: ValueId) -> ValueId {
    let gate = f.emit(UnaryKind::Sigmoid, &[x]);
    f.emit(BinaryKind::Mul, &[y, gate])
}
