//! One part of a bundle: its graph as ONNX bytes, and its entry in the manifest.

use std::collections::BTreeSet;

use vldm_graphs::bundle::{Part, Port};
use vldm_graphs::onnx;

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
    tracing::debug!(part = name, nodes = graph.nodes().len(), bytes = bytes.len(), "part built");
    Ok(Built {
        name: name.to_owned(),
        nodes: graph.nodes().len(),
        inputs: Port::all_of(&graph, &graph.inputs).map_err(onnx)?,
        outputs: Port::all_of(&graph, &graph.outputs).map_err(onnx)?,
        weights: graph.weight_files().into_iter().map(str::to_owned).collect(),
        bytes,
    })
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
            pieces: Vec::new(),
        })
    }

    /// Size of its ONNX file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}
