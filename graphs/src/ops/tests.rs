//! Every operator survives its attributes, and results have the types ONNX gives them.

use super::*;
use crate::ir::{DType, Dim, Initializer, Shape, TensorType};

fn f32_of(dims: &[Dim]) -> Info {
    Info::of(TensorType::new(DType::F32, Shape(dims.to_vec())))
}

fn sizes(values: &[Dim]) -> Info {
    Info { ty: TensorType::new(DType::I64, Shape::fixed(&[values.len()])), content: Some(values.to_vec()) }
}

fn shape_of(op: impl Into<Op>, inputs: &[&Info]) -> String {
    let inputs: Vec<Option<&Info>> = inputs.iter().copied().map(Some).collect();
    match op.into().infer(&inputs) {
        Ok(infos) => infos[0].ty.shape.to_string(),
        Err(e) => e.to_string(),
    }
}

fn examples() -> Vec<Op> {
    let mut ops: Vec<Op> = vec![
        Cast { to: DType::F16 }.into(),
        Clip.into(),
        Concat { axis: -1 }.into(),
        Constant::Ints(vec![1, -1]).into(),
        ConstantOfShape { value: Initializer::from_f32(&[1], &[1.5]) }.into(),
        Conv { strides: vec![2, 1], pads: vec![0, 1, 2, 3], dilations: vec![1, 2], group: 4 }.into(),
        DepthToSpace { blocksize: 4, column_row_depth: true }.into(),
        Expand.into(),
        Gather { axis: 1 }.into(),
        Gemm { alpha: 0.5, beta: 2.0, trans_a: true, trans_b: false }.into(),
        InstanceNormalization { epsilon: 1e-6 }.into(),
        LayerNormalization { axis: -1, epsilon: 1e-6 }.into(),
        MatMul.into(),
        Range.into(),
        ReduceMean { keepdims: true }.into(),
        Reshape.into(),
        Resize.into(),
        ShapeOf { start: 1, end: Some(3) }.into(),
        Slice.into(),
        Softmax { axis: 2 }.into(),
        Split { axis: 1, num_outputs: 3 }.into(),
        Squeeze.into(),
        Transpose { perm: vec![1, 0, 2] }.into(),
        Unsqueeze.into(),
        Where.into(),
    ];
    ops.extend([UnaryKind::Sigmoid, UnaryKind::Gelu].map(Op::from));
    ops.extend([BinaryKind::Add, BinaryKind::LessOrEqual].map(Op::from));
    ops
}

#[test]
fn every_operator_survives_its_attributes() {
    let ops = examples();
    for name in OP_TYPES {
        assert!(ops.iter().any(|op| op.op_type() == *name), "{name} has no example");
    }
    for op in ops {
        let read = Op::from_onnx(op.op_type(), &op.attrs());
        assert_eq!(read, Some(Ok(op.clone())), "{op}");
    }
}

#[test]
fn an_attribute_that_nobody_asked_for_is_refused() {
    let attrs = [("axes".to_owned(), Attr::Int(1))].into();
    let error = Op::from_onnx("MatMul", &attrs).and_then(Result::err).map(|e| e.to_string());
    assert_eq!(error.as_deref(), Some("attribute `axes` is not one this operator carries"));
}

#[test]
fn a_foreign_operator_is_not_typed() {
    assert_eq!(Op::from_onnx("NonMaxSuppression", &Attrs::new()), None);
}

#[test]
fn a_padded_stride_two_convolution_halves_upwards() {
    let x = f32_of(&["n".into(), 4.into(), "h".into(), 6.into()]);
    let w = f32_of(&[8.into(), 4.into(), 3.into(), 3.into()]);
    assert_eq!(shape_of(Conv::new(&[2, 2], &[1, 1]), &[&x, &w]), "[n, 8, ceil(h/2), 3]");
    let below = Conv { strides: vec![2, 2], pads: vec![0, 0, 1, 1], dilations: vec![1, 1], group: 1 };
    assert_eq!(shape_of(below, &[&x, &w]), "[n, 8, floor(h/2), 3]");
}

#[test]
fn a_reshape_keeps_what_is_zero_and_divides_for_minus_one() {
    let x = f32_of(&[Dim::symbol("b") * Dim::symbol("t"), 32.into(), "h".into(), "w".into()]);
    let grouped = Constant::Ints(vec![0, 8, -1]).info();
    assert_eq!(shape_of(Reshape, &[&x, &grouped]), "[b*t, 8, 4*h*w]");
    let split = sizes(&["b".into(), Dim::symbol("-1"), 32.into(), "h".into(), "w".into()]);
    assert_eq!(shape_of(Reshape, &[&x, &split]), "[b, t, 32, h, w]");
}

#[test]
fn a_reshape_that_changes_the_count_is_an_error() {
    let x = f32_of(&[2.into(), 3.into()]);
    assert_eq!(shape_of(Reshape, &[&x, &sizes(&[7.into()])]), "[2, 3] cannot be reshaped to [7]");
}

#[test]
fn broadcasting_follows_numpy() {
    let (a, b) = (f32_of(&["n".into(), 1.into(), 5.into()]), f32_of(&[4.into(), 5.into()]));
    assert_eq!(shape_of(BinaryKind::Add, &[&a, &b]), "[n, 4, 5]");
    let c = f32_of(&[6.into()]);
    assert_eq!(shape_of(BinaryKind::Add, &[&a, &c]), "dimensions 5 and 6 do not agree");
}

#[test]
fn matrix_products_check_their_inner_dimension() {
    let (a, b) = (f32_of(&["n".into(), 7.into(), 3.into()]), f32_of(&[3.into(), 2.into()]));
    assert_eq!(shape_of(MatMul, &[&a, &b]), "[n, 7, 2]");
    assert_eq!(shape_of(MatMul, &[&a, &a]), "inner dimensions 3 and 7 differ");
}

#[test]
fn a_negative_slice_bound_is_left_open_rather_than_guessed() {
    let x = f32_of(&[10.into()]);
    let (start, end, axes) =
        (Constant::Ints(vec![0]).info(), Constant::Ints(vec![-1]).info(), Constant::Ints(vec![0]).info());
    let error = InferError::Undecided.to_string();
    assert_eq!(shape_of(Slice, &[&x, &start, &end, &axes]), error);
}

#[test]
fn hostile_attributes_do_not_overflow() {
    let x = f32_of(&[1.into(), 4.into(), 8.into(), 8.into()]);
    let w = f32_of(&[8.into(), 4.into(), 3.into(), 3.into()]);
    let huge = Conv { strides: vec![1, 1], pads: vec![i64::MAX; 4], dilations: vec![i64::MAX; 2], group: i64::MAX };
    assert!(shape_of(huge, &[&x, &w]).contains("differ"));
    let wide = Conv { strides: vec![i64::MAX; 2], pads: vec![i64::MIN; 4], dilations: vec![i64::MIN; 2], group: 1 };
    shape_of(wide, &[&x, &w]);
    shape_of(Split { axis: i64::MIN, num_outputs: i64::MAX }, &[&x]);
    shape_of(DepthToSpace { blocksize: i64::MAX, column_row_depth: false }, &[&x]);
}
