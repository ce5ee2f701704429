//! Temporal layers: what turns an image network into a video network.
//!
//! A spatial layer sees frames, `(b t) c h w`, b slow, t fast. A temporal layer sees the clip of each sample. Here clips
//! are `[b, t, c, p]` with `p = h·w`: the same memory, so that no transpose stands between the two. The operators of
//! domain `vldm` work in that layout; their function bodies, in standard operators, transpose where they must.

mod attention;
mod context;
mod conv;
mod mix;
mod motion;
mod norm;
mod relative;
mod spatio_temporal;
mod transformer;

pub use attention::{TEMPORAL_ATTENTION, TemporalAttentionConfig, temporal_attention};
pub use context::{ContextLevels, context_encoder};
pub use conv::{conv_over_frames, four_temporal_convs, resnet_over_frames, temporal_conv};
pub use mix::{MixFactor, mix, mix_by};
pub use motion::{FrameWindows, motion_module};
pub use norm::clip_norm;
pub(crate) use norm::normalise_clips;
pub use relative::{
    TemporalNames, attend_over_frames, attend_over_frames_named, attend_to_first_and_former,
    relative_temporal_transformer,
};
pub use spatio_temporal::{TemporalBlocks, TemporalResnetConfig, temporal_resnet};
pub use transformer::{TemporalTransformerConfig, temporal_transformer};

use crate::ir::{Dim, Shape};
use crate::nn::{Frames, Value};

/// `(b t) c h w → b t c p`, no data moved.
pub(crate) fn to_clip<'g>(x: Value<'g>, frames: &Frames) -> Value<'g> {
    let positions = x.dim(2) * x.dim(3);
    x.reshape([frames.batch.clone(), frames.frames.clone(), x.dim(1), positions])
}

/// `b t c p → (b t) c h w`, no data moved; `like` has the height and width.
pub(crate) fn to_frames<'g>(x: Value<'g>, like: Value<'g>, frames: &Frames) -> Value<'g> {
    x.reshape_by(like, [frames.total(), x.dim(2), like.dim(2), like.dim(3)])
}

/// Shape with another size at `axis`.
fn with(shape: &Shape, axis: usize, dim: Dim) -> Shape {
    let mut shape = shape.clone();
    if let Some(d) = shape.0.get_mut(axis) {
        *d = dim;
    }
    shape
}
