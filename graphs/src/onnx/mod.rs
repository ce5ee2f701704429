//! ONNX files: graphs are written to and read from real `.onnx` files, whose weights may lie in other files.
//!
//! Writing is deterministic and replaces the file whole. Reading trusts nothing: every name, index, size and path is
//! checked before it is used, and what the graph type cannot carry is refused by name rather than dropped.

mod attribute;
mod budget;
pub mod proto;
mod read;
mod tensor;
mod write;

use std::path::PathBuf;

pub use read::{ReadOptions, from_bytes, read, read_with};
pub use write::{to_bytes, write};

use crate::ir::VerifyError;
use crate::ops::AttrError;

/// Why an ONNX file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The error concerns this file.
    #[error("{}: {source}", path.display())]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<OnnxError>,
    },
    /// The bytes are no protobuf message of a model.
    #[error("not an ONNX model: {reason}")]
    Decode {
        /// What the decoder met.
        reason: String,
    },
    /// More of something than is accepted.
    #[error("{what}: expected at most {limit}, found {found}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most accepted.
        limit: u64,
        /// What there is, or what there is at least.
        found: u64,
    },
    /// A part of the model is not as it should be.
    #[error("{place}: expected {expected}, found {found}")]
    Model {
        /// Where: a node, value, tensor or function, by name.
        place: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The attributes of a node do not make its operator.
    #[error("node `{node}` ({op}): {source}")]
    Attribute {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// Which attribute, and why.
        source: AttrError,
    },
    /// The graph breaks an invariant.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

impl OnnxError {
    fn model(place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Model { place: place.into(), expected: expected.into(), found: found.into() }
    }

    fn within(self, path: &std::path::Path) -> Self {
        Self::In { path: path.to_path_buf(), source: Box::new(self) }
    }
}

#[cfg(test)]
mod tests;
