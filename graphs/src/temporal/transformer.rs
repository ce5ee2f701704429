//! The temporal transformer without a blend: blocks of self-attention over the frames of every position, with a residual.

use super::attention::over_frames;
use super::norm::clip_group_norm;
use super::{to_clip, to_frames};
use crate::nn::{AttentionConfig, Frames, Scope, Value, feed_forward, layer_norm, linear};

/// Shape of a temporal transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemporalTransformerConfig {
    /// Attention of every block; its width need not be that of the layer's input.
    pub attention: AttentionConfig,
    /// Blocks.
    pub layers: usize,
    /// Groups of the first normalisation, whose statistics span the clip.
    pub groups: usize,
}

/// Transformer over the frames of every position: `[(b t), C, H, W] → [(b t), C, H, W]`.
///
/// `positions` `[t, width]` is added to what each attention sees; absent where frames are told apart by
/// convolutions alone.
///
/// Source: diffusers `TransformerTemporalModel`, `AnimateDiffTransformer3D`.
pub fn temporal_transformer<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    positions: Option<Value<'g>>,
    frames: &Frames,
    config: &TemporalTransformerConfig,
) -> Value<'g> {
    around_blocks(s, x, frames, config, |block, tokens| {
        let tokens = attend_twice(block, tokens, positions, config.attention);
        tokens + feed_forward(&block.at("ff"), layer_norm(&block.at("norm3"), tokens), 4)
    })
}

/// What stands around the blocks: normalisation, projections, residual. `block(scope, tokens)` draws one block over
/// tokens `[b, t, p, width]`.
pub(crate) fn around_blocks<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    frames: &Frames,
    config: &TemporalTransformerConfig,
    block: impl Fn(&Scope<'g>, Value<'g>) -> Value<'g>,
) -> Value<'g> {
    let clip = to_clip(x, frames);
    let h = clip_group_norm(&s.at("norm"), clip, config.groups, 1e-6).transpose(&[0, 1, 3, 2]);
    let mut tokens = linear(&s.at("proj_in"), h, config.attention.width());
    for i in 0..config.layers {
        tokens = block(&s.at("transformer_blocks").at(i), tokens);
    }
    let out = linear(&s.at("proj_out"), tokens, x.channels()).transpose(&[0, 1, 3, 2]);
    to_frames(clip + out, x, frames)
}

/// The two self-attentions of a block, each with its residual: `[b, t, p, width] → [b, t, p, width]`.
///
/// `positions` `[t, width]` is added to what each attention sees, never to what the residual carries.
///
/// Source: diffusers `BasicTransformerBlock` with `double_self_attention`.
pub(crate) fn attend_twice<'g>(
    s: &Scope<'g>,
    tokens: Value<'g>,
    positions: Option<Value<'g>>,
    attention: AttentionConfig,
) -> Value<'g> {
    let attend = |norm: &str, layer: &str, tokens: Value<'g>| {
        let normal = layer_norm(&s.at(norm), tokens);
        let placed = positions.map_or(normal, |table| normal + table.unsqueeze(&[1]));
        tokens + over_frames(&s.at(layer), placed, attention)
    };
    let tokens = attend("norm1", "attn1", tokens);
    attend("norm2", "attn2", tokens)
}
