//! `vldm::TemporalConv`: convolution over frames, and the residual block made of two of them.

use super::{mix, norm::clip_group_norm, to_clip, to_frames, with};
use crate::ir::{Dim, Function};
use crate::nn::{Frames, Scope, Value, function_body, linear};
use crate::ops::{Call, Conv, Transpose};

/// Operator type.
const NAME: &str = "TemporalConv";

/// Convolution of three taps over frames, zeros beyond the clip: `[b, t, c, p] → [b, t, out, p]`.
///
/// The weight is that of a 3-D convolution, `[out, c, 3, 1, 1]`, read as the 2-D one that engines run faster.
pub fn conv_over_frames<'g>(s: &Scope<'g>, x: Value<'g>, out: usize) -> Value<'g> {
    let width = x.size(2);
    let weight = s.weight_as("weight", &[&[out, width, 3, 1, 1]], &[out, width, 3, 1]);
    let bias = s.weight("bias", &[out]);
    let shape = with(&x.shape(), 2, Dim::fixed(out));
    x.call(Call::vldm(NAME, []), body, &[weight, bias], shape)
}

fn body() -> Function {
    let doc = "Convolution over the frames of clips [b, t, c, p] by taps [out, c, 3, 1], padded by one frame of zeros.";
    function_body(doc, &[], ["x", "weight", "bias"], |f, [x, weight, bias]| {
        let by_channel = f.emit(Transpose { perm: vec![0, 2, 1, 3] }, &[x]); // b c t p
        let y = f.emit(Conv::new(&[1, 1], &[1, 0]), &[by_channel, weight, bias]);
        f.emit(Transpose { perm: vec![0, 2, 1, 3] }, &[y])
    })
}

/// Residual block of two convolutions over frames, mixed with its input: `[(b t), C, H, W] → [(b t), C, H, W]`.
///
/// `emb` is the time embedding `[b, E]`, plus that of the frame rate; absent in autoencoders. Normalisation statistics
/// span the clip. Returns `α·x + (1 − α)·(x + h)` with one learned `α` (see [`mix`]).
///
/// Source: Blattmann et al. 2023, "Align your Latents", §3.1; `TemporalConv` of the reference cascade.
pub fn temporal_conv<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    emb: Option<Value<'g>>,
    frames: &Frames,
    groups: usize,
    epsilon: f32,
) -> Value<'g> {
    let clip = to_clip(x, frames);
    let h = two_convs(s, clip, emb, groups, epsilon);
    to_frames(mix(s, clip, h), x, frames)
}

/// Normalisation, activation and convolution over frames, twice, the time embedding between: `[b, t, c, p]`.
pub(super) fn two_convs<'g>(
    s: &Scope<'g>,
    clip: Value<'g>,
    emb: Option<Value<'g>>,
    groups: usize,
    epsilon: f32,
) -> Value<'g> {
    let width = clip.size(2);
    let h = clip_group_norm(&s.at("norm1"), clip, groups, epsilon).silu();
    let mut h = conv_over_frames(&s.at("conv1"), h, width);
    if let Some(emb) = emb {
        h = h + linear(&s.at("time_emb_proj"), emb.silu(), width).unsqueeze(&[1, 3]);
    }
    let h = clip_group_norm(&s.at("norm2"), h, groups, epsilon).silu();
    conv_over_frames(&s.at("conv2"), h, width)
}

/// Residual block of two convolutions over frames: `[(b t), C, H, W] → [(b t), C, H, W]`. With a time embedding the
/// first of them has five taps, without one three.
///
/// Source: LaVie `vsr/models/resnet.py`, `ResnetBlock3DCNN`, as `temporal_module.py` and `attention.py` make it.
pub fn resnet_over_frames<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    emb: Option<Value<'g>>,
    frames: &Frames,
    (groups, epsilon): (usize, f32),
) -> Value<'g> {
    let clip = to_clip(x, frames);
    let Some(emb) = emb else {
        return to_frames(clip + two_convs(s, clip, None, groups, epsilon), x, frames);
    };
    let h = clip_group_norm(&s.at("norm1"), clip, groups, epsilon).silu();
    let h = five_taps(&s.at("conv1"), h);
    let h = h + linear(&s.at("time_emb_proj"), emb.silu(), x.channels()).unsqueeze(&[1, 3]);
    let h = clip_group_norm(&s.at("norm2"), h, groups, epsilon).silu();
    to_frames(clip + conv_over_frames(&s.at("conv2"), h, x.channels()), x, frames)
}

/// [`conv_over_frames`] of five taps: `[b, t, c, p] → [b, t, c, p]`.
fn five_taps<'g>(s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
    let width = x.size(2);
    let weight = s.weight_as("weight", &[&[width, width, 5, 1, 1]], &[width, width, 5, 1]);
    let by_channel = x.transpose(&[0, 2, 1, 3]); // b c t p
    by_channel.conv(Conv::new(&[1, 1], &[2, 0]), weight, s.weight("bias", &[width])).transpose(&[0, 2, 1, 3])
}

/// Four convolutions over frames, added to their input: `[(b t), C, H, W] → [(b t), C, H, W]`.
///
/// Each is a normalisation whose statistics span the clip, SiLU and a convolution; names count the dropout between them
/// in all but the first: `conv1.{0,2}`, `conv2.{0,3}`.
///
/// Source: diffusers `TemporalConvLayer`, whose normalisations have PyTorch's epsilon 1e-5.
pub fn four_temporal_convs<'g>(s: &Scope<'g>, x: Value<'g>, frames: &Frames, groups: usize) -> Value<'g> {
    let clip = to_clip(x, frames);
    let mut h = clip;
    for (stage, conv) in [("conv1", 2), ("conv2", 3), ("conv3", 3), ("conv4", 3)] {
        let s = s.at(stage);
        h = conv_over_frames(&s.at(conv), clip_group_norm(&s.at(0), h, groups, 1e-5).silu(), x.channels());
    }
    to_frames(clip + h, x, frames)
}
