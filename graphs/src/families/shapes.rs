//! Axes of images and clips, as the ports of all parts have them.

use crate::ir::Dim;
use crate::nn::{BuildError, Frames, Value};

/// `[batch, channels, height, width]`
pub(super) fn image_shape(channels: usize) -> [Dim; 4] {
    ["batch".into(), channels.into(), "height".into(), "width".into()]
}

/// `[batch, frames, channels, height, width]`
pub(super) fn clip_shape(channels: usize) -> [Dim; 5] {
    ["batch".into(), "frames".into(), channels.into(), "height".into(), "width".into()]
}

/// The frames of [`clip_shape`].
pub(super) fn clip_frames() -> Frames {
    Frames { batch: "batch".into(), frames: "frames".into() }
}

/// `b t c h w → (b t) c h w`
pub(super) fn flatten<'g>(x: Value<'g>, frames: &Frames) -> Value<'g> {
    x.reshape([frames.total(), x.dim(2), x.dim(3), x.dim(4)])
}

/// `(b t) c h w → b t c h w`
pub(super) fn unflatten<'g>(x: Value<'g>, frames: &Frames) -> Value<'g> {
    x.reshape([frames.batch.clone(), frames.frames.clone(), x.dim(1), x.dim(2), x.dim(3)])
}

/// The error of a part that a model does not have.
pub(super) fn no_part(name: &str, parts: &[&str]) -> BuildError {
    let what = format!("the checkpoint has no part of this name, only {}", parts.join(", "));
    BuildError::Config { path: name.to_owned(), what }
}
