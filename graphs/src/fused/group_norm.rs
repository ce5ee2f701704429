//! `vldm::GroupNorm` and its kin: group normalisation of images or clips, with or without the SiLU that follows it.

use crate::ir::{Function, Initializer, ValueId};
use crate::nn::{Body, function_body};
use crate::ops::{BinaryKind, Concat, ConstantOfShape, InstanceNormalization, Reshape, ShapeOf, UnaryKind};
use crate::temporal::normalise_clips;

/// Images `[n, c, h, w]`; scale and bias are `[c, 1, 1]`.
pub const GROUP_NORM: &str = "GroupNorm";
/// [`GROUP_NORM`], then `x · sigmoid(x)`.
pub const GROUP_NORM_SILU: &str = "GroupNormSilu";
/// Clips `[b, t, c, p]`, statistics over frames as well; scale and bias are `[c]`.
pub const CLIP_GROUP_NORM: &str = "ClipGroupNorm";
/// [`CLIP_GROUP_NORM`], then `x · sigmoid(x)`.
pub const CLIP_GROUP_NORM_SILU: &str = "ClipGroupNormSilu";

/// The function of one of these names; its attributes are `groups` and `epsilon`.
pub fn group_norm(name: &str) -> Function {
    let clips = name == CLIP_GROUP_NORM || name == CLIP_GROUP_NORM_SILU;
    let silu = name == GROUP_NORM_SILU || name == CLIP_GROUP_NORM_SILU;
    let what = if clips { "clips [b, t, c, p]; statistics over (c/groups, t, p)" } else { "images [n, c, h, w]" };
    let doc = format!("Group normalisation of {what}{}.", if silu { ", then x sigmoid(x)" } else { "" });
    function_body(&doc, &["groups", "epsilon"], ["x", "scale", "bias"], |f, operands| {
        let y = if clips { normalise_clips(f, operands) } else { normalise_images(f, operands) };
        if !silu {
            return y;
        }
        let gate = f.emit(UnaryKind::Sigmoid, &[y]);
        f.emit(BinaryKind::Mul, &[y, gate])
    })
}

fn normalise_images(f: &mut Body, [x, scale, bias]: [ValueId; 3]) -> ValueId {
    let (keep, groups, rest) = (f.ints(&[0]), f.int_attribute("groups"), f.ints(&[-1]));
    let grouped = f.emit(Concat { axis: 0 }, &[keep, groups, rest]);
    let flat = f.emit(Reshape, &[x, grouped]);
    let one = ConstantOfShape { value: Initializer::from_f32(&[1], &[1.0]) };
    let zero = ConstantOfShape { value: Initializer::from_f32(&[1], &[0.0]) };
    let (ones, zeros) = (f.emit(one, &[groups]), f.emit(zero, &[groups]));
    let norm = InstanceNormalization { epsilon: 1e-5 };
    let normal = f.emit_with(norm, &[flat, ones, zeros], &[("epsilon", "epsilon")]);
    let shape = f.emit(ShapeOf { start: 0, end: None }, &[x]);
    let normal = f.emit(Reshape, &[normal, shape]);
    let scaled = f.emit(BinaryKind::Mul, &[normal, scale]);
    f.emit(BinaryKind::Add, &[scaled, bias])
}
