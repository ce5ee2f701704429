//! Why a checkpoint cannot be exported.

use std::path::PathBuf;

use vldm_graphs::bundle::BundleError;
use vldm_graphs::families::ConfigError;
use vldm_graphs::nn::BuildError;
use vldm_graphs::onnx::OnnxError;

use crate::layouts::LayoutError;
use crate::lora::LoraError;
use crate::pickled::PickledError;
use crate::safetensors::SafetensorsError;

/// Why a checkpoint cannot be exported. Nothing has been written when it is returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is not JSON.
    #[error("{}: expected JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// No family claims the checkpoint.
    #[error("{}: expected the `_class_name` of {known} in model_index.json, found {found}", path.display())]
    UnknownFamily {
        /// The checkpoint.
        path: PathBuf,
        /// Families there are.
        known: String,
        /// The class named, or that there is none.
        found: String,
    },
    /// A configuration cannot be followed.
    #[error("{}: {source}", path.display())]
    Config {
        /// The checkpoint.
        path: PathBuf,
        /// File, key, expectation and finding.
        source: Box<ConfigError>,
    },
    /// A component folder does not have one clear set of weights.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Weights {
        /// The component's folder, or a file in it.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// No layout names its tensors like this file.
    #[error("{}: expected a checkpoint folder, or one file of: {known}; found {found}", path.display())]
    UnknownLayout {
        /// The file.
        path: PathBuf,
        /// Layouts there are.
        known: String,
        /// One of its tensors.
        found: String,
    },
    /// A file is not what its tensors' names promise.
    #[error("{}: {source}", path.display())]
    Layout {
        /// The file or folder.
        path: PathBuf,
        /// Tensor, expectation and finding.
        source: Box<LayoutError>,
    },
    /// Layers of two checkpoints do not fit each other.
    #[error("{}: {key} is {found}, but the layers that it is to work with have {expected}", path.display())]
    Graft {
        /// The checkpoint whose layers were to be used.
        path: PathBuf,
        /// File and key.
        key: String,
        /// What the other checkpoint has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// A low-rank adaptation cannot be merged.
    #[error("{}: {source}", path.display())]
    Lora {
        /// Its file, or the file of merged tensors.
        path: PathBuf,
        /// Layer, expectation and finding.
        source: Box<LoraError>,
    },
    /// A safetensors file is refused.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// A file of `torch.save` is refused.
    #[error(transparent)]
    Pickled(#[from] PickledError),
    /// A part cannot be built from the weights there are.
    #[error("{}: part `{part}`: {source}", path.display())]
    Build {
        /// The checkpoint.
        path: PathBuf,
        /// The part.
        part: String,
        /// Layer, expectation and finding.
        source: Box<BuildError>,
    },
    /// A part cannot be written as ONNX.
    #[error("part `{part}`: {source}")]
    Onnx {
        /// The part.
        part: String,
        /// Why.
        source: Box<OnnxError>,
    },
    /// The target is there already.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Target {
        /// The target folder.
        path: PathBuf,
        /// What would be fine.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A Triton server takes no tensor without axes where it does not batch.
    #[error("`{port}` of part `{part}`: expected at least one axis, found none; a Triton server cannot be given it")]
    Scalar {
        /// The part.
        part: String,
        /// The input or output.
        port: String,
    },
    /// A file of the checkpoint changed while it was read.
    #[error("{}: it changed while it was exported: expected {expected} bytes, found {found}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Size when it was opened.
        expected: u64,
        /// Size when it was copied.
        found: u64,
    },
    /// A file of a bundle is not what its manifest says.
    #[error("{}: expected BLAKE3 {expected}, found {found}: it has changed since it was exported; export it again", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Digest in the manifest.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// A graph refers to a weight that is not there.
    #[error("{}: weight `{tensor}` does not lie inside the file, or is not as long as its type asks for", path.display())]
    Packed {
        /// The weights file.
        path: PathBuf,
        /// The weight.
        tensor: String,
    },
    /// The manifest cannot be written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}
