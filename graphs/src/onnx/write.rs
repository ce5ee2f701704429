//! [`Graph`] to ONNX bytes: the same graph always gives the same bytes.

use std::path::Path;

use prost::Message;

use super::proto::{
    Dimension, DimensionValue, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto,
    TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
};
use super::{OnnxError, attribute, tensor};
use crate::bundle::files::write_atomically;
use crate::ir::{Dim, Function, FunctionId, Graph, Node, Opset, TensorType, ValueId, verify};

/// Largest message protobuf can hold, in bytes; weights above it belong into other files.
const MAX_MESSAGE: u64 = (1 << 31) - 1;

/// Newest standard opset of each IR version. Source: `onnx.helper.VERSION_TABLE`, onnx 1.23.2.
const IR_VERSIONS: &[(i64, i64)] = &[(18, 8), (20, 9), (22, 10), (23, 11), (24, 12), (27, 13)];

/// Writes `graph` to `path`: into a temporary file, flushed, renamed. Weights in other files are not touched.
///
/// # Errors
/// [`OnnxError`]; `path` is then as it was.
pub fn write(graph: &Graph, path: &Path) -> Result<(), OnnxError> {
    let bytes = to_bytes(graph).map_err(|e| e.within(path))?;
    write_atomically(path, &bytes).map_err(|source| OnnxError::Io { path: path.to_path_buf(), source })
}

/// The bytes of `graph` as an ONNX model.
///
/// # Errors
/// [`OnnxError::Verify`] for a broken graph, [`OnnxError::Model`] for what ONNX cannot express,
/// [`OnnxError::Limit`] above 2 GiB.
pub fn to_bytes(graph: &Graph) -> Result<Vec<u8>, OnnxError> {
    verify(graph)?;
    let standard = graph.opsets.iter().find(|o| o.domain.is_empty()).map_or(crate::OPSET, |o| o.version);
    let ir_version =
        IR_VERSIONS.iter().find(|row| standard <= row.0).map_or(super::proto::NEWEST_IR_VERSION, |row| row.1);
    let functions = graph.functions.iter().map(|(id, f)| function(id, f, &graph.opsets)).collect::<Result<_, _>>()?;
    let model = ModelProto {
        ir_version: Some(ir_version),
        producer_name: Some("vldm".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        opset_import: opsets(&graph.opsets),
        graph: Some(body(graph)?),
        functions,
        ..Default::default()
    };
    let size = model.encoded_len() as u64;
    if size > MAX_MESSAGE {
        return Err(OnnxError::Limit { what: "bytes of an ONNX file", limit: MAX_MESSAGE, found: size });
    }
    Ok(model.encode_to_vec())
}

fn body(graph: &Graph) -> Result<GraphProto, OnnxError> {
    let typed = |id: &ValueId| {
        let value = graph.value(*id);
        let ty = value.ty.as_ref().ok_or_else(|| {
            OnnxError::model(format!("value `{}`", value.name), "a type, as inputs and outputs have", "none")
        })?;
        Ok(value_info(&value.name, ty))
    };
    // In the order of the nodes that make them, so that reading and writing again gives the same bytes.
    let between = graph.nodes().iter().flat_map(|node| node.outputs.iter().flatten());
    let between = between.filter(|id| !graph.outputs.contains(id)).map(|&id| graph.value(id));
    Ok(GraphProto {
        name: Some(graph.name.clone()),
        node: graph.nodes().iter().map(|n| node(graph, n)).collect::<Result<_, _>>()?,
        initializer: graph.initializers.iter().map(|(&id, i)| tensor::to_proto(&graph.value(id).name, i)).collect(),
        input: graph.inputs.iter().map(typed).collect::<Result<_, OnnxError>>()?,
        output: graph.outputs.iter().map(typed).collect::<Result<_, OnnxError>>()?,
        value_info: between.filter_map(|v| Some(value_info(&v.name, v.ty.as_ref()?))).collect(),
        ..Default::default()
    })
}

fn function(id: &FunctionId, function: &Function, opset: &[Opset]) -> Result<FunctionProto, OnnxError> {
    let body = &function.body;
    let name = |&id: &ValueId| body.value(id).name.clone();
    if !body.functions.is_empty() {
        return Err(OnnxError::model(format!("function {id}"), "functions on the model only", "functions in its body"));
    }
    Ok(FunctionProto {
        name: Some(id.name.clone()),
        domain: Some(id.domain.clone()),
        input: body.inputs.iter().map(name).collect(),
        output: body.outputs.iter().map(name).collect(),
        attribute: function.attributes.clone(),
        node: body.nodes().iter().map(|n| node(body, n)).collect::<Result<_, _>>()?,
        doc_string: (!function.doc.is_empty()).then(|| function.doc.clone()),
        opset_import: opsets(if body.opsets.is_empty() { opset } else { &body.opsets }),
        ..Default::default()
    })
}

fn node(graph: &Graph, node: &Node) -> Result<NodeProto, OnnxError> {
    let names = |ids: &[Option<ValueId>]| {
        ids.iter().map(|id| id.map_or_else(String::new, |id| graph.value(id).name.clone())).collect()
    };
    let attrs = node.op.attrs();
    let mut attributes = Vec::with_capacity(attrs.len());
    for (name, attr) in &attrs {
        let reference = node.attribute_refs.iter().find(|(n, _)| n == name);
        attributes.push(match reference {
            Some((_, of)) => attribute::reference_to_proto(name, of, attr),
            None => attribute::to_proto(name, attr),
        });
    }
    if let Some((name, _)) = node.attribute_refs.iter().find(|(n, _)| !attrs.contains_key(n)) {
        let place = format!("node `{}` ({})", node.name, node.op);
        return Err(OnnxError::model(place, format!("a value in the place of attribute `{name}`"), "none"));
    }
    let domain = node.op.domain();
    Ok(NodeProto {
        name: (!node.name.is_empty()).then(|| node.name.clone()),
        op_type: Some(node.op.op_type().to_owned()),
        domain: (!domain.is_empty()).then(|| domain.to_owned()),
        input: names(&node.inputs),
        output: names(&node.outputs),
        attribute: attributes,
        ..Default::default()
    })
}

fn opsets(opsets: &[Opset]) -> Vec<OperatorSetIdProto> {
    let import = |o: &Opset| OperatorSetIdProto { domain: Some(o.domain.clone()), version: Some(o.version) };
    opsets.iter().map(import).collect()
}

fn value_info(name: &str, ty: &TensorType) -> ValueInfoProto {
    let dim = |dim: &Dim| Dimension {
        denotation: None,
        value: Some(match dim.as_fixed() {
            Some(size) => DimensionValue::DimValue(size as i64),
            None => DimensionValue::DimParam(dim.to_string()),
        }),
    };
    let shape = TensorShapeProto { dim: ty.shape.0.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(ty.dtype.onnx_code()), shape: Some(shape) };
    let r#type = TypeProto { denotation: None, value: Some(TypeValue::TensorType(tensor)) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(r#type), ..Default::default() }
}
