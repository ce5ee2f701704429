//! Operators of ONNX Runtime that are in no standard: it has kernels for them on its devices, other engines do not know them.

use crate::ops::{Attr, Call};

/// Their domain.
pub const MICROSOFT: &str = "com.microsoft";
/// Its version. Source: onnxruntime, `docs/ContribOperators.md`.
pub const MICROSOFT_VERSION: i64 = 1;
/// Operator type.
const MULTI_HEAD_ATTENTION: &str = "MultiHeadAttention";

/// `softmax(scale · q kᵀ) v` for each of `heads` groups of channels: `q` `[n, l, c]`, `k` and `v` `[n, m, c]` `→ [n, l, c]`.
///
/// Source: onnxruntime, `docs/ContribOperators.md`, `com.microsoft.MultiHeadAttention`.
pub fn multi_head_attention(heads: i64, scale: f32) -> Call {
    let attributes = [("num_heads", Attr::Int(heads)), ("scale", Attr::Float(scale))];
    Call {
        domain: MICROSOFT.to_owned(),
        name: MULTI_HEAD_ATTENTION.to_owned(),
        attributes: attributes.map(|(name, value)| (name.to_owned(), value)).into_iter().collect(),
    }
}

/// Whether a node is one of these, which compute in half precision too.
pub fn is_multi_head_attention(call: &Call) -> bool {
    call.domain == MICROSOFT && call.name == MULTI_HEAD_ATTENTION
}
