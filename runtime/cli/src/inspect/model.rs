//! A network in numbers: ports, operators, functions, weights.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use vldm_graphs::ir::{Graph, Initializer, InitializerData, TensorType, ValueId};

use crate::output::{bytes, table};

/// An input or output.
#[derive(Serialize)]
pub struct Port {
    name: String,
    dtype: String,
    shape: Vec<String>,
}

/// One network.
#[derive(Serialize)]
pub struct Model {
    name: String,
    opsets: BTreeMap<String, i64>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    nodes: usize,
    ops: BTreeMap<String, usize>,
    functions: Vec<String>,
    weights: usize,
    weight_bytes: u64,
}

/// One constant of a network.
#[derive(Serialize)]
pub struct Weight {
    part: String,
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

fn port(graph: &Graph, id: ValueId) -> Port {
    let value = graph.value(id);
    let typed = |ty: &TensorType| (ty.dtype.to_string(), ty.shape.0.iter().map(ToString::to_string).collect());
    let (dtype, shape) = value.ty.as_ref().map_or_else(|| ("unknown".to_owned(), Vec::new()), typed);
    Port { name: value.name.clone(), dtype, shape }
}

impl Port {
    fn line(&self) -> String {
        format!("{}: {} [{}]", self.name, self.dtype, self.shape.join(", "))
    }
}

impl Model {
    /// The numbers of `graph`, which is called `name`.
    pub fn of(name: &str, graph: &Graph) -> Self {
        let sizes = graph.initializers.values().filter_map(Initializer::byte_len);
        Self {
            name: name.to_owned(),
            opsets: graph.opsets.iter().map(|o| (o.domain.clone(), o.version)).collect(),
            inputs: graph.inputs.iter().map(|&id| port(graph, id)).collect(),
            outputs: graph.outputs.iter().map(|&id| port(graph, id)).collect(),
            nodes: graph.nodes().len(),
            ops: graph.op_counts(),
            functions: graph.functions.keys().map(ToString::to_string).collect(),
            weights: graph.initializers.len(),
            weight_bytes: sizes.map(|n| n as u64).sum(),
        }
    }

    /// Name, inputs and outputs, one a line.
    pub fn signature(&self) -> String {
        let mut text = format!("{}\n", self.name);
        for (direction, ports) in [("in ", &self.inputs), ("out", &self.outputs)] {
            for port in ports {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "  {direction} {}", port.line());
            }
        }
        text
    }

    /// Everything but the nodes themselves.
    pub fn describe(&self) -> String {
        let mut text = self.signature();
        let opsets: Vec<String> =
            self.opsets.iter().map(|(d, v)| format!("{} {v}", if d.is_empty() { "onnx" } else { d })).collect();
        let _ = writeln!(text, "  operator sets: {}", opsets.join(", "));
        let _ = writeln!(text, "  constants: {} ({})", self.weights, bytes(self.weight_bytes));
        if !self.functions.is_empty() {
            let _ = writeln!(text, "  functions: {}", self.functions.join(", "));
        }
        let mut ops: Vec<(&String, &usize)> = self.ops.iter().collect();
        ops.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), (*name).clone()));
        let mut rows = vec![vec!["  nodes".to_owned(), self.nodes.to_string()]];
        rows.extend(ops.into_iter().map(|(name, count)| vec![format!("    {name}"), count.to_string()]));
        text + &table(&rows) + "\n"
    }

    /// Cells for the table of a bundle's parts.
    pub fn row(&self) -> Vec<String> {
        let names = |ports: &[Port]| ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        vec![
            self.name.clone(),
            self.nodes.to_string(),
            bytes(self.weight_bytes),
            names(&self.inputs),
            names(&self.outputs),
        ]
    }
}

impl Weight {
    /// All constants of a graph.
    pub fn all(part: &str, graph: &Graph) -> Vec<Self> {
        let weight = |(&id, i): (&ValueId, &Initializer)| {
            let (file, offset) = match &i.data {
                InitializerData::External(at) => (Some(at.file.clone()), Some(at.offset)),
                InitializerData::Inline(_) => (None, None),
            };
            let (name, dtype, shape) = (graph.value(id).name.clone(), i.dtype.to_string(), i.shape.clone());
            Self { part: part.to_owned(), name, dtype, shape, bytes: i.byte_len().unwrap_or(0) as u64, file, offset }
        };
        graph.initializers.iter().map(weight).collect()
    }

    /// Cells for the table of weights.
    pub fn row(&self) -> Vec<String> {
        let place = match (&self.file, self.offset) {
            (Some(file), Some(offset)) => format!("{file}+{offset}"),
            _ => "in the graph".to_owned(),
        };
        let ty = format!("{}{:?}", self.dtype, self.shape);
        vec![self.part.clone(), self.name.clone(), ty, self.bytes.to_string(), place]
    }
}
