//! Temporal attention that knows how far frames are apart: rotated queries and keys, and a learned bias by distance.

use super::attention::over_frames;
use super::transformer::{TemporalTransformerConfig, around_blocks};
use crate::ir::Dim;
use crate::nn::{AttentionConfig, Frames, Scope, Value, attend, feed_forward, layer_norm, linear, linear_without_bias};

/// Rows of the table of biases. Source: LaVie `RelativePositionBias`, `num_buckets`.
const BUCKETS: usize = 32;
/// Distance from which on all frames share a bucket. Source: LaVie `TemporalAttention`, `max_distance`.
const FARTHEST: usize = 32;
/// Channels of each head that are rotated. Source: LaVie `UNet3DConditionModel`, `RotaryEmbedding(32)`.
const ROTATED: usize = 32;

/// What the normalisation and the attention over frames are called.
#[derive(Debug, Clone, Copy)]
pub struct TemporalNames {
    /// The normalisation.
    pub norm: &'static str,
    /// The attention.
    pub attention: &'static str,
}

/// Self-attention over frames with its residual, inside a spatial transformer: `[(b t), p, C] → [(b t), p, C]`.
///
/// `relative` tells whether queries and keys are rotated by their frame and a bias is added by distance; without it
/// frames are told apart by nothing.
///
/// Source: LaVie `BasicTransformerBlock` (`norm_temp`, `attn_temp`).
pub fn attend_over_frames<'g>(
    s: &Scope<'g>,
    tokens: Value<'g>,
    frames: &Frames,
    config: AttentionConfig,
    relative: bool,
) -> Value<'g> {
    let names = TemporalNames { norm: "norm_temp", attention: "attn_temp" };
    attend_over_frames_named(s, names, tokens, frames, config, relative)
}

/// [`attend_over_frames`] of layers with other names.
pub fn attend_over_frames_named<'g>(
    s: &Scope<'g>,
    names: TemporalNames,
    tokens: Value<'g>,
    frames: &Frames,
    config: AttentionConfig,
    relative: bool,
) -> Value<'g> {
    let clip = [frames.batch.clone(), frames.frames.clone(), tokens.dim(1), tokens.dim(2)];
    let normal = layer_norm(&s.at(names.norm), tokens).reshape(clip);
    let s = s.at(names.attention);
    let out = if relative { relative_attention(&s, normal, frames, config) } else { over_frames(&s, normal, config) };
    tokens + out.reshape_by(tokens, tokens.shape().0)
}

/// Attention of every frame to the first one and the one before it: `[(b t), p, C] → [(b t), p, C]`. The first frame
/// sees itself twice.
///
/// Source: LaVie `interpolation/models/attention.py`, `SparseCausalAttention`.
pub fn attend_to_first_and_former<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    frames: &Frames,
    config: AttentionConfig,
) -> Value<'g> {
    let (positions, width) = (x.dim(1), Dim::fixed(config.width()));
    let [q, k, v] = ["to_q", "to_k", "to_v"].map(|name| linear_without_bias(&s.at(name), x, config.width()));
    let frame = x.positions(&frames.frames).unsqueeze(&[1]);
    let former = (frame - frame.scalar(1.0)).clip(0.0, f32::MAX);
    let seen = (frame * 0.0).concat(&[former], 1).to_i64(); // t 2
    let gather = |x: Value<'g>| {
        let clip = [frames.batch.clone(), frames.frames.clone(), positions.clone(), width.clone()];
        let both = x.reshape(clip).gather_along(1, seen); // b t 2 p c
        both.reshape([frames.total(), Dim::fixed(2) * positions.clone(), width.clone()])
    };
    linear(&s.at("to_out").at(0), attend(q, gather(k), gather(v), config), x.size(2))
}

/// `[b, t, p, C] → [b, t, p, C]`, scores `q̃·k̃ + bias[h, j − i]`.
fn relative_attention<'g>(s: &Scope<'g>, x: Value<'g>, frames: &Frames, config: AttentionConfig) -> Value<'g> {
    if !config.head_dim.is_multiple_of(2) || config.head_dim < ROTATED {
        s.refuse(format!("heads of width {} have no {ROTATED} channels to rotate", config.head_dim));
        return x;
    }
    let width = config.width();
    let heads = [x.dim(0), x.dim(1), x.dim(2), Dim::fixed(config.heads), Dim::fixed(config.head_dim)];
    let project = |name: &str| linear_without_bias(&s.at(name), x, width).reshape(heads.clone());
    let (cos, sin) = rotations(x, &frames.frames, config.head_dim);
    let arrange = |x: Value<'g>, perm: &[i64]| x.transpose(perm);
    let q = arrange(rotate(project("to_q") * config.scale(), cos, sin), &[0, 2, 3, 1, 4]); // b p h t d
    let k = arrange(rotate(project("to_k"), cos, sin), &[0, 2, 3, 4, 1]);
    let v = arrange(project("to_v"), &[0, 2, 3, 1, 4]);
    let scores = q.matmul(k) + bias(&s.at("time_rel_pos_bias"), x, &frames.frames, config.heads);
    let y = scores.softmax().matmul(v).transpose(&[0, 3, 1, 2, 4]);
    linear(&s.at("to_out").at(0), y.reshape_by(x, x.shape().0), width)
}

/// Cosines and sines of the frames' angles, `[t, 1, 1, head_dim]`; channels beyond the rotated have the angle 0.
///
/// Source: rotary-embedding-torch, `RotaryEmbedding` with `theta` 10 000.
fn rotations<'g>(x: Value<'g>, frames: &Dim, head_dim: usize) -> (Value<'g>, Value<'g>) {
    let rate = |channel: usize| {
        let pair = channel / 2 * 2;
        if channel < ROTATED { 10_000f64.powf(-(pair as f64) / ROTATED as f64) as f32 } else { 0.0 }
    };
    let rates: Vec<f32> = (0..head_dim).map(rate).collect();
    let angles = x.positions(frames).unsqueeze(&[1, 2, 3]) * x.vector(&rates);
    (angles.cos(), angles.sin())
}

/// `x·cos + x⊥·sin` with `x⊥ = (−x₁, x₀)` of each pair of channels: `[b, t, p, h, d] → [b, t, p, h, d]`.
fn rotate<'g>(x: Value<'g>, cos: Value<'g>, sin: Value<'g>) -> Value<'g> {
    let mut pairs = x.shape().0;
    let half = Dim::fixed(x.size(4) / 2);
    pairs.truncate(4);
    pairs.extend([half, Dim::fixed(2)]);
    let [even, odd] = x.reshape(pairs).split(5);
    let turned = (odd * -1.0).concat(&[even], 5).reshape_by(x, x.shape().0);
    x * cos + turned * sin
}

/// The bias of every head and pair of frames, `[heads, t, t]`: row `bucket(j − i)` of the table.
fn bias<'g>(s: &Scope<'g>, x: Value<'g>, frames: &Dim, heads: usize) -> Value<'g> {
    let farthest = FARTHEST as i64 - 1;
    let buckets: Vec<i64> = (-farthest..=farthest).map(bucket).collect();
    let position = x.positions(frames);
    let distance = position.unsqueeze(&[0]) - position.unsqueeze(&[1]); // [i, j] = j − i
    let column = distance.clip(-farthest as f32, farthest as f32) + farthest as f32;
    let rows = x.ints(&buckets).gather(column.to_i64());
    let table = s.at("relative_attention_bias").weight("weight", &[BUCKETS, heads]);
    table.gather(rows).transpose(&[2, 0, 1])
}

/// The bucket of a distance `key − query`: the second half for keys that come later, in each half eight distances of
/// their own and then wider and wider ones.
///
/// Source: LaVie `RelativePositionBias._relative_position_bucket`, after T5.
fn bucket(distance: i64) -> i64 {
    let half = BUCKETS as i64 / 2;
    let exact = half / 2;
    let later = if distance > 0 { half } else { 0 };
    let n = distance.abs();
    if n < exact {
        return later + n;
    }
    let spread = (n as f64 / exact as f64).ln() / (FARTHEST as f64 / exact as f64).ln();
    later + (exact + (spread * (half - exact) as f64) as i64).min(half - 1)
}

/// Transformer over frames whose attentions know the distance of frames by tables for keys and for values:
/// `[(b t), C, H, W] → [(b t), C, H, W]`. Distances beyond `length` are alike.
///
/// Source: VideoCrafter `lvdm/modules/attention.py`, `TemporalTransformer` with `use_relative_position`.
pub fn relative_temporal_transformer<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    frames: &Frames,
    config: &TemporalTransformerConfig,
    length: usize,
) -> Value<'g> {
    around_blocks(s, x, frames, config, |block, mut tokens| {
        for (norm, layer) in [("norm1", "attn1"), ("norm2", "attn2")] {
            let normal = layer_norm(&block.at(norm), tokens);
            tokens = tokens + attention_by_tables(&block.at(layer), normal, frames, config.attention, length);
        }
        tokens + feed_forward(&block.at("ff"), layer_norm(&block.at("norm3"), tokens), 4)
    })
}

/// `[b, t, p, C] → [b, t, p, C]` with scores `q·(k + K[j − i])` and results `Σ w·(v + V[j − i])`.
///
/// Source: VideoCrafter `CrossAttention.forward`, `RelativePosition`.
fn attention_by_tables<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    frames: &Frames,
    config: AttentionConfig,
    length: usize,
) -> Value<'g> {
    let heads = [x.dim(0), x.dim(1), x.dim(2), Dim::fixed(config.heads), Dim::fixed(config.head_dim)];
    let project = |name: &str| linear_without_bias(&s.at(name), x, config.width()).reshape_by(x, heads.clone()); // b t p h d
    let position = x.positions(&frames.frames);
    let distance = position.unsqueeze(&[0]) - position.unsqueeze(&[1]); // [i, j] = j − i
    let rows = (distance.clip(-(length as f32), length as f32) + length as f32).to_i64();
    let table = |name: &str| {
        let table = s.at(name).weight("embeddings_table", &[2 * length + 1, config.head_dim]);
        table.gather(rows) // t t d
    };
    let q = project("to_q") * config.scale();
    let keys = project("to_k").transpose(&[0, 2, 3, 4, 1]);
    let scores = q.transpose(&[0, 2, 3, 1, 4]).matmul(keys); // b p h t t
    let by_frame = |x: Value<'g>| x.reshape([x.dim(0), x.dim(1) * x.dim(2) * x.dim(3), x.dim(4)]); // t (b p h) d
    let split = |y: Value<'g>, last: Dim| {
        let [b, p, h] = [heads[0].clone(), heads[2].clone(), heads[3].clone()];
        y.reshape_by(x, [frames.frames.clone(), b, p, h, last]) // t b p h …
    };
    let more = by_frame(q.transpose(&[1, 0, 2, 3, 4])).matmul(table("relative_position_k").transpose(&[0, 2, 1]));
    let more = split(more, frames.frames.clone()).transpose(&[1, 2, 3, 0, 4]);
    let weights = (scores + more).softmax();
    let values = project("to_v").transpose(&[0, 2, 3, 1, 4]);
    let y = weights.matmul(values).transpose(&[0, 3, 1, 2, 4]); // b t p h d
    let more = by_frame(weights.transpose(&[3, 0, 1, 2, 4])).matmul(table("relative_position_v"));
    let more = split(more, heads[4].clone()).transpose(&[1, 0, 2, 3, 4]);
    let y =
        (y + more).reshape_by(x, [heads[0].clone(), heads[1].clone(), heads[2].clone(), Dim::fixed(config.width())]);
    linear(&s.at("to_out").at(0), y, x.size(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_the_buckets_of_the_reference() {
        // Source: LaVie `RelativePositionBias._relative_position_bucket(rel, 32, 32)`, run in PyTorch.
        let later = [17, 18, 19, 20, 21, 22, 23, 24, 24, 25, 25, 26, 26, 27, 27, 28, 28, 28, 28, 29];
        assert_eq!((1..=20).map(bucket).collect::<Vec<_>>(), later);
        let earlier = [0, 7, 8, 9, 12, 13, 14, 15, 15];
        assert_eq!([0, -7, -9, -10, -16, -20, -24, -28, -31].map(bucket), earlier);
        assert_eq!((bucket(100), bucket(-100)), (31, 15));
    }
}
