//! Whether a bundle is what its manifest says: digests of all files, and every graph read, checked and compared.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use serde::Serialize;

use super::{Manifest, Part, Port, PortDim, PortType, digest};
use crate::ir::{DType, Dim, Graph, InitializerData, ValueId};
use crate::onnx::{self, OnnxError, ReadOptions};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// File of the bundle, as the manifest names it.
    pub file: String,
    /// What was asked: `digest`, `structure`, `signature` or `weights`.
    pub check: &'static str,
    /// What is wrong; nothing when it is right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Finding {
    /// A check of `file` that went as `result` says.
    pub fn new(file: &str, check: &'static str, result: Result<(), impl Display>) -> Self {
        Self { file: file.to_owned(), check, problem: result.err().map(|e| e.to_string()) }
    }
}

impl Manifest {
    /// Looks at every file of the bundle in `dir`, of which [`Manifest::open`] has read the manifest:
    ///
    /// - `digest`: its bytes are those that were exported;
    /// - `structure`: it is an ONNX model whose graph keeps every rule, and all weights lie in regular files of the
    ///   bundle, reached through no link, inside the file and as long as type and shape ask for;
    /// - `signature`: its inputs and outputs are the manifest's;
    /// - `weights`: the files it refers to are those the manifest lists, so that their digests count.
    pub fn verify(&self, dir: &Path) -> Vec<Finding> {
        let mut findings = Vec::new();
        let parts = self.parts.values().map(|part| (&part.file, &part.blake3));
        let parts = parts.chain(self.parts.values().flat_map(|part| &part.pieces).map(|p| (&p.file, &p.blake3)));
        let others = self.weights.iter().chain(&self.files).map(|(file, described)| (file, &described.blake3));
        for (file, expected) in parts.chain(others) {
            findings.push(Finding::new(file, "digest", check_digest(&dir.join(file), expected)));
        }
        for part in self.parts.values() {
            let options = ReadOptions { hard_links: part.weights.iter().any(|file| self.is_linked(file)) };
            match onnx::read_with(&dir.join(&part.file), options) {
                Err(e) => findings.push(Finding::new(&part.file, "structure", Err(e))),
                Ok(graph) => {
                    findings.push(Finding::new(&part.file, "structure", Ok::<_, String>(())));
                    findings.push(Finding::new(&part.file, "signature", part.check_signature(&graph)));
                    findings.push(Finding::new(&part.file, "weights", part.check_weights(&graph)));
                }
            }
            for piece in &part.pieces {
                match onnx::read_with(&dir.join(&piece.file), options) {
                    Err(e) => findings.push(Finding::new(&piece.file, "structure", Err(e))),
                    Ok(graph) => {
                        findings.push(Finding::new(&piece.file, "structure", Ok::<_, String>(())));
                        findings.push(Finding::new(&piece.file, "weights", part.check_piece_weights(&graph)));
                    }
                }
            }
        }
        findings
    }

    fn is_linked(&self, file: &str) -> bool {
        self.weights.get(file).is_some_and(|w| w.linked)
    }
}

fn check_digest(path: &Path, expected: &str) -> Result<(), String> {
    let (_, found) = digest(path).map_err(|e| e.to_string())?;
    if found == expected {
        return Ok(());
    }
    Err(format!("expected BLAKE3 {expected}, found {found}: it has changed since it was exported; export it again"))
}

impl Part {
    fn check_signature(&self, graph: &Graph) -> Result<(), String> {
        for (what, expected, ids) in
            [("inputs", &self.inputs, &graph.inputs), ("outputs", &self.outputs, &graph.outputs)]
        {
            let found = Port::all_of(graph, ids).map_err(|e| e.to_string())?;
            if *expected != found {
                let names = |ports: &[Port]| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(format!("{what}: expected {}, found {}", names(expected), names(&found)));
            }
        }
        Ok(())
    }

    fn check_weights(&self, graph: &Graph) -> Result<(), String> {
        let (expected, found) =
            (self.weights.iter().map(String::as_str).collect::<BTreeSet<_>>(), graph.weight_files());
        if expected == found {
            return Ok(());
        }
        Err(format!("expected references to {expected:?}, found {found:?}"))
    }
}

impl Part {
    /// A piece needs no weights that the part does not.
    fn check_piece_weights(&self, graph: &Graph) -> Result<(), String> {
        let others = |file: &&str| !self.weights.iter().any(|known| known == file);
        match graph.weight_files().into_iter().find(others) {
            Some(file) => Err(format!("expected references to {:?} alone, found {file:?}", self.weights)),
            None => Ok(()),
        }
    }
}

impl Graph {
    /// The files that its weights lie in, as the model file names them.
    pub fn weight_files(&self) -> BTreeSet<&str> {
        let files = self.initializers.values().filter_map(|initializer| match &initializer.data {
            InitializerData::External(location) => Some(location.file.as_str()),
            InitializerData::Inline(_) => None,
        });
        files.collect()
    }
}

impl Port {
    /// The inputs or outputs `ids` of `graph`, in order.
    ///
    /// # Errors
    /// [`OnnxError::Model`] for a value whose type is unknown or none that a part may have at its border.
    pub fn all_of(graph: &Graph, ids: &[ValueId]) -> Result<Vec<Self>, OnnxError> {
        ids.iter().map(|&id| Self::of(graph, id)).collect()
    }

    fn of(graph: &Graph, id: ValueId) -> Result<Self, OnnxError> {
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
        let dim = |dim: &Dim| match dim.as_fixed() {
            Some(size) => PortDim::Fixed(size as u64),
            None => PortDim::Symbol(dim.to_string()),
        };
        Ok(Self { name: value.name.clone(), dtype, shape: ty.shape.0.iter().map(dim).collect() })
    }
}

/// `sample f32 [batch, frames, 4, height, width]`
impl Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dtype = match self.dtype {
            PortType::F32 => "f32",
            PortType::I64 => "i64",
        };
        let shape: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        write!(f, "{} {dtype} [{}]", self.name, shape.join(", "))
    }
}
