//! `vldm::Attention`: attention of tokens to tokens, heads side by side in the last axis.

use crate::ir::{Function, ValueId};
use crate::nn::function_body;
use crate::ops::{BinaryKind, Concat, MatMul, Reshape, Softmax, Transpose};

/// Name of the function.
pub const ATTENTION: &str = "Attention";

/// `softmax(scale · q kᵀ) v` for each of `heads` groups of channels: `q` `[n, l, c]`, `k` and `v` `[n, m, c]` `→ [n, l, c]`.
///
/// Queries are scaled before the product, as [`crate::nn::attend`] does it.
pub fn attention() -> Function {
    let doc = "softmax(scale * q k') v for every group of channels; q is [n, l, c], k and v are [n, m, c].";
    function_body(doc, &["heads", "scale"], ["q", "k", "v"], |f, [q, k, v]| {
        let (keep, heads, rest) = (f.ints(&[0, 0]), f.int_attribute("heads"), f.ints(&[-1]));
        let split = f.emit(Concat { axis: 0 }, &[keep, heads, rest]);
        let scale = f.float_attribute("scale");
        let q = f.emit(BinaryKind::Mul, &[q, scale]);
        let mut arrange = |x: ValueId, perm: &[i64]| {
            let x = f.emit(Reshape, &[x, split]); // n l h d
            f.emit(Transpose { perm: perm.to_vec() }, &[x])
        };
        let (q, k, v) = (arrange(q, &[0, 2, 1, 3]), arrange(k, &[0, 2, 3, 1]), arrange(v, &[0, 2, 1, 3]));
        let scores = f.emit(MatMul, &[q, k]);
        let weights = f.emit(Softmax { axis: -1 }, &[scores]);
        let y = f.emit(MatMul, &[weights, v]); // n h l d
        let y = f.emit(Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
        let join = f.ints(&[0, 0, -1]);
        f.emit(Reshape, &[y, join])
    })
}
