//! What an export did, for people and for programs.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use vldm_graphs::bundle::{Manifest, Provenance};

use crate::checkpoint::Checkpoint;
use crate::parts::Built;
use crate::weights::Weights;
use crate::{LinkMode, Request};

/// What an export did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Family of the checkpoint.
    pub family: String,
    /// The networks, in the order in which they were built.
    pub parts: Vec<PartReport>,
    /// The weight files.
    pub weights: Vec<WeightReport>,
    /// Bytes of all weight files.
    pub weight_bytes: u64,
    /// Whether weights that should have been linked had to be copied.
    pub copied_instead: bool,
    /// Configuration keys that were read past because they do not change the numbers, as `file: key`.
    pub ignored_keys: Vec<String>,
    /// Tensors of the checkpoint that no part uses, as `component/name`.
    pub unused_tensors: Vec<String>,
    /// What was merged or put together.
    pub provenance: Provenance,
    /// Layouts whose names were understood, as `file or component: layout`.
    pub layouts: Vec<String>,
    /// What the checkpoint does not say and was taken from the published models, as `what: assumption`.
    pub assumed: Vec<String>,
    /// Tensors of single files that belong to nothing that is exported, such as the state of a training.
    pub ignored_tensors: usize,
}

/// One exported network.
#[derive(Debug, Clone, Serialize)]
pub struct PartReport {
    /// Its name.
    pub name: String,
    /// Nodes of its graph, without those inside functions.
    pub nodes: usize,
    /// Size of its ONNX file.
    pub bytes: u64,
}

/// One weight file of the bundle.
#[derive(Debug, Clone, Serialize)]
pub struct WeightReport {
    /// Path in the bundle.
    pub file: String,
    /// Path in the checkpoint.
    pub source: String,
    /// Size.
    pub bytes: u64,
    /// Whether it is a hard link to the checkpoint's file.
    pub linked: bool,
}

impl Report {
    pub(crate) fn new(
        request: &Request,
        checkpoint: &Checkpoint,
        weights: &Weights,
        parts: &[Built],
        manifest: &Manifest,
    ) -> Self {
        let part = |p: &Built| PartReport { name: p.name.clone(), nodes: p.nodes, bytes: p.bytes() };
        let placed = manifest.weights.iter().map(|(file, w)| {
            let (file, source) = (file.clone(), w.source.clone());
            WeightReport { file, source, bytes: w.bytes, linked: w.linked }
        });
        Self {
            bundle: request.out.clone(),
            family: manifest.family.clone(),
            parts: parts.iter().map(part).collect(),
            weights: placed.collect(),
            weight_bytes: manifest.weights.values().map(|w| w.bytes).sum(),
            copied_instead: request.link == LinkMode::HardLink && manifest.weights.values().any(|w| !w.linked),
            ignored_keys: checkpoint.model.ignored_keys(),
            unused_tensors: weights.unused(),
            provenance: manifest.provenance.clone(),
            layouts: checkpoint.read.layouts.clone(),
            assumed: checkpoint.read.assumed.clone(),
            ignored_tensors: checkpoint.read.ignored_tensors,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} parts of family {}", self.bundle.display(), self.parts.len(), self.family)?;
        for part in &self.parts {
            writeln!(f, "  {:<16} {:>5} nodes {:>9} bytes", part.name, part.nodes, part.bytes)?;
        }
        for weights in &self.weights {
            let how = match (weights.linked, self.provenance.merged.contains_key(&weights.file)) {
                (true, _) => "linked from",
                (false, true) => "merged from",
                (false, false) => "copied from",
            };
            writeln!(f, "  {:<40} {:>9} bytes, {how} {}", weights.file, weights.bytes, weights.source)?;
        }
        for (component, from) in &self.provenance.components {
            writeln!(f, "  {component} from {from}")?;
        }
        for lora in &self.provenance.loras {
            writeln!(f, "  merged {} at {} into {} tensors", lora.file, lora.scale, lora.tensors)?;
        }
        for layout in &self.layouts {
            writeln!(f, "note: names read as {layout}")?;
        }
        for assumed in &self.assumed {
            writeln!(f, "note: assumed {assumed}")?;
        }
        if self.ignored_tensors > 0 {
            writeln!(f, "note: left out {} tensors that belong to no network", self.ignored_tensors)?;
        }
        if self.copied_instead {
            writeln!(f, "note: some weights could not be linked and were copied")?;
        }
        if let Some(first) = self.unused_tensors.first() {
            writeln!(f, "note: {} tensors are used by no part, the first is {first}", self.unused_tensors.len())?;
        }
        if !self.ignored_keys.is_empty() {
            writeln!(f, "note: read past {} configuration keys without effect", self.ignored_keys.len())?;
        }
        Ok(())
    }
}
