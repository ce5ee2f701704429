//! ONNX bytes to [`Graph`]. The file may come from anyone: nothing is believed, and nothing is dropped in silence
//! but documentation strings, metadata, quantisation annotations and device placement, which change no result.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use prost::Message;

use super::proto::{
    DimensionValue, FunctionProto, GraphProto, ModelProto, NEWEST_IR_VERSION, NodeProto, OLDEST_IR_VERSION,
    OperatorSetIdProto, TensorTypeProto, TypeValue, ValueInfoProto,
};
use super::tensor::{MAX_DIM, MAX_RANK};
use super::{OnnxError, attribute, budget, tensor};
use crate::bundle::files::read_bounded;
use crate::ir::{
    DType, Dim, Function, FunctionId, Graph, InitializerData, Node, Opset, Rounding, Shape, TensorType, ValueId, verify,
};
use crate::ops::{AttrError, Attrs, Call, Op};

/// Largest file that is read, in bytes; protobuf cannot hold more.
const MAX_FILE: u64 = (1 << 31) - 1;
/// Standard opsets whose operators mean what the typed ones mean.
const OPSETS: std::ops::RangeInclusive<i64> = 13..=28;

/// What reading a file may accept.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// Whether weight files may have several names on the disk, as a bundle of `vldm export --link` has.
    pub hard_links: bool,
}

/// Reads the ONNX file `path` and checks the files its weights lie in, without reading those.
///
/// # Errors
/// [`OnnxError`], naming the file and what in it.
pub fn read(path: &Path) -> Result<Graph, OnnxError> {
    read_with(path, ReadOptions::default())
}

/// [`read`] with options.
///
/// # Errors
/// As [`read`].
pub fn read_with(path: &Path, options: ReadOptions) -> Result<Graph, OnnxError> {
    let bytes = read_bounded(path, MAX_FILE).map_err(|source| OnnxError::Io { path: path.to_path_buf(), source })?;
    let graph = from_bytes(&bytes).map_err(|e| e.within(path))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for (&id, initializer) in &graph.initializers {
        if let InitializerData::External(at) = &initializer.data {
            let place = format!("tensor `{}`", graph.value(id).name);
            tensor::check_file(at, folder, options.hard_links, &place).map_err(|e| e.within(path))?;
        }
    }
    Ok(graph)
}

/// Reads an ONNX model; no file is touched, weights in other files keep their checked relative location.
///
/// # Errors
/// [`OnnxError`].
pub fn from_bytes(bytes: &[u8]) -> Result<Graph, OnnxError> {
    budget::check(bytes)?;
    let model = ModelProto::decode(bytes).map_err(|e| OnnxError::Decode { reason: e.to_string() })?;
    let ir_version = model.ir_version.unwrap_or_default();
    if !(OLDEST_IR_VERSION..=NEWEST_IR_VERSION).contains(&ir_version) {
        let expected = format!("an IR version in {OLDEST_IR_VERSION}..={NEWEST_IR_VERSION}");
        return Err(OnnxError::model("the model", expected, ir_version.to_string()));
    }
    if !model.training_info.is_empty() {
        return Err(OnnxError::model("the model", "a network for inference", "training information"));
    }
    let Some(proto) = model.graph else {
        return Err(OnnxError::model("the model", "a graph", "none"));
    };
    let mut graph = main_graph(proto)?;
    graph.opsets = opsets(&model.opset_import, "the model")?;
    for proto in model.functions {
        let (id, function) = function(proto)?;
        if let Some(twice) = graph.functions.insert(id.clone(), function) {
            let found = format!("two, one with inputs {}", twice.body.inputs.len());
            return Err(OnnxError::model(format!("function {id}"), "one definition", found));
        }
    }
    refuse_recursion(&graph.functions)?;
    verify(&graph)?;
    Ok(graph)
}

fn opsets(imports: &[OperatorSetIdProto], place: &str) -> Result<Vec<Opset>, OnnxError> {
    let mut seen = HashSet::new();
    let mut opsets = Vec::with_capacity(imports.len());
    for import in imports {
        let (domain, version) = (standard(import.domain.as_deref()), import.version.unwrap_or_default());
        if !seen.insert(domain.clone()) {
            return Err(OnnxError::model(place, "each operator set once", format!("{domain:?} twice")));
        }
        if domain.is_empty() && !OPSETS.contains(&version) {
            let expected = format!("standard operator set {}..={}", OPSETS.start(), OPSETS.end());
            return Err(OnnxError::model(place, expected, version.to_string()));
        }
        opsets.push(Opset { domain, version });
    }
    Ok(opsets)
}

/// `ai.onnx` is another name for the empty domain.
fn standard(domain: Option<&str>) -> String {
    domain.filter(|d| *d != "ai.onnx").unwrap_or_default().to_owned()
}

/// A graph under construction with its values by name.
struct Scope {
    graph: Graph,
    values: HashMap<String, ValueId>,
    types: HashMap<String, TensorType>,
}

impl Scope {
    fn new(name: &str) -> Self {
        Self { graph: Graph::new(name), values: HashMap::new(), types: HashMap::new() }
    }

    /// A new value; a name that is empty or taken is refused.
    fn define(&mut self, name: &str, ty: Option<TensorType>, place: &str) -> Result<ValueId, OnnxError> {
        if name.is_empty() {
            return Err(OnnxError::model(place, "a name", "none"));
        }
        if self.values.contains_key(name) {
            return Err(OnnxError::model(place, "values that are defined once", format!("`{name}` twice")));
        }
        let ty = ty.or_else(|| self.types.get(name).cloned());
        let id = self.graph.add_value(name, ty);
        self.values.insert(name.to_owned(), id);
        Ok(id)
    }

    fn value(&self, name: &str, place: &str) -> Result<ValueId, OnnxError> {
        self.values.get(name).copied().ok_or_else(|| {
            OnnxError::model(place, "values that a node, input or tensor before it defines", format!("`{name}`"))
        })
    }

    fn add_node(&mut self, proto: NodeProto, index: usize) -> Result<(), OnnxError> {
        let name = proto.name.unwrap_or_default();
        let op_type = proto.op_type.unwrap_or_default();
        let place =
            if name.is_empty() { format!("node {index} ({op_type})") } else { format!("node `{name}` ({op_type})") };
        if op_type.is_empty() || proto.overload.is_some_and(|o| !o.is_empty()) {
            return Err(OnnxError::model(place, "an operator without overload", op_type));
        }
        let (mut attrs, mut references) = (Attrs::new(), Vec::new());
        for attribute in proto.attribute {
            let (name, attr, of) = attribute::from_proto(attribute, &place)?;
            if attrs.insert(name.clone(), attr).is_some() {
                return Err(OnnxError::model(place, "each attribute once", format!("`{name}` twice")));
            }
            references.extend(of.map(|of| (name, of)));
        }
        let operand = |n: &String| if n.is_empty() { Ok(None) } else { self.value(n, &place).map(Some) };
        let inputs = proto.input.iter().map(operand).collect::<Result<_, _>>()?;
        let mut outputs = Vec::with_capacity(proto.output.len());
        for n in &proto.output {
            outputs.push(if n.is_empty() { None } else { Some(self.define(n, None, &place)?) });
        }
        let domain = standard(proto.domain.as_deref());
        let op = operator(domain, op_type, attrs, &references).map_err(|(op, source)| OnnxError::Attribute {
            node: name.clone(),
            op,
            source,
        })?;
        self.graph.add_node(Node { name, op, inputs, outputs, attribute_refs: references });
        Ok(())
    }
}

/// A typed operator where there is one that can carry all attributes, else the node as it is.
fn operator(
    domain: String,
    op_type: String,
    attributes: Attrs,
    references: &[(String, String)],
) -> Result<Op, (String, AttrError)> {
    let typed = if domain.is_empty() { Op::from_onnx(&op_type, &attributes) } else { None };
    match typed {
        // An operator that leaves out defaults would lose the place of a reference to a function's attribute.
        Some(Ok(op)) if references.iter().all(|(name, _)| op.attrs().contains_key(name)) => Ok(op),
        None | Some(Ok(_) | Err(AttrError::Unknown { .. })) => Ok(Call { domain, name: op_type, attributes }.into()),
        Some(Err(source)) => Err((op_type, source)),
    }
}

fn main_graph(proto: GraphProto) -> Result<Graph, OnnxError> {
    if !proto.sparse_initializer.is_empty() {
        return Err(OnnxError::model("the graph", "dense tensors", "sparse ones"));
    }
    let mut scope = Scope::new(proto.name.as_deref().unwrap_or(""));
    for info in proto.value_info {
        let (name, ty) = value_info(&info, "intermediate value")?;
        scope.types.extend(ty.map(|ty| (name, ty)));
    }
    let mut ports = Vec::new();
    for (kind, infos) in [("input", proto.input), ("output", proto.output)] {
        for info in infos {
            let (name, ty) = value_info(&info, kind)?;
            let ty =
                ty.ok_or_else(|| OnnxError::model(format!("{kind} `{name}`"), "a tensor of known rank", "none"))?;
            if kind == "input" {
                let id = scope.define(&name, Some(ty), &format!("input `{name}`"))?;
                scope.graph.inputs.push(id);
            } else {
                scope.types.insert(name.clone(), ty);
                ports.push(name);
            }
        }
    }
    for tensor in proto.initializer {
        let name = tensor.name.clone().unwrap_or_default();
        let place = format!("tensor `{name}`");
        let initializer = tensor::from_proto(tensor, &place)?;
        // A tensor under the name of an input is that input's default.
        let default = scope.values.get(&name).copied().filter(|id| scope.graph.inputs.contains(id));
        let id = match default {
            Some(id) => id,
            None => scope.define(&name, Some(initializer.ty()), &place)?,
        };
        if scope.graph.initializers.insert(id, initializer).is_some() {
            return Err(OnnxError::model(place, "each tensor once", "two of this name"));
        }
    }
    for (index, node) in proto.node.into_iter().enumerate() {
        scope.add_node(node, index)?;
    }
    for name in ports {
        let id = scope.value(&name, "the outputs of the graph")?;
        scope.graph.outputs.push(id);
    }
    Ok(scope.graph)
}

fn function(proto: FunctionProto) -> Result<(FunctionId, Function), OnnxError> {
    let id = FunctionId { domain: standard(proto.domain.as_deref()), name: proto.name.unwrap_or_default() };
    let place = format!("function {id}");
    if id.name.is_empty() || proto.overload.is_some_and(|o| !o.is_empty()) {
        return Err(OnnxError::model(place, "a name without overload", id.name));
    }
    if let Some(attribute) = proto.attribute_proto.first() {
        let found = format!("`{}` with one", attribute.name.as_deref().unwrap_or(""));
        return Err(OnnxError::model(place, "attributes without default", found));
    }
    let mut scope = Scope::new(&id.name);
    scope.graph.opsets = opsets(&proto.opset_import, &place)?;
    for name in &proto.input {
        let input = scope.define(name, None, &place)?;
        scope.graph.inputs.push(input);
    }
    let within = |e: OnnxError| match e {
        OnnxError::Model { place: inner, expected, found } => {
            OnnxError::Model { place: format!("{place}: {inner}"), expected, found }
        }
        other => other,
    };
    for (index, node) in proto.node.into_iter().enumerate() {
        scope.add_node(node, index).map_err(within)?;
    }
    for name in &proto.output {
        let output = scope.value(name, &place)?;
        scope.graph.outputs.push(output);
    }
    let declared = |of: &String| proto.attribute.contains(of);
    if let Some((_, of)) = scope.graph.nodes().iter().flat_map(|n| &n.attribute_refs).find(|(_, of)| !declared(of)) {
        return Err(OnnxError::model(place, "references to its own attributes", format!("`{of}`")));
    }
    let doc = proto.doc_string.unwrap_or_default();
    Ok((id, Function { attributes: proto.attribute, doc, body: scope.graph }))
}

/// ONNX forbids functions that call themselves, at whatever distance; whoever inlined them would not end.
fn refuse_recursion(functions: &BTreeMap<FunctionId, Function>) -> Result<(), OnnxError> {
    let calls = |f: &Function| -> HashSet<FunctionId> {
        let called = f
            .body
            .nodes()
            .iter()
            .map(|n| FunctionId { domain: n.op.domain().to_owned(), name: n.op.op_type().to_owned() });
        called.filter(|id| functions.contains_key(id)).collect()
    };
    let mut waiting: BTreeMap<&FunctionId, HashSet<FunctionId>> =
        functions.iter().map(|(id, f)| (id, calls(f))).collect();
    while !waiting.is_empty() {
        let ready: HashSet<FunctionId> =
            waiting.iter().filter(|(_, c)| c.is_empty()).map(|(id, _)| (*id).clone()).collect();
        if ready.is_empty() {
            let id = waiting.keys().next().map(ToString::to_string).unwrap_or_default();
            return Err(OnnxError::model(format!("function {id}"), "functions that never call themselves", "a circle"));
        }
        waiting.retain(|id, _| !ready.contains(*id));
        for calls in waiting.values_mut() {
            calls.retain(|id| !ready.contains(id));
        }
    }
    Ok(())
}

/// Name and type; the type is `None` for what is no tensor of known element type and rank.
fn value_info(info: &ValueInfoProto, kind: &str) -> Result<(String, Option<TensorType>), OnnxError> {
    let name = info.name.clone().unwrap_or_default();
    let ty = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => tensor_type(tensor, &name, &format!("{kind} `{name}`"))?,
        _ => None,
    };
    Ok((name, ty))
}

fn tensor_type(proto: &TensorTypeProto, name: &str, place: &str) -> Result<Option<TensorType>, OnnxError> {
    let (Some(dtype), Some(shape)) = (proto.elem_type.and_then(DType::from_onnx_code), &proto.shape) else {
        return Ok(None);
    };
    if shape.dim.len() > MAX_RANK {
        return Err(OnnxError::model(place, format!("a rank of at most {MAX_RANK}"), shape.dim.len().to_string()));
    }
    let mut dims = Vec::with_capacity(shape.dim.len());
    for (axis, dim) in shape.dim.iter().enumerate() {
        dims.push(match &dim.value {
            Some(DimensionValue::DimValue(size)) if (0..=MAX_DIM).contains(size) => Dim::fixed(*size as usize),
            Some(DimensionValue::DimValue(size)) => {
                return Err(OnnxError::model(place, "dimensions in 0..=2^40", size.to_string()));
            }
            Some(DimensionValue::DimParam(text)) if !text.is_empty() => dimension(text),
            _ => Dim::symbol(&format!("{name}_{axis}")),
        });
    }
    Ok(Some(TensorType::new(dtype, Shape(dims))))
}

/// A product such as `4*batch*ceil(height/2)` where the text is one, else one symbol of that name.
fn dimension(text: &str) -> Dim {
    let product = text.split('*').map(factor).try_fold(Dim::fixed(1), |product, factor| Some(product * factor?));
    product.filter(|dim| dim.to_string() == text).unwrap_or_else(|| Dim::symbol(text))
}

fn factor(text: &str) -> Option<Dim> {
    if let Ok(size) = text.parse::<usize>() {
        return Some(Dim::fixed(size));
    }
    let rounded = [("ceil(", Rounding::Up), ("floor(", Rounding::Down)];
    match rounded.into_iter().find_map(|(open, r)| Some((text.strip_prefix(open)?.strip_suffix(')')?, r))) {
        Some((inner, rounding)) => {
            let (symbol, divisor) = inner.split_once('/')?;
            Dim::symbol(symbol).divided(divisor.parse().ok()?, rounding)
        }
        None => Some(Dim::symbol(text)),
    }
}
