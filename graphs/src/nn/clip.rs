//! The transformer of CLIP: pre-normalised layers of self-attention and a two-layer perceptron.

use super::{Scope, Value, linear};
use crate::ir::Dim;

/// The non-linearity between the two layers of the perceptron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipActivation {
    /// `x · sigmoid(1.702 x)`
    QuickGelu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// `x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2`
    GeluTanh,
}

/// `2 · √(2/π)`
const GELU_TANH: f32 = 1.595_769;

/// Shape of CLIP's transformer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipLayers {
    /// Width of a token.
    pub width: usize,
    /// Heads; they divide the width.
    pub heads: usize,
    /// Inner width of the perceptron.
    pub inner: usize,
    /// Epsilon of every normalisation.
    pub epsilon: f32,
    /// Non-linearity of the perceptron.
    pub activation: ClipActivation,
}

/// One layer: `[N, L, C] → [N, L, C]`. `mask` is added to the scores, `[L, L]`.
///
/// Source: transformers `CLIPEncoderLayer`, `CLIPAttention`, `CLIPMLP`.
pub fn clip_layer<'g>(s: &Scope<'g>, x: Value<'g>, mask: Option<Value<'g>>, c: &ClipLayers) -> Value<'g> {
    let normal = clip_norm(&s.at("layer_norm1"), x, c);
    let x = x + self_attention(&s.at("self_attn"), normal, mask, c);
    let h = linear(&s.at("mlp").at("fc1"), clip_norm(&s.at("layer_norm2"), x, c), c.inner);
    let h = match c.activation {
        ClipActivation::QuickGelu => h * (h * 1.702).sigmoid(),
        ClipActivation::Gelu => h.gelu(),
        // (1 + tanh u) / 2 = sigmoid(2u)
        ClipActivation::GeluTanh => h * ((h + h * h * h * 0.044_715) * GELU_TANH).sigmoid(),
    };
    x + linear(&s.at("mlp").at("fc2"), h, c.width)
}

/// Normalisation over the last axis with CLIP's epsilon.
pub fn clip_norm<'g>(s: &Scope<'g>, x: Value<'g>, c: &ClipLayers) -> Value<'g> {
    x.layer_norm(s.weight("weight", &[c.width]), s.weight("bias", &[c.width]), c.epsilon)
}

/// `[length, length]`: 0 where a position may look, which is at itself and before, and −10 000 elsewhere.
///
/// The difference of positions, limited and scaled: an addend that NVIDIA's compiler takes into its fused attention.
pub fn causal_mask<'g>(x: Value<'g>, length: &Dim) -> Value<'g> {
    let at = x.positions(length);
    (at.unsqueeze(&[1]) - at.unsqueeze(&[0])).clip(-1.0, 0.0) * 1e4
}

/// Queries are scaled before the product, and only the mask stands between the products and the softmax.
fn self_attention<'g>(s: &Scope<'g>, x: Value<'g>, mask: Option<Value<'g>>, c: &ClipLayers) -> Value<'g> {
    if c.heads == 0 || !c.width.is_multiple_of(c.heads) {
        s.refuse(format!("a width of {} cannot be divided into {} heads", c.width, c.heads));
        return x;
    }
    let head = c.width / c.heads;
    let scale = (1.0 / (head as f64).sqrt()) as f32;
    let split = |x: Value<'g>, perm: &[i64]| {
        x.reshape([x.dim(0), x.dim(1), Dim::fixed(c.heads), Dim::fixed(head)]).transpose(perm)
    };
    let q = split(linear(&s.at("q_proj"), x, c.width) * scale, &[0, 2, 1, 3]);
    let k = split(linear(&s.at("k_proj"), x, c.width), &[0, 2, 3, 1]);
    let v = split(linear(&s.at("v_proj"), x, c.width), &[0, 2, 1, 3]);
    let scores = q.matmul(k);
    let scores = mask.map_or(scores, |mask| scores + mask);
    let y = scores.softmax().matmul(v).transpose(&[0, 2, 1, 3]);
    linear(&s.at("out_proj"), y.reshape([x.dim(0), x.dim(1), Dim::fixed(c.width)]), c.width)
}
