//! Puts our kernels in place of groups of tract's operators, before tract optimises. Shapes
//! are concrete here, so that a reshape can be seen to move nothing.

use tract_onnx::prelude::{Datum, OutletId, TractResult, TypedModel, TypedModelPatch, TypedNode};
use tract_onnx::tract_core::internal::{AxesMapping, AxisOp, TypedOp};
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::{Add, Mul};
use tract_onnx::tract_core::ops::nn::{DataFormat, Sigmoid, Softmax, SoftmaxKind};

use super::native::NativeOp;
use super::strides::{self, View};
use crate::backend::native::{AddRows, Layout, Native, Norm, StridedAttention};
use crate::crew::Crew;
use crate::kernels::{Attention, Conv2d, Geometry, GroupNorm, Operand};

type Rule = fn(&TypedModel, &TypedNode) -> TractResult<Option<TypedModelPatch>>;

/// In this order: what one makes, the next may use.
const RULES: &[Rule] = &[convolution, group_norm, norm_silu, attention, add_rows];

/// Applies every rule to every node, once.
///
/// # Errors
/// tract's, when a replacement does not fit; a rule that does not match is no error.
pub fn fuse(model: &mut TypedModel) -> TractResult<()> {
    for rule in RULES {
        for id in 0..model.nodes().len() {
            if let Some(patch) = rule(model, model.node(id))? {
                patch.apply(model)?;
            }
        }
        model.compact()?;
    }
    Ok(())
}

/// Gives every kernel of the model the processors it may use.
pub fn employ(model: &mut TypedModel, crew: &Crew) {
    for node in model.nodes_mut() {
        if let Some(op) = node.op_as_mut::<NativeOp>() {
            op.employ(crew);
        }
    }
}

/// `with` in place of outlet `of`, fed by `inputs`.
fn replace(
    model: &TypedModel,
    of: OutletId,
    with: impl Into<Box<dyn TypedOp>>,
    inputs: &[OutletId],
) -> TractResult<Option<TypedModelPatch>> {
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, inputs)?;
    let new = patch.wire_node(format!("{}.vldm", model.node(of.node).name), with.into(), &taps)?;
    patch.shunt_outside(model, of, new[0])?;
    Ok(Some(patch))
}

/// The numbers of a constant f32, reshaped or not.
fn constant(model: &TypedModel, mut outlet: OutletId) -> TractResult<Option<Vec<f32>>> {
    while is_reshape(model.node(outlet.node)) {
        outlet = model.node(outlet.node).inputs[0];
    }
    match &model.outlet_fact(outlet)?.konst {
        Some(t) if t.datum_type() == f32::datum_type() => Ok(Some(t.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())),
        _ => Ok(None),
    }
}

/// The concrete shape of a value.
pub fn shape(model: &TypedModel, outlet: OutletId) -> TractResult<Vec<usize>> {
    Ok(model.outlet_fact(outlet)?.shape.as_concrete().unwrap_or_default().to_vec())
}

/// The only reader of a value that no output shows.
pub fn reader(model: &TypedModel, outlet: OutletId) -> Option<&TypedNode> {
    match model.outlet_successors(outlet) {
        [only] if !model.output_outlets().ok()?.contains(&outlet) => Some(model.node(only.node)),
        _ => None,
    }
}

/// A plain 2-D f32 convolution with constant weights → [`Conv2d`].
fn convolution(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
    let pool = &conv.pool_spec;
    let strides = pool.strides.as_deref().unwrap_or(&[1, 1]);
    let dilated = pool.dilations.as_deref().is_some_and(|d| d.iter().any(|&d| d != 1));
    let plain = conv.kernel_fmt == KernelFormat::OIHW && conv.group == 1 && conv.q_params.is_none() && !dilated;
    let (&[kh, kw], &[sh, sw]) = (&pool.kernel_shape[..], strides) else { return Ok(None) };
    let (before, after) = match &pool.padding {
        PaddingSpec::Explicit(before, after) => ([before[0], before[1]], [after[0], after[1]]),
        PaddingSpec::Valid => ([0; 2], [0; 2]),
        _ => return Ok(None),
    };
    if !plain || pool.data_format != DataFormat::NCHW || sh != sw {
        return Ok(None);
    }
    let (Some(weight), Some(mut bias)) = (constant(model, node.inputs[1])?, constant(model, node.inputs[2])?) else {
        return Ok(None);
    };
    if bias.len() == 1 {
        bias = vec![bias[0]; pool.output_channels];
    }
    let geometry = Geometry { channels: pool.input_channels, kernel: [kh, kw], stride: sh, before, after };
    match Conv2d::new(geometry, &weight, &bias) {
        Some(kernel) => replace(model, node.id.into(), NativeOp::new(kernel), &node.inputs[..1]),
        None => Ok(None),
    }
}

/// Reshape to `[n, groups, …]`, normalise, reshape back, scale, shift → one [`GroupNorm`].
fn group_norm(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(norm) = node.op_as::<NativeOp>().and_then(NativeOp::kernel_as::<Norm>) else { return Ok(None) };
    let Some((groups, epsilon)) = norm.kernel.is_plain().filter(|_| norm.layout == Layout::Images) else {
        return Ok(None);
    };
    // Up to what the reshapes before the normalisation started from …
    let mut x = node.inputs[0];
    while is_reshape(model.node(x.node)) {
        x = model.node(x.node).inputs[0];
    }
    let image = shape(model, x)?;
    if image.len() < 2 || image[0] != shape(model, node.id.into())?[0] {
        return Ok(None);
    }
    // … and down to where those after it end with the same shape.
    let mut y: OutletId = node.id.into();
    while let Some(next) = reader(model, y).filter(|n| is_reshape(n)) {
        y = next.id.into();
    }
    if shape(model, y)? != image {
        return Ok(None);
    }
    let Some((scaled, scale)) = affine::<Mul>(model, y, &image)? else { return Ok(None) };
    let Some((shifted, bias)) = affine::<Add>(model, scaled, &image)? else { return Ok(None) };
    match GroupNorm::new(groups, epsilon, scale, bias) {
        Some(kernel) => replace(model, shifted, NativeOp::new(Norm { kernel, layout: Layout::Images }), &[x]),
        None => Ok(None),
    }
}

fn is_reshape(node: &TypedNode) -> bool {
    matches!(node.op_as::<AxisOp>(), Some(AxisOp::Reshape(..) | AxisOp::Add(_) | AxisOp::Rm(_)))
}

/// The operation `O` of `y` with one constant a channel, if it is all that reads `y`.
fn affine<O: BinMiniOp>(model: &TypedModel, y: OutletId, image: &[usize]) -> TractResult<Option<(OutletId, Vec<f32>)>> {
    let Some(node) = reader(model, y).filter(|n| n.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<O>())) else {
        return Ok(None);
    };
    let other = if node.inputs[0] == y { node.inputs[1] } else { node.inputs[0] };
    let per_channel = |s: &[usize]| {
        let start = image.len() - s.len().min(image.len());
        s.iter().zip(start..).all(|(&n, axis)| n == if axis == 1 { image[1] } else { 1 })
    };
    if !per_channel(&shape(model, other)?) || shape(model, node.id.into())? != image {
        return Ok(None);
    }
    Ok(constant(model, other)?.filter(|c| c.len() == image[1]).map(|c| (node.id.into(), c)))
}

/// A normalisation that is read by `x · sigmoid(x)` alone takes it along.
fn norm_silu(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(norm) = node.op_as::<NativeOp>().and_then(NativeOp::kernel_as::<Norm>) else { return Ok(None) };
    let x: OutletId = node.id.into();
    let &[a, b] = model.outlet_successors(x) else { return Ok(None) };
    let is_sigmoid = |n: &TypedNode| n.op_as::<ElementWiseOp>().is_some_and(|op| op.0.is::<Sigmoid>());
    let gate = if is_sigmoid(model.node(a.node)) { a.node } else { b.node };
    let product = if gate == a.node { b.node } else { a.node };
    let product = model.node(product);
    let multiplies = product.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>());
    let seen = model.output_outlets()?.iter().any(|o| *o == x || o.node == gate);
    let inputs = [x, OutletId::from(gate)];
    let both = product.inputs[..] == inputs || product.inputs.iter().rev().eq(&inputs);
    if seen || !is_sigmoid(model.node(gate)) || !multiplies || !both || reader(model, gate.into()).is_none() {
        return Ok(None);
    }
    let kernel = Norm { kernel: norm.kernel.clone().with_silu(), layout: norm.layout };
    replace(model, product.id.into(), NativeOp::new(kernel), &node.inputs)
}

/// `softmax(q k) v` over the last two of at most five axes → [`Attention`], which also reads
/// and writes through the transpositions and reshapes around it.
fn attention(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(softmax) = node.op_as::<Softmax>() else { return Ok(None) };
    let scores = node.inputs[0];
    let rank = shape(model, scores)?.len();
    let over_keys = softmax.axes[..] == [rank.wrapping_sub(1)] && matches!(softmax.kind, SoftmaxKind::Softmax);
    if !over_keys || !(3..=5).contains(&rank) || softmax.quant_output_dt.is_some() {
        return Ok(None);
    }
    let first = model.node(scores.node);
    let Some(second) = reader(model, node.id.into()).filter(|_| reader(model, scores).is_some()) else {
        return Ok(None);
    };
    if !is_matmul(first, rank)? || !is_matmul(second, rank)? || second.inputs[0] != node.id.into() {
        return Ok(None);
    }
    let (q, k) = (strides::before(model, first.inputs[0])?, strides::before(model, first.inputs[1])?);
    let (v, y) = (strides::before(model, second.inputs[1])?, strides::after(model, second.id.into())?);
    let Some(kernel) = strided_attention(&q, &k, &v, &y) else { return Ok(None) };
    let kernel = StridedAttention { kernel, shape: shape(model, y.source)? };
    replace(model, y.source, NativeOp::new(kernel), &[q.source, k.source, v.source])
}

/// A product of f32 matrices over the last two axes, outer axes side by side.
fn is_matmul(node: &TypedNode, rank: usize) -> TractResult<bool> {
    let Some(product) = node.op_as::<EinSum>() else { return Ok(false) };
    let plain = AxesMapping::for_numpy_matmul(rank, false, false, false)?;
    let f32s = product.operating_dt == f32::datum_type() && product.q_params.is_none();
    Ok(f32s && product.axes.input_count() == 2 && product.axes.to_strs() == plain.to_strs())
}

/// `q` `[…, l, d]`, `k` `[…, d, m]`, `v` `[…, m, d]`, `y` `[…, l, d]`.
fn strided_attention(q: &View, k: &View, v: &View, y: &View) -> Option<Attention> {
    let (&[queries, width], &[same, keys]) = (q.shape.last_chunk::<2>()?, k.shape.last_chunk::<2>()?);
    let outer = &q.shape[..q.shape.len() - 2];
    let alike = [k, v, y].iter().all(|o| o.shape[..o.shape.len() - 2] == *outer);
    if !alike || same != width || v.shape.last_chunk::<2>()? != &[keys, width] {
        return None;
    }
    // Outer axes fill up from the right.
    let padded = |from: &[usize], with: usize| -> [usize; 3] {
        let start = 3 - outer.len();
        std::array::from_fn(|i| if i < start { with } else { from[i - start] })
    };
    let operand = |view: &View, row: usize, inner: usize| {
        let (row, inner) = (view.strides[outer.len() + row], view.strides[outer.len() + inner]);
        (inner == 1 || width == 1).then(|| Operand { outer: padded(&view.strides, 0), row })
    };
    let operands = [operand(q, 0, 1)?, operand(k, 1, 0)?, operand(v, 0, 1)?, operand(y, 0, 1)?];
    Some(Attention { outer: padded(outer, 1), queries, keys, width, operands, scale: 1.0, window: usize::MAX })
}

/// The sum of a value and one number for each of its rows → [`AddRows`].
fn add_rows(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let &[a, b] = node.inputs.as_slice() else { return Ok(None) };
    let f32s = [a, b].iter().all(|&o| model.outlet_fact(o).is_ok_and(|f| f.datum_type == f32::datum_type()));
    if !f32s || !node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Add>()) {
        return Ok(None);
    }
    let fits = |x, e| -> TractResult<bool> { Ok(AddRows.output(&[&shape(model, x)?, &shape(model, e)?]).is_ok()) };
    if fits(a, b)? {
        replace(model, node.id.into(), NativeOp::new(AddRows), &[a, b])
    } else if fits(b, a)? {
        replace(model, node.id.into(), NativeOp::new(AddRows), &[b, a])
    } else {
        Ok(None)
    }
}
