//! Round trips, and files that lie.

use std::fs;
use std::path::Path;

use prost::Message;

use super::proto::{
    AttributeProto, ModelProto, NodeProto, SparseTensorProto, StringStringEntryProto, TensorProto, TrainingInfoProto,
};
use super::*;
use crate::ir::{
    DType, Dim, Function, FunctionId, Graph, Initializer, InitializerData, Node, Opset, Rounding, Shape, TensorType,
    ValueId,
};
use crate::ops::{Attr, BinaryKind, Call, Constant, Op, UnaryKind};
use crate::weights::Location;

fn node(name: &str, op: impl Into<Op>, inputs: &[Option<ValueId>], output: ValueId) -> Node {
    let outputs = vec![Some(output)];
    Node { name: name.to_owned(), op: op.into(), inputs: inputs.to_vec(), outputs, attribute_refs: vec![] }
}

/// `y = x · factor`, with the factor an attribute.
fn scale() -> Function {
    let mut body = Graph::new("Scale");
    body.opsets = vec![Opset { domain: String::new(), version: 21 }];
    let (x, factor, y) = (body.add_input("x", None), body.add_value("factor", None), body.add_value("y", None));
    let mut constant = node("constant", Constant::Float(0.0), &[], factor);
    constant.attribute_refs = vec![("value_float".to_owned(), "factor".to_owned())];
    body.add_node(constant);
    body.add_node(node("mul", BinaryKind::Mul, &[Some(x), Some(factor)], y));
    body.outputs.push(y);
    Function { attributes: vec!["factor".to_owned()], doc: "Multiplies.".to_owned(), body }
}

/// Every feature in a few nodes; `w` lies in `weights/w.safetensors` at 5, 24 bytes.
fn sample() -> Graph {
    let mut g = Graph::new("sample");
    let opset = |domain: &str, version| Opset { domain: domain.to_owned(), version };
    g.opsets = vec![opset("", 21), opset("vldm", 1), opset("foreign", 3)];
    let half = Dim::symbol("height").divided(2, Rounding::Up).unwrap() * Dim::fixed(4);
    let ty = TensorType::new(DType::F32, Shape(vec![Dim::symbol("batch"), half, Dim::fixed(3)]));
    let x = g.add_input("x", Some(ty.clone()));
    let place = Location { file: "weights/w.safetensors".to_owned(), offset: 5, length: 24 };
    let external = Initializer { dtype: DType::F32, shape: vec![2, 3], data: InitializerData::External(place) };
    g.add_initializer("w", external);
    let bias = g.add_initializer("bias", Initializer::from_f32(&[3], &[1.0, -0.0, f32::NAN]));
    let ids = ["a", "b", "c", "y"].map(|name| g.add_value(name, Some(ty.clone())));
    let [a, b, c, y] = ids;
    g.add_node(node("add", BinaryKind::Add, &[Some(x), Some(bias)], a));
    g.add_node(node("scale", Call::vldm("Scale", [("factor", Attr::Float(2.0))]), &[Some(a)], b));
    let attributes = [
        ("list", Attr::Ints(vec![-1, 2])),
        ("names", Attr::Strings(vec!["é".to_owned(), String::new()])),
        ("numbers", Attr::Floats(vec![0.5])),
        ("table", Attr::Tensor(Initializer::from_i64(&[1, 2], &[7, -7]))),
        ("text", Attr::String("hello".to_owned())),
    ];
    let attributes = attributes.map(|(k, v)| (k.to_owned(), v)).into();
    let foreign = Call { domain: "foreign".to_owned(), name: "Mystery".to_owned(), attributes };
    g.add_node(node("mystery", foreign, &[None, Some(b), None], c));
    g.add_node(node("root", UnaryKind::Sqrt, &[Some(c)], y));
    g.outputs.push(y);
    g.functions.insert(FunctionId { domain: "vldm".to_owned(), name: "Scale".to_owned() }, scale());
    g
}

fn proto() -> ModelProto {
    ModelProto::decode(to_bytes(&sample()).unwrap().as_slice()).unwrap()
}

/// The message of reading the sample after `change`.
fn message(change: impl FnOnce(&mut ModelProto)) -> String {
    let mut model = proto();
    change(&mut model);
    from_bytes(&model.encode_to_vec()).unwrap_err().to_string()
}

fn first_tensor(model: &mut ModelProto) -> &mut TensorProto {
    &mut model.graph.as_mut().unwrap().initializer[0]
}

fn nodes(model: &mut ModelProto) -> &mut Vec<NodeProto> {
    &mut model.graph.as_mut().unwrap().node
}

fn external(model: &mut ModelProto, key: &str, value: &str) {
    let entries = &mut first_tensor(model).external_data;
    entries.retain(|e| e.key.as_deref() != Some(key));
    entries.push(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) });
}

#[test]
fn writing_reading_and_writing_again_gives_the_same_bytes() {
    let bytes = to_bytes(&sample()).unwrap();
    let read = from_bytes(&bytes).unwrap();
    assert_eq!(to_bytes(&read).unwrap(), bytes);
    assert_eq!(read.functions, sample().functions);
    assert_eq!(read.nodes().len(), 4);
    assert_eq!(read.value(read.inputs[0]).ty, sample().value(sample().inputs[0]).ty);
}

#[test]
fn operators_of_other_domains_survive_with_their_attributes() {
    let read = from_bytes(&to_bytes(&sample()).unwrap()).unwrap();
    let Op::Call(call) = &read.nodes()[2].op else { panic!("typed") };
    assert_eq!((call.domain.as_str(), call.attributes.len()), ("foreign", 5));
    assert_eq!(read.nodes()[2].inputs.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn a_standard_operator_with_an_attribute_of_another_opset_is_kept_as_it_is() {
    let mut model = proto();
    let node = &mut nodes(&mut model)[3];
    node.attribute.push(AttributeProto {
        name: Some("novel".to_owned()),
        r#type: Some(2),
        i: Some(3),
        ..Default::default()
    });
    let read = from_bytes(&model.encode_to_vec()).unwrap();
    let Op::Call(call) = &read.nodes()[3].op else { panic!("typed") };
    assert_eq!((call.name.as_str(), call.attributes["novel"].clone()), ("Sqrt", Attr::Int(3)));
}

#[test]
fn every_cut_and_every_flipped_byte_is_an_error_or_a_graph_but_no_panic() {
    let bytes = to_bytes(&sample()).unwrap();
    for end in 0..bytes.len() {
        let _ = from_bytes(&bytes[..end]);
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x08, 0x80, 0xff] {
            let mut wrong = bytes.clone();
            wrong[at] ^= flip;
            if let Ok(graph) = from_bytes(&wrong) {
                let _ = to_bytes(&graph);
            }
        }
    }
}

#[test]
fn external_data_must_stay_in_the_folder_and_agree_with_its_shape() {
    for (key, value, wanted) in [
        (
            "location",
            "../w",
            "tensor `w`: expected external data at a relative path inside the model's folder, found \"../w\"",
        ),
        ("location", "/etc/passwd", "found \"/etc/passwd\""),
        ("location", "a/./b", "found \"a/./b\""),
        ("location", "a\\..\\b", "relative path"),
        ("location", "", "relative path"),
        ("offset", "-1", "tensor `w`: expected a byte count in its external data, found \"-1\""),
        ("offset", "18446744073709551615", "tensor `w`: expected an offset inside of its file"),
        ("length", "25", "tensor `w`: expected 24 bytes of external data, found 25 bytes"),
        ("__class__", "x", "expected external data keys location, offset, length, found \"__class__\""),
    ] {
        let text = message(|m| external(m, key, value));
        assert!(text.contains(wanted), "{text}");
    }
    let twice = message(|m| {
        let entry = first_tensor(m).external_data[0].clone();
        first_tensor(m).external_data.push(entry);
    });
    assert!(twice.contains("each external data key once"), "{twice}");
}

#[test]
fn external_files_are_regular_long_enough_and_reached_through_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let (model, weights) = (dir.path().join("m.onnx"), dir.path().join("weights/w.safetensors"));
    write(&sample(), &model).unwrap();
    let message = || read(&model).unwrap_err().to_string();
    assert!(message().contains("m.onnx: ") && message().contains("weights: "), "{}", message());
    fs::create_dir(dir.path().join("weights")).unwrap();
    fs::write(&weights, [0; 28]).unwrap();
    assert!(message().contains("expected bytes 5+24 in its external data, found a file of 28 bytes"), "{}", message());
    fs::write(&weights, [0; 29]).unwrap();
    assert_eq!(read(&model).unwrap().nodes().len(), 4);
    fs::hard_link(&weights, dir.path().join("other")).unwrap();
    assert!(message().contains("a file with one name"), "{}", message());
    assert!(read_with(&model, ReadOptions { hard_links: true }).is_ok());
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = dir.path().join("m.onnx");
    write(&sample(), &model).unwrap();
    fs::write(outside.path().join("w.safetensors"), [0; 29]).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("weights")).unwrap();
    assert!(read(&model).unwrap_err().to_string().contains("folders that are no links"));
    fs::remove_file(dir.path().join("weights")).unwrap();
    fs::create_dir(dir.path().join("weights")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("w.safetensors"), dir.path().join("weights/w.safetensors")).unwrap();
    assert!(read(&model).unwrap_err().to_string().contains("a regular file that is no link"));
}

#[test]
fn what_the_graph_cannot_carry_is_refused_by_name() {
    type Change = fn(&mut ModelProto);
    let cases: &[(Change, &str)] = &[
        (|m| m.graph = None, "the model: expected a graph, found none"),
        (|m| m.ir_version = Some(99), "an IR version in 4..=14, found 99"),
        (|m| m.opset_import[0].version = Some(7), "standard operator set 13..=28, found 7"),
        (|m| m.opset_import.push(m.opset_import[0].clone()), "each operator set once"),
        (
            |m| nodes(m)[0].input[0] = "nowhere".to_owned(),
            "node `add` (Add): expected values that a node, input or tensor",
        ),
        (|m| nodes(m)[1].output[0] = "a".to_owned(), "values that are defined once, found `a` twice"),
        (|m| nodes(m).swap(0, 3), "found `c`"),
        (|m| nodes(m)[0].op_type = None, "an operator without overload"),
        (|m| nodes(m)[2].attribute[0].r#type = Some(77), "attribute `list`: expected a number, string, tensor"),
        (|m| nodes(m)[2].attribute[0].r#type = Some(5), "found Graph"),
        (|m| nodes(m)[2].attribute[4].s = Some(vec![0xff]), "attribute `text`: expected UTF-8"),
        (
            |m| {
                let a = nodes(m)[2].attribute[0].clone();
                nodes(m)[2].attribute.push(a);
            },
            "each attribute once",
        ),
        (|m| first_tensor(m).dims[0] = -2, "tensor `w`: expected dimensions in 0..=2^40, found -2"),
        (|m| first_tensor(m).dims = vec![1 << 40, 1 << 40], "a shape that fits into memory"),
        (|m| first_tensor(m).dims = vec![1; 65], "a rank of at most 64"),
        (|m| first_tensor(m).data_type = Some(8), "found data type 8"),
        (
            |m| m.graph.as_mut().unwrap().initializer[1].raw_data = Some(vec![0; 5]),
            "12 bytes for f32 of shape [3], found 5",
        ),
        (
            |m| m.graph.as_mut().unwrap().output[0].name = Some("z".to_owned()),
            "the outputs of the graph: expected values",
        ),
        (
            |m| m.graph.as_mut().unwrap().input[0].r#type = None,
            "input `x`: expected a tensor of known rank, found none",
        ),
        (|m| m.graph.as_mut().unwrap().sparse_initializer.push(SparseTensorProto::default()), "dense tensors"),
        (|m| m.training_info.push(TrainingInfoProto::default()), "training information"),
        (|m| m.functions.push(m.functions[0].clone()), "function vldm::Scale: expected one definition"),
        (|m| m.functions[0].attribute.clear(), "references to its own attributes, found `factor`"),
        (|m| m.functions[0].attribute_proto.push(AttributeProto::default()), "attributes without default"),
    ];
    for (change, wanted) in cases {
        let text = message(change);
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn a_function_that_calls_itself_is_refused() {
    let text = message(|m| {
        let call = &mut m.functions[0].node[1];
        (call.op_type, call.domain) = (Some("Scale".to_owned()), Some("vldm".to_owned()));
    });
    assert_eq!(text, "function vldm::Scale: expected functions that never call themselves, found a circle");
}

#[test]
fn numbers_outside_raw_data_are_read_by_their_type() {
    let cases: [(DType, TensorProto, Vec<u8>); 4] = [
        (
            DType::F32,
            TensorProto { float_data: vec![1.5, 2.0], ..Default::default() },
            [1.5f32, 2.0].map(f32::to_le_bytes).concat(),
        ),
        (
            DType::I64,
            TensorProto { int64_data: vec![-1, 2], ..Default::default() },
            [-1i64, 2].map(i64::to_le_bytes).concat(),
        ),
        (DType::F16, TensorProto { int32_data: vec![0x3c00, 0x4000], ..Default::default() }, vec![0, 0x3c, 0, 0x40]),
        (DType::I8, TensorProto { int32_data: vec![-1, 7], ..Default::default() }, vec![0xff, 7]),
    ];
    for (dtype, mut proto, bytes) in cases {
        (proto.dims, proto.data_type) = (vec![2], Some(dtype.onnx_code()));
        assert_eq!(tensor::from_proto(proto, "t").unwrap().data, InitializerData::Inline(bytes), "{dtype}");
    }
}

#[test]
fn a_refused_graph_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let mut graph = sample();
    graph.outputs.push(graph.find("w").unwrap());
    let id = graph.add_value("untied", None);
    graph.outputs.push(id);
    assert!(write(&graph, &path).unwrap_err().to_string().ends_with("graph output `untied` is made by no node"));
    assert!(!Path::new(&path).exists());
}
