//! The temporal halves of spatio-temporal layers, as in Stable Video Diffusion: a residual block after a residual block
//! of single frames, and transformer blocks between the blocks of a spatial transformer.

use super::attention::{over_frames, to_text};
use super::conv::two_convs;
use super::{MixFactor, mix, mix_by, to_clip, to_frames};
use crate::ir::Dim;
use crate::nn::{
    AttentionConfig, Frames, Scope, Value, conv2d, feed_forward, layer_norm, linear, sinusoidal_embedding,
};

/// Inner over outer width of every feed-forward layer and of the embedding of positions.
///
/// Source: diffusers `FeedForward` (`mult`), `TransformerSpatioTemporalModel` (`time_embed_dim`).
const MULT: usize = 4;

/// Normalisation and mixture of a temporal residual block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemporalResnetConfig {
    /// Groups of both normalisations.
    pub groups: usize,
    /// Their epsilon.
    pub epsilon: f32,
    /// What the mixing factor is the weight of.
    pub factor: MixFactor,
}

/// Mixes the result `x` of a spatial residual block with the temporal one that follows it:
/// `[(b t), C, H, W] → [(b t), C, H, W]`.
///
/// `s` is the layer (`….resnets.0`), which has `temporal_res_block` and `time_mixer`; `emb` is the time embedding
/// `[b, E]`, absent in autoencoders.
///
/// Source: diffusers `SpatioTemporalResBlock`, `TemporalResnetBlock`.
pub fn temporal_resnet<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    emb: Option<Value<'g>>,
    frames: &Frames,
    config: TemporalResnetConfig,
) -> Value<'g> {
    let clip = to_clip(x, frames);
    let h = two_convs(&s.at("temporal_res_block"), clip, emb, config.groups, config.epsilon);
    to_frames(mix_by(&s.at("time_mixer"), clip, h, config.factor), x, frames)
}

/// The temporal blocks of one spatio-temporal transformer, called after each of its spatial blocks.
pub struct TemporalBlocks<'a, 'g> {
    /// The transformer (`….attentions.0`), which has `temporal_transformer_blocks`, `time_pos_embed` and `time_mixer`.
    pub scope: Scope<'g>,
    /// The clip.
    pub frames: &'a Frames,
    /// Attention of every block; its width is that of the tokens.
    pub attention: AttentionConfig,
    /// What cross-attention sees, `[b, L, D]`, the same for all frames of a sample; without it there is none.
    pub text: Option<Value<'g>>,
    /// Known frames, encoded for this level, `[(b t), C', H, W]`; `cond_proj` brings them to the tokens' width.
    pub known: Option<Value<'g>>,
}

impl<'g> TemporalBlocks<'_, 'g> {
    /// Mixes the tokens of spatial block `i` with what temporal block `i` makes of them: `[(b t), p, C]`.
    ///
    /// Source: diffusers `TransformerSpatioTemporalModel`.
    pub fn after(&self, i: usize, tokens: Value<'g>) -> Value<'g> {
        let (frames, width) = (self.frames, tokens.size(2));
        let clip = [frames.batch.clone(), frames.frames.clone(), tokens.dim(1), Dim::fixed(width)];
        let spatial = tokens.reshape(clip);
        let mut seen = spatial + self.positions(spatial, width).unsqueeze(&[1]);
        if let Some(known) = self.known {
            let known = conv2d(&self.scope.at("cond_proj"), known, width, 1);
            seen = seen + to_clip(known, frames).transpose(&[0, 1, 3, 2]);
        }
        let temporal = self.block(&self.scope.at("temporal_transformer_blocks").at(i), seen);
        let mixed = mix(&self.scope.at("time_mixer"), spatial, temporal - spatial);
        mixed.reshape_by(tokens, tokens.shape().0)
    }

    /// The learned embedding of the frames' positions in the clip: `[t, C]`.
    fn positions(&self, like: Value<'g>, width: usize) -> Value<'g> {
        let s = self.scope.at("time_pos_embed");
        let waves = sinusoidal_embedding(like.positions(&self.frames.frames), width, true, 0.0);
        let inner = linear(&s.at("linear_1"), waves, MULT * width).silu();
        linear(&s.at("linear_2"), inner, width)
    }

    /// `[b, t, p, C] → [b, t, p, C]`
    ///
    /// Source: diffusers `TemporalBasicTransformerBlock`.
    fn block(&self, s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        let x = x + feed_forward(&s.at("ff_in"), layer_norm(&s.at("norm_in"), x), MULT);
        let mut x = x + over_frames(&s.at("attn1"), layer_norm(&s.at("norm1"), x), self.attention);
        if let Some(text) = self.text {
            let normal = layer_norm(&s.at("norm2"), x);
            x = x + to_text(&s.at("attn2"), normal, text, self.frames, self.attention);
        }
        x + feed_forward(&s.at("ff"), layer_norm(&s.at("norm3"), x), MULT)
    }
}
