//! `vldm::ClipGroupNorm`: group normalisation whose statistics span all frames of a clip.

use super::{to_clip, to_frames};
use crate::fused::{CLIP_GROUP_NORM, group_norm};
use crate::ir::{Function, Initializer, ValueId};
use crate::nn::{Body, Frames, Scope, Value};
use crate::ops::{Attr, BinaryKind, Call, ConstantOfShape, InstanceNormalization, Reshape, ShapeOf, Transpose};

/// Operator type.
const NAME: &str = CLIP_GROUP_NORM;

/// `clip_group_norm` of frames: `[(b t), C, H, W] → [(b t), C, H, W]`.
pub fn clip_norm<'g>(s: &Scope<'g>, x: Value<'g>, frames: &Frames, groups: usize, epsilon: f32) -> Value<'g> {
    to_frames(clip_group_norm(s, to_clip(x, frames), groups, epsilon), x, frames)
}

/// `[b, t, c, p] → [b, t, c, p]` with statistics over `(c/groups, t, p)` of each sample and group.
pub(super) fn clip_group_norm<'g>(s: &Scope<'g>, x: Value<'g>, groups: usize, epsilon: f32) -> Value<'g> {
    let channels = x.size(2);
    if groups == 0 || !channels.is_multiple_of(groups) {
        s.refuse(format!("{channels} channels cannot be divided into {groups} groups"));
        return x;
    }
    let call = Call::vldm(NAME, [("groups", Attr::Int(groups as i64)), ("epsilon", Attr::Float(epsilon))]);
    let (weight, bias) = (s.weight("weight", &[channels]), s.weight("bias", &[channels]));
    x.call(call, body, &[weight, bias], x.shape())
}

fn body() -> Function {
    group_norm(NAME)
}

/// The body of [`NAME`], with the call's attributes `groups` and `epsilon`.
pub(crate) fn normalise_clips(f: &mut Body, [x, scale, bias]: [ValueId; 3]) -> ValueId {
    let by_channel = f.emit(Transpose { perm: vec![0, 2, 1, 3] }, &[x]); // b c t p
    let groups = f.int_attribute("groups");
    let (keep, rest) = (f.ints(&[0]), f.ints(&[-1]));
    let grouped = f.emit(crate::ops::Concat { axis: 0 }, &[keep, groups, rest]);
    let flat = f.emit(Reshape, &[by_channel, grouped]);
    let one = ConstantOfShape { value: Initializer::from_f32(&[1], &[1.0]) };
    let zero = ConstantOfShape { value: Initializer::from_f32(&[1], &[0.0]) };
    let (ones, zeros) = (f.emit(one, &[groups]), f.emit(zero, &[groups]));
    let norm = InstanceNormalization { epsilon: 1e-5 };
    let normal = f.emit_with(norm, &[flat, ones, zeros], &[("epsilon", "epsilon")]);
    let shape = f.emit(ShapeOf { start: 0, end: None }, &[by_channel]);
    let normal = f.emit(Reshape, &[normal, shape]);
    let per_channel = f.ints(&[-1, 1, 1]);
    let mut column = |v: ValueId| f.emit(Reshape, &[v, per_channel]);
    let (scale, bias) = (column(scale), column(bias));
    let scaled = f.emit(BinaryKind::Mul, &[normal, scale]);
    let shifted = f.emit(BinaryKind::Add, &[scaled, bias]);
    f.emit(Transpose { perm: vec![0, 2, 1, 3] }, &[shifted])
}
