//! Why a checkpoint cannot be exported.

use std::path::PathBuf;

use vldm_graphs::bundle::BundleError;
use vldm_graphs::families::ConfigError;
use vldm_graphs::nn::BuildError;
use vldm_graphs::onnx::OnnxError;

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
    /// A safetensors file is refused.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
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
    /// The manifest cannot be written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}
