//! The text form of a graph: one line a node, types on the results; what `vldm inspect` prints.

use std::fmt::Write;

use super::{Graph, InitializerData, Node, ValueId};
use crate::ops::Attr;

/// The whole graph as text.
///
/// ```text
/// graph keyframes(sample: f32[batch, frames, 4, height, width], …) -> (out_sample: …)
///   %7 = Conv(%3, unet.conv_in.weight) {strides=[1, 1]} : f32[batch*frames, 32, height, width]  # conv_in
/// ```
pub fn dump(graph: &Graph) -> String {
    let mut text = String::new();
    write_graph(&mut text, graph, &graph.name);
    for (id, function) in &graph.functions {
        text.push('\n');
        let attributes = function.attributes.join(", ");
        write_graph(&mut text, &function.body, &format!("{id}<{attributes}>"));
    }
    text
}

fn write_graph(text: &mut String, graph: &Graph, title: &str) {
    let ports = |ids: &[ValueId]| {
        let port = |&id: &ValueId| match &graph.value(id).ty {
            Some(ty) => format!("{}: {ty}", graph.value(id).name),
            None => graph.value(id).name.clone(),
        };
        ids.iter().map(port).collect::<Vec<_>>().join(", ")
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "graph {title}({}) -> ({})", ports(&graph.inputs), ports(&graph.outputs));
    for (&id, initializer) in &graph.initializers {
        if let InitializerData::External(at) = &initializer.data {
            let (name, ty) = (&graph.value(id).name, initializer.ty());
            let _ = writeln!(text, "  weight {name} : {ty} @ {}+{}", at.file, at.offset);
        }
    }
    for node in graph.nodes() {
        write_node(text, graph, node);
    }
}

fn write_node(text: &mut String, graph: &Graph, node: &Node) {
    let names = |ids: &[Option<ValueId>]| {
        let name = |id: &Option<ValueId>| id.map_or("_", |id| graph.value(id).name.as_str());
        ids.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let _ = write!(text, "  {} = {}({})", names(&node.outputs), node.op, names(&node.inputs));
    let mut attrs: Vec<String> = Vec::new();
    for (name, attr) in node.op.attrs() {
        if !node.attribute_refs.iter().any(|(n, _)| *n == name) {
            attrs.push(format!("{name}={}", printed(&attr)));
        }
    }
    attrs.extend(node.attribute_refs.iter().map(|(name, of)| format!("{name}=@{of}")));
    if !attrs.is_empty() {
        let _ = write!(text, " {{{}}}", attrs.join(", "));
    }
    if let Some(ty) = node.outputs.first().copied().flatten().and_then(|id| graph.value(id).ty.as_ref()) {
        let _ = write!(text, " : {ty}");
    }
    text.push('\n');
}

fn printed(attr: &Attr) -> String {
    match attr {
        Attr::Int(v) => v.to_string(),
        Attr::Float(v) => format!("{v:?}"),
        Attr::String(v) => v.clone(),
        Attr::Ints(v) => format!("{v:?}"),
        Attr::Floats(v) => format!("{v:?}"),
        Attr::Strings(v) => v.join(","),
        Attr::Tensor(t) => t.ty().to_string(),
    }
}
