//! What a server serves: models, and the engine that runs them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use vldm_graphs::bundle::Manifest;
use vldm_runtime::cascade::plan::Plan;
use vldm_runtime::{Backend, Settings};

/// A plan and its bundle, opened, checked and ready for the engine.
#[derive(Clone, Debug)]
pub struct Model {
    /// What clients call it.
    pub name: String,
    /// The plan that a request changes.
    pub plan: Plan,
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// What the bundle holds.
    pub manifest: Manifest,
}

/// Models, by name.
#[derive(Clone, Debug, Default)]
pub struct Models(BTreeMap<String, Model>);

impl Models {
    /// The model of a name.
    pub fn get(&self, name: &str) -> Option<&Model> {
        self.0.get(name)
    }

    /// Models in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Model> {
        self.0.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, for messages.
    pub fn names(&self) -> String {
        self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl FromIterator<Model> for Models {
    /// Of two models of one name, the later one stays.
    fn from_iter<I: IntoIterator<Item = Model>>(models: I) -> Self {
        Self(models.into_iter().map(|model| (model.name.clone(), model)).collect())
    }
}

/// What runs networks.
#[derive(Clone)]
pub struct Engine {
    /// The engine.
    pub backend: &'static dyn Backend,
    /// Processor threads in all.
    pub threads: usize,
    /// Units of work side by side.
    pub lanes: usize,
    /// Whether our fused kernels are used.
    pub kernels: bool,
    /// The shared library, for an engine that lives in one.
    pub library: Option<PathBuf>,
    /// What is set about the engine.
    pub settings: Settings,
    /// What the engine's device does not take may be computed on the processor.
    pub fallback: bool,
}
