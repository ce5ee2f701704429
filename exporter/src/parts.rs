//! One part of a bundle: its graph as ONNX bytes, and its entry in the manifest.

use std::collections::BTreeSet;

use vldm_graphs::bundle::{Part, Port, PortDim, PortType};
use vldm_graphs::ir::{DType, Graph, InitializerData, ValueId};
use vldm_graphs::onnx::{self, OnnxError};

use crate::checkpoint::Checkpoint;
use crate::error::ExportError;
use crate::place::Target;
use crate::weights::Weights;

/// A part ready to be written.
pub struct Built {
    /// Its name.
    pub name: String,
    /// Number of nodes, without those inside functions.
    pub nodes: usize,
    bytes: Vec<u8>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    weights: BTreeSet<String>,
}

/// Builds every part of the checkpoint, in memory; the graphs are small without their weights.
///
/// # Errors
/// [`ExportError::Build`], [`ExportError::Onnx`], naming the part.
pub fn build(checkpoint: &Checkpoint, weights: &Weights) -> Result<Vec<Built>, ExportError> {
    checkpoint.model.parts().into_iter().map(|name| build_one(checkpoint, weights, name)).collect()
}

fn build_one(checkpoint: &Checkpoint, weights: &Weights, name: &str) -> Result<Built, ExportError> {
    let graph = checkpoint.model.build(name, weights).map_err(|e| {
        let (path, part) = (checkpoint.path.clone(), name.to_owned());
        ExportError::Build { path, part, source: Box::new(e) }
    })?;
    let onnx = |e| ExportError::Onnx { part: name.to_owned(), source: Box::new(e) };
    let bytes = onnx::to_bytes(&graph).map_err(onnx)?;
    let ports = |ids: &[ValueId]| ids.iter().map(|&id| port(&graph, id)).collect::<Result<_, _>>().map_err(onnx);
    let files = graph.initializers.values().filter_map(|initializer| match &initializer.data {
        InitializerData::External(location) => Some(location.file.clone()),
        InitializerData::Inline(_) => None,
    });
    tracing::debug!(part = name, nodes = graph.nodes().len(), bytes = bytes.len(), "part built");
    Ok(Built {
        name: name.to_owned(),
        nodes: graph.nodes().len(),
        inputs: ports(&graph.inputs)?,
        outputs: ports(&graph.outputs)?,
        weights: files.collect(),
        bytes,
    })
}

fn port(graph: &Graph, id: ValueId) -> Result<Port, OnnxError> {
    let value = graph.value(id);
    let wrong = |found: &str| OnnxError::Model {
        place: format!("port `{}`", value.name),
        expected: "a type of f32 or i64".to_owned(),
        found: found.to_owned(),
    };
    let ty = value.ty.as_ref().ok_or_else(|| wrong("none"))?;
    let dtype = match ty.dtype {
        DType::F32 => PortType::F32,
        DType::I64 => PortType::I64,
        other => return Err(wrong(other.name())),
    };
    let dim = |dim: &vldm_graphs::ir::Dim| match dim.as_fixed() {
        Some(size) => PortDim::Fixed(size as u64),
        None => PortDim::Symbol(dim.to_string()),
    };
    Ok(Port { name: value.name.clone(), dtype, shape: ty.shape.0.iter().map(dim).collect() })
}

impl Built {
    /// Puts the graph into the bundle and gives its entry in the manifest.
    ///
    /// # Errors
    /// [`ExportError::Io`].
    pub fn write(&self, target: &Target) -> Result<Part, ExportError> {
        let file = format!("{}.onnx", self.name);
        let blake3 = target.write(&file, &self.bytes)?;
        Ok(Part {
            file,
            bytes: self.bytes.len() as u64,
            blake3,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            weights: self.weights.iter().cloned().collect(),
        })
    }

    /// Size of its ONNX file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}
