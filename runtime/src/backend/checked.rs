//! The check that every model file passes before an engine sees it.

use std::path::Path;

use vldm_graphs::ir::Graph;
use vldm_graphs::onnx::{self, OnnxError, ReadOptions};

use crate::error::BackendError;

/// Reads the model at `path` as anyone's file is read, with the places of its weights. Engines trust more than they should:
/// what they follow, allocate or crash on is refused here.
///
/// # Errors
/// [`BackendError::Read`] or [`BackendError::Model`].
pub fn check(path: &Path) -> Result<Graph, BackendError> {
    // A bundle that was exported with --link has weights with several names.
    match onnx::read_with(path, ReadOptions { hard_links: true }) {
        Ok(graph) => Ok(graph),
        Err(OnnxError::Io { path, source }) => Err(BackendError::Read { path, source }),
        Err(OnnxError::In { path, source }) => Err(BackendError::Model { path, what: source.to_string() }),
        Err(e) => Err(BackendError::Model { path: path.to_owned(), what: e.to_string() }),
    }
}
