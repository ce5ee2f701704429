//! Engines: what loads a model file and runs it. To add one, write a [`Backend`] in a
//! file beside this one and name it in [`BACKENDS`].

#[cfg(any(feature = "ort", feature = "tract"))]
mod checked;
#[cfg(any(feature = "ort", feature = "tract"))]
mod native;
#[cfg(feature = "ort")]
mod ort;
mod port;
mod profile;
mod settings;
#[cfg(test)]
mod tests;
#[cfg(feature = "tract")]
mod tract;

use std::path::{Path, PathBuf};

pub use port::{Axis, Port, arrange};
pub use profile::Profile;
pub use settings::{Kind, Setting, SettingError, Settings};

use crate::crew::Crew;
use crate::error::BackendError;
use crate::tensor::Tensor;

/// Every engine of this build, the default first.
pub static BACKENDS: &[&dyn Backend] = &[
    #[cfg(feature = "tract")]
    &tract::Tract,
    #[cfg(feature = "ort")]
    &ort::ENGINES[0],
    #[cfg(feature = "ort")]
    &ort::ENGINES[1],
    #[cfg(feature = "ort")]
    &ort::ENGINES[2],
    #[cfg(feature = "ort")]
    &ort::ENGINES[3],
    #[cfg(feature = "ort")]
    &ort::ENGINES[4],
];

/// An engine.
pub trait Backend: Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// Does it live in a shared library that is not part of this program?
    fn needs_library(&self) -> bool {
        false
    }

    /// What can be set about it.
    fn settings(&self) -> &'static [Setting] {
        &[]
    }

    /// Does it build networks, set like this, for a range of sizes that [`LoadOptions::profile`] tells it?
    fn is_built_for_sizes(&self, _settings: &Settings) -> bool {
        false
    }

    /// Is it there, and which version? `library` names the shared library of an engine
    /// that lives in one; other engines ignore it.
    fn probe(&self, library: Option<&Path>) -> Probe;

    /// Loads a model file; weights in other files are looked up beside it.
    ///
    /// # Errors
    /// [`BackendError`] when the engine is not there, or the file is not a model that it runs.
    fn load(&self, model: &Path, o: &LoadOptions) -> Result<Box<dyn Session>, BackendError>;

    /// How many units of work to run side by side on `threads` processor threads.
    fn lanes(&self, threads: usize) -> usize;
}

/// A loaded model. It takes inputs of any shape that its signature allows and may be
/// called from several threads at once.
pub trait Session: Send + Sync {
    /// Inputs in the order of the file.
    fn inputs(&self) -> &[Port];

    /// Outputs in the order of the file.
    fn outputs(&self) -> &[Port];

    /// Evaluates the model: every input once, by name, in any order; outputs in the
    /// order of [`outputs`](Self::outputs).
    ///
    /// # Errors
    /// [`BackendError`] when an input is missing, unknown, or of another type or shape than
    /// declared, or when the engine fails.
    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError>;
}

/// How to load a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Processor threads in all, at least 1.
    pub threads: usize,
    /// How many callers will use the session at once, at least 1.
    pub lanes: usize,
    /// Use our fused kernels (otherwise the bodies of the functions they stand for).
    pub kernels: bool,
    /// The shared library, for an engine that lives in one.
    pub library: Option<PathBuf>,
    /// What is set about the engine.
    pub settings: Settings,
    /// What the engine's device does not take may be computed on the processor; it is an error otherwise.
    pub fallback: bool,
    /// Sizes that the session will be asked with, where they are known.
    pub profile: Option<Profile>,
    /// Processors that several sessions and their callers share, for an engine without threads of its own; none: this
    /// session has `threads` to itself.
    pub crew: Option<Crew>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            lanes: 1,
            kernels: true,
            library: None,
            settings: Settings::default(),
            fallback: false,
            profile: None,
            crew: None,
        }
    }
}

/// What `vldm doctor` says of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The version, when the engine can be used.
    pub version: Option<String>,
    /// One sentence: where it is, or what is missing and the command that gets it.
    pub detail: String,
}

impl Probe {
    /// Can models be loaded?
    pub fn available(&self) -> bool {
        self.version.is_some()
    }
}

/// The engine of that name, if this build has it.
pub fn backend(name: &str) -> Option<&'static dyn Backend> {
    BACKENDS.iter().copied().find(|b| b.name() == name)
}
