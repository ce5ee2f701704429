//! The Open Inference Protocol (KServe v2) over HTTP: each part of each bundle is a model that can be asked alone.
//!
//! A model is called `bundle.part`: clients such as `tritonclient` quote a name into one segment of the path but leave
//! `/` as it is, so a slash could not be told from the path around it. Tensors travel as JSON or as bytes after it.
//! Models are loaded when they are first asked, within a budget of memory, and run away from the threads that serve.
//!
//! Source: `kserve/open-inference-protocol`, `specification/protocol/inference_rest.md`; of Triton's extensions: binary
//! data, statistics, model configuration and the index of the model repository.

mod answer;
mod error;
mod model;
mod numbers;
mod request;
mod residency;
mod routes;
mod signature;
mod statistics;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::Semaphore;
use vldm_graphs::bundle::Manifest;
use vldm_runtime::{Backend, LoadOptions};

use self::model::Model;
use self::residency::Residency;

/// What runs the models.
#[derive(Clone)]
pub struct Engine {
    /// The engine.
    pub backend: &'static dyn Backend,
    /// How it loads them.
    pub options: LoadOptions,
}

/// A bundle to serve.
pub struct Bundle {
    /// What clients call it.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// What the folder holds.
    pub manifest: Manifest,
}

/// What clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body: usize,
    /// Elements of all inputs of a request together. Networks hold many times as many between their layers.
    pub elements: usize,
    /// Requests that are read, wait or run at once; more are told to come back.
    pub requests: usize,
    /// Time in which a body must arrive.
    pub arrival: Duration,
    /// Bytes of graphs and weights that stay loaded.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 64 << 20, elements: 4 << 20, requests: 16, arrival: Duration::from_mins(1), memory: 8 << 30 }
    }
}

/// Says whether new work is taken.
pub type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

/// What the routes share.
struct Service {
    models: Vec<Arc<Model>>,
    engine: Engine,
    limits: Limits,
    residency: Residency,
    /// One a request, from its first byte to its last.
    places: Arc<Semaphore>,
    /// One an inference; the engine spreads each over its threads.
    turns: Arc<Semaphore>,
    ready: Ready,
}

/// The routes under `/v2`, for the parts of `bundles`.
pub fn router(bundles: Vec<Bundle>, engine: Engine, limits: Limits, ready: Ready) -> Router {
    let mut models = Vec::new();
    for bundle in bundles {
        let parts = Model::all(&bundle.name, &bundle.dir, &bundle.manifest, models.len());
        models.extend(parts.into_iter().map(Arc::new));
    }
    let residency = Residency::new(limits.memory);
    let (places, turns) =
        (Arc::new(Semaphore::new(limits.requests.max(1))), Arc::new(Semaphore::new(engine.options.lanes.max(1))));
    routes::routes(Arc::new(Service { models, engine, limits, residency, places, turns, ready }))
}
