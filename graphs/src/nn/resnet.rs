//! Residual blocks and changes of resolution.

use super::{Scope, Value, conv2d, conv2d_strided, group_norm, linear};
use crate::ir::Dim;
use crate::ops::Conv;

/// How many frames each sample has: spatial layers see `(b t) c h w`, b slow, t fast.
#[derive(Debug, Clone)]
pub struct Frames {
    /// Samples `b`.
    pub batch: Dim,
    /// Frames `t` of each; 1 for images.
    pub frames: Dim,
}

impl Frames {
    /// Single images.
    pub fn image(batch: Dim) -> Self {
        Self { batch, frames: Dim::fixed(1) }
    }

    /// `b·t`
    pub fn total(&self) -> Dim {
        self.batch.clone() * self.frames.clone()
    }

    /// A row a sample to a row a frame: `[b, C] → [(b t), C]`.
    pub fn repeat<'g>(&self, x: Value<'g>) -> Value<'g> {
        if self.frames.as_fixed() == Some(1) {
            return x;
        }
        let width = x.dim(1);
        let wide = x.unsqueeze(&[1]).expand([self.batch.clone(), self.frames.clone(), width.clone()]);
        wide.reshape([self.total(), width])
    }
}

/// Residual block: `[(b t), C, H, W] → [(b t), out, H, W]`.
///
/// `emb` is the time embedding `[b, E]`, absent in autoencoders. A 1x1 `conv_shortcut` is read when the width changes.
///
/// Source: diffusers `ResnetBlock2D`; `ResBlock` of Rombach et al. 2022.
pub fn resnet_block<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    emb: Option<(Value<'g>, &Frames)>,
    out: usize,
    groups: usize,
    epsilon: f32,
) -> Value<'g> {
    resnet_block_with(s, x, emb, out, |s, x| group_norm(s, x, groups, epsilon))
}

/// [`resnet_block`] with other normalisations.
pub fn resnet_block_with<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    emb: Option<(Value<'g>, &Frames)>,
    out: usize,
    norm: impl Fn(&Scope<'g>, Value<'g>) -> Value<'g>,
) -> Value<'g> {
    let h = norm(&s.at("norm1"), x).silu();
    let mut h = conv2d(&s.at("conv1"), h, out, 3);
    if let Some((emb, frames)) = emb {
        let e = linear(&s.at("time_emb_proj"), emb.silu(), out);
        h = h + frames.repeat(e).unsqueeze(&[2, 3]);
    }
    let h = norm(&s.at("norm2"), h).silu();
    let h = conv2d(&s.at("conv2"), h, out, 3);
    let skip = if x.channels() == out { x } else { conv2d(&s.at("conv_shortcut"), x, out, 1) };
    skip + h
}

/// Half the size by a 3x3 convolution: `[N, C, H, W] → [N, C, ⌈H/2⌉, ⌈W/2⌉]`.
///
/// An autoencoder pads only below and to the right (`padding` 0), which gives `⌊H/2⌋`.
///
/// Source: diffusers `Downsample2D`.
pub fn downsample<'g>(s: &Scope<'g>, x: Value<'g>, padding: usize) -> Value<'g> {
    let mut conv = Conv::new(&[2, 2], &[1, 1]);
    if padding == 0 {
        conv.pads = vec![0, 0, 1, 1];
    }
    conv2d_strided(&s.at("conv"), x, x.channels(), 3, conv)
}

/// Larger by nearest neighbour, then a 3x3 convolution: `[N, C, h, w] → [N, C, height, width]`.
///
/// The target size may be that of the tensor `like`, which a UNet joins next.
///
/// Source: diffusers `Upsample2D`, `output_size` included.
pub fn upsample_to<'g>(s: &Scope<'g>, x: Value<'g>, like: Value<'g>, height: &Dim, width: &Dim) -> Value<'g> {
    conv2d(&s.at("conv"), x.resize(like, height, width), x.channels(), 3)
}
