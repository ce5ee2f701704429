//! AnimateDiff's motion module: a temporal transformer that knows frames by a table of positions, over whole clips or
//! over windows of long ones.

use super::TemporalTransformerConfig;
use super::transformer::{around_blocks, attend_twice};
use crate::nn::{Frames, Scope, Value, feed_forward, layer_norm};

/// Windows of frames that attention over a long clip is split into; positions begin anew in each.
#[derive(Clone, Copy)]
pub struct FrameWindows<'g> {
    /// The frames of each window, `i64 [windows, length]`.
    pub frames: Value<'g>,
    /// By which the frames of all windows become those of the clip, `f32 [frames, windows · length]`.
    pub weights: Value<'g>,
}

impl<'g> FrameWindows<'g> {
    /// The windows as clips of their own: `[b, t, p, c] → [(b windows), length, p, c]`.
    fn split(&self, x: Value<'g>) -> Value<'g> {
        let (windows, length) = (self.frames.dim(0), self.frames.dim(1));
        x.gather_along(1, self.frames).reshape([x.dim(0) * windows, length, x.dim(2), x.dim(3)])
    }

    /// The clip again, each frame the weighted mean of what the windows make of it; `like` has its shape.
    fn merge(&self, x: Value<'g>, like: Value<'g>) -> Value<'g> {
        let row = like.dim(2) * like.dim(3);
        let flat = x.reshape_by(like, [like.dim(0), self.weights.dim(1), row]);
        self.weights.matmul(flat).reshape_by(like, like.shape().0)
    }
}

/// Transformer over the frames of every position, which are told apart by the table `pos_embed.pe` of `positions` rows:
/// `[(b t), C, H, W] → [(b t), C, H, W]`.
///
/// With `windows`, both attentions of a block run in each window and their results are merged before the feed-forward
/// layer; normalisations and projections around the blocks see the whole clip. Without, a clip has at most `positions`
/// frames, with them, a window.
///
/// Source: Guo et al. 2023, "AnimateDiff", §4.2; diffusers `AnimateDiffTransformer3D`; with windows Qiu et al. 2023,
/// "FreeNoise", §3.3, and diffusers `FreeNoiseTransformerBlock`.
pub fn motion_module<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    windows: Option<FrameWindows<'g>>,
    frames: &Frames,
    positions: usize,
    config: &TemporalTransformerConfig,
) -> Value<'g> {
    around_blocks(s, x, frames, config, |block, tokens| {
        let width = config.attention.width();
        let table = block.at("pos_embed").weight_as("pe", &[&[1, positions, width]], &[positions, width]);
        let attend = |clip: Value<'g>| {
            let rows = table.gather(tokens.indices(&clip.dim(1)));
            attend_twice(block, clip, Some(rows), config.attention)
        };
        let tokens = match windows {
            None => attend(tokens),
            Some(windows) => windows.merge(attend(windows.split(tokens)), tokens),
        };
        tokens + feed_forward(&block.at("ff"), layer_norm(&block.at("norm3"), tokens), 4)
    })
}
