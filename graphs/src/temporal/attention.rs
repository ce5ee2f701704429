//! `vldm::TemporalAttention`: attention over the frames of every position, and the transformer around it.

use super::{mix, norm::clip_group_norm, to_clip, to_frames};
use crate::ir::{Dim, Function, ValueId};
use crate::nn::{
    AttentionConfig, Frames, Scope, Value, attention, conv2d, feed_forward, function_body, layer_norm, linear,
    linear_without_bias,
};
use crate::ops::{Attr, BinaryKind, Call, Concat, MatMul, Reshape, Softmax, Transpose};

/// Operator type of attention over frames: `q`, `k`, `v` `[b, t, p, c] → [b, t, p, c]`, attributes `heads` and `scale`.
pub const TEMPORAL_ATTENTION: &str = "TemporalAttention";

/// Shape of a temporal attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemporalAttentionConfig {
    /// Width of each head.
    pub head_dim: usize,
    /// Inner width of the feed-forward layer over its outer width.
    pub ff_mult: usize,
    /// Groups of the first normalisation.
    pub groups: usize,
}

/// Transformer over the frames of every position, mixed with its input: `[(b t), C, H, W] → [(b t), C, H, W]`.
///
/// `context` is the encoded context of this level, `text` `[b, L, D]` what the temporal cross-attention sees.
/// Positions are absolute within the clip, sine in even and cosine in odd channels.
///
/// Source: Blattmann et al. 2023, "Align your Latents", §3.1 and §3.2; `TemporalAttention` of the reference cascade.
pub fn temporal_attention<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    context: Option<Value<'g>>,
    text: Option<Value<'g>>,
    frames: &Frames,
    config: &TemporalAttentionConfig,
) -> Value<'g> {
    let width = x.channels();
    if config.head_dim == 0 || !width.is_multiple_of(config.head_dim) {
        s.refuse(format!("{width} channels cannot be divided into heads of {}", config.head_dim));
        return x;
    }
    let clip = to_clip(x, frames);
    let mut h = clip_group_norm(&s.at("norm"), clip, config.groups, 1e-6);
    if let Some(context) = context {
        h = h + to_clip(conv2d(&s.at("cond_proj"), context, width, 1), frames);
    }
    let tokens = linear(&s.at("proj_in"), h.transpose(&[0, 1, 3, 2]), width); // b t p c
    let mut tokens = tokens + frame_positions(tokens, &frames.frames).unsqueeze(&[1]);
    let heads = AttentionConfig { heads: width / config.head_dim, head_dim: config.head_dim, bias: false };
    let block = s.at("transformer_blocks").at(0);
    let normal = layer_norm(&block.at("norm1"), tokens);
    tokens = tokens + over_frames(&block.at("attn1"), normal, heads);
    if let Some(text) = text {
        let normal = layer_norm(&block.at("norm2"), tokens);
        tokens = tokens + to_text(&block.at("attn2"), normal, text, frames, heads);
    }
    tokens = tokens + feed_forward(&block.at("ff"), layer_norm(&block.at("norm3"), tokens), config.ff_mult);
    let out = linear(&s.at("proj_out"), tokens, width).transpose(&[0, 1, 3, 2]);
    to_frames(mix(s, clip, out), x, frames)
}

/// `[t, C]`: `sin(t·ω)` in even, `cos(t·ω)` in odd channels, `ω = 10 000^(−2k/C)`.
fn frame_positions<'g>(tokens: Value<'g>, frames: &Dim) -> Value<'g> {
    let width = tokens.size(3);
    let rate = |k: usize| (-(10_000f64.ln()) * 2.0 * k as f64 / width as f64).exp() as f32;
    let rates: Vec<f32> = (0..width / 2).map(rate).collect();
    let angles = tokens.positions(frames).unsqueeze(&[1]) * tokens.vector(&rates);
    let pairs = angles.sin().unsqueeze(&[2]).concat(&[angles.cos().unsqueeze(&[2])], 2);
    pairs.reshape([frames.clone(), Dim::fixed(width)])
}

/// Cross-attention to the text, which is the same for every frame and position of a sample.
pub(super) fn to_text<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    text: Value<'g>,
    frames: &Frames,
    config: AttentionConfig,
) -> Value<'g> {
    let flat = x.reshape([x.dim(0), frames.frames.clone() * x.dim(2), x.dim(3)]);
    attention(s, flat, text, config).reshape_by(x, x.shape().0)
}

/// Self-attention over frames: `[b, t, p, c] → [b, t, p, c]`.
///
/// A single head is no axis: NVIDIA's compiler fails on the five axes of [`body`] when that of the heads is 1
/// (`docs/tensorrt.md`).
pub(super) fn over_frames<'g>(s: &Scope<'g>, x: Value<'g>, config: AttentionConfig) -> Value<'g> {
    let width = config.heads * config.head_dim;
    let [q, k, v] = ["to_q", "to_k", "to_v"].map(|name| linear_without_bias(&s.at(name), x, width));
    let call = Call::vldm(
        TEMPORAL_ATTENTION,
        [("heads", Attr::Int(config.heads as i64)), ("scale", Attr::Float(config.scale()))],
    );
    let y = match config.heads {
        1 => with_one_head(q, k, v, config.scale()),
        _ => q.call(call, body, &[k, v], q.shape()),
    };
    linear(&s.at("to_out").at(0), y, x.size(3))
}

/// What [`body`] computes, for one head.
fn with_one_head<'g>(q: Value<'g>, k: Value<'g>, v: Value<'g>, scale: f32) -> Value<'g> {
    let scores = (q * scale).transpose(&[0, 2, 1, 3]).matmul(k.transpose(&[0, 2, 3, 1])); // b p t t
    scores.softmax().matmul(v.transpose(&[0, 2, 1, 3])).transpose(&[0, 2, 1, 3])
}

/// The form that NVIDIA's compiler makes one strided attention kernel of, without a copy: heads split off late, one
/// transpose for each operand, products over five axes.
fn body() -> Function {
    let doc = "softmax(scale * q k') v over the frames of every sample, position and head; q, k, v are [b, t, p, c].";
    function_body(doc, &["heads", "scale"], ["q", "k", "v"], |f, [q, k, v]| {
        let (keep, heads, rest) = (f.ints(&[0, 0, 0]), f.int_attribute("heads"), f.ints(&[-1]));
        let split = f.emit(Concat { axis: 0 }, &[keep, heads, rest]);
        let scale = f.float_attribute("scale");
        let q = f.emit(BinaryKind::Mul, &[q, scale]);
        let mut arrange = |x: ValueId, perm: &[i64]| {
            let x = f.emit(Reshape, &[x, split]); // b t p h d
            f.emit(Transpose { perm: perm.to_vec() }, &[x])
        };
        let (q, k, v) = (arrange(q, &[0, 2, 3, 1, 4]), arrange(k, &[0, 2, 3, 4, 1]), arrange(v, &[0, 2, 3, 1, 4]));
        let scores = f.emit(MatMul, &[q, k]);
        let weights = f.emit(Softmax { axis: -1 }, &[scores]);
        let y = f.emit(MatMul, &[weights, v]); // b p h t d
        let y = f.emit(Transpose { perm: vec![0, 3, 1, 2, 4] }, &[y]);
        let join = f.ints(&[0, 0, 0, -1]);
        f.emit(Reshape, &[y, join])
    })
}
