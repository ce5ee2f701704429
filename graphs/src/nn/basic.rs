//! Convolution, linear maps, normalisation and tables.

use super::{Scope, Value};
use crate::ir::Dim;
use crate::ops::Conv;

/// Square convolution with stride 1 that keeps the size: `[N, C, H, W] → [N, out, H, W]`, odd `kernel`.
pub fn conv2d<'g>(s: &Scope<'g>, x: Value<'g>, out: usize, kernel: usize) -> Value<'g> {
    let pad = (kernel / 2) as i64;
    conv2d_strided(s, x, out, kernel, Conv::new(&[1, 1], &[pad, pad]))
}

/// Square convolution with any stride and padding.
pub fn conv2d_strided<'g>(s: &Scope<'g>, x: Value<'g>, out: usize, kernel: usize, conv: Conv) -> Value<'g> {
    let shape = [out, x.channels(), kernel, kernel];
    x.conv(conv, s.weight("weight", &shape), s.weight("bias", &[out]))
}

/// `[…, C] → […, out]`. The weight is stored `[out, C]`, or `[out, C, 1, 1]` or `[out, C, 1]` by a convolution.
pub fn linear<'g>(s: &Scope<'g>, x: Value<'g>, out: usize) -> Value<'g> {
    linear_without_bias(s, x, out) + s.weight("bias", &[out])
}

/// [`linear`] for layers without a bias.
pub fn linear_without_bias<'g>(s: &Scope<'g>, x: Value<'g>, out: usize) -> Value<'g> {
    let rank = x.shape().rank();
    let width = x.size(rank.saturating_sub(1));
    let weight = s.weight_as("weight", &[&[out, width], &[out, width, 1, 1], &[out, width, 1]], &[out, width]);
    x.matmul(weight.transpose(&[1, 0]))
}

/// Statistics over groups of channels and all positions: `[N, C, H, W] → [N, C, H, W]`.
///
/// Written as `InstanceNormalization` over `[N, groups, …]`, the form that ONNX Runtime's CPU kernels run fastest and
/// NVIDIA's compiler recognises.
pub fn group_norm<'g>(s: &Scope<'g>, x: Value<'g>, groups: usize, epsilon: f32) -> Value<'g> {
    let shape = x.shape().0;
    let channels = x.channels();
    if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
        s.refuse(format!("{channels} channels cannot be divided into {groups} groups"));
        return x;
    }
    let inner: Dim = shape.iter().skip(2).cloned().fold(Dim::fixed(channels / groups), |a, b| a * b);
    let (ones, zeros) = (x.vector(&vec![1.0; groups]), x.vector(&vec![0.0; groups]));
    let flat = x.reshape([x.dim(0), Dim::fixed(groups), inner]);
    let normal = flat.instance_norm(ones, zeros, epsilon).reshape_by(x, shape);
    let view = |name| s.weight_as(name, &[&[channels]], &[channels, 1, 1]);
    normal * view("weight") + view("bias")
}

/// Statistics over the last axis: `[…, C] → […, C]`, epsilon 1e-5.
pub fn layer_norm<'g>(s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
    let width = x.size(x.shape().rank().saturating_sub(1));
    x.layer_norm(s.weight("weight", &[width]), s.weight("bias", &[width]), 1e-5)
}

/// Rows of a table: `i64 […] → […, width]`; the table is `[rows, width]`.
pub fn embedding<'g>(s: &Scope<'g>, indices: Value<'g>, rows: usize, width: usize) -> Value<'g> {
    s.weight("weight", &[rows, width]).gather(indices)
}
