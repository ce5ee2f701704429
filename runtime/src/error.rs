//! What can go wrong between a model file and a tensor that came out of it.

use std::path::PathBuf;

/// The error an engine gives as the reason, whatever its type.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why an engine could not load or run a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The model file (or a weights file beside it) cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not an ONNX model that can be run.
    #[error("{path}: {what}")]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong, where, and what was expected.
        what: String,
    },
    /// The engine refuses a model that is well-formed as far as we can tell.
    #[error("{engine} cannot load {path}")]
    Load {
        /// The engine.
        engine: &'static str,
        /// The file.
        path: PathBuf,
        /// The engine's own words.
        #[source]
        source: Cause,
    },
    /// A name was given that is no input of the model.
    #[error("{path}: no input is called `{name}`; its inputs are {expected}")]
    UnknownInput {
        /// The file.
        path: PathBuf,
        /// The name that was given.
        name: String,
        /// The names there are.
        expected: String,
    },
    /// An input was left out, or given twice.
    #[error("{path}: input `{name}` must be given once, found {found} times")]
    InputCount {
        /// The file.
        path: PathBuf,
        /// The input.
        name: String,
        /// How often it was given.
        found: usize,
    },
    /// An input has another element type or shape than the model declares.
    #[error("{path}: input `{name}` must be {expected}, found {found}")]
    Input {
        /// The file.
        path: PathBuf,
        /// The input.
        name: String,
        /// Declared type and shape.
        expected: String,
        /// Given type and shape.
        found: String,
    },
    /// Two inputs disagree about the size of one named dimension.
    #[error("{path}: input `{name}` has {found} {dim}, but {other} has {expected}")]
    Dim {
        /// The file.
        path: PathBuf,
        /// The input.
        name: String,
        /// The named dimension.
        dim: String,
        /// The input that fixed the size first.
        other: String,
        /// The size there.
        expected: usize,
        /// The size here.
        found: usize,
    },
    /// The engine failed while it ran (or specialised) a model.
    #[error("{engine} cannot run {path} on {shapes}")]
    Run {
        /// The engine.
        engine: &'static str,
        /// The file.
        path: PathBuf,
        /// Input names and shapes.
        shapes: String,
        /// The engine's own words.
        #[source]
        source: Cause,
    },
    /// An engine that lives in a shared library was asked for without one.
    #[error("engine {engine} needs an ONNX Runtime library, and none is named; {has} has it")]
    NoLibrary {
        /// The engine.
        engine: &'static str,
        /// What has it.
        has: &'static str,
    },
    /// The shared library is missing, too old or no such library.
    #[error("{path} is no ONNX Runtime library that can be used; `vldm setup ort` gets one")]
    Library {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        #[source]
        source: Cause,
    },
    /// The execution provider is not part of that ONNX Runtime.
    #[error("engine {engine} needs {file} beside {library}; {has} has it")]
    NoProvider {
        /// The engine.
        engine: &'static str,
        /// ONNX Runtime's library.
        library: PathBuf,
        /// The provider's file.
        file: &'static str,
        /// What has the file.
        has: &'static str,
    },
    /// A library that the execution provider needs is not there.
    #[error("engine {engine} needs {library}, which is not found; {remedy}")]
    ProviderLibrary {
        /// The engine.
        engine: &'static str,
        /// The library.
        library: String,
        /// What has it.
        remedy: &'static str,
    },
    /// The execution provider cannot be used.
    #[error("engine {engine} cannot be used")]
    Provider {
        /// The engine.
        engine: &'static str,
        /// The engine's own words.
        #[source]
        source: Cause,
    },
    /// The engine leaves part of a model to the processor.
    #[error("{engine} does not take all of {path}: {what}; --fallback computes them on the processor")]
    Placement {
        /// The engine.
        engine: &'static str,
        /// The model.
        path: PathBuf,
        /// How many nodes, and which.
        what: String,
    },
    /// A process can hold one ONNX Runtime only.
    #[error("{path} cannot be used: this process already runs ONNX Runtime from {loaded}")]
    OtherLibrary {
        /// The library that was asked for.
        path: PathBuf,
        /// The one in use.
        loaded: PathBuf,
    },
}
