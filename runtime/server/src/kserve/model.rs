//! A part of a bundle as a model of the protocol.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::StatusCode;
use serde_json::{Value, json};
use vldm_graphs::bundle::{Manifest, Part};
use vldm_runtime::{Tensor, pieces};

use super::Engine;
use super::answer::{Answer, answer};
use super::error::Refusal;
use super::request::{Request, Wanted};
use super::residency::Residency;
use super::signature::Signature;
use super::statistics::{Spent, Statistics};

/// The only version of every model: a bundle does not change while it is served.
pub(super) const VERSION: &str = "1";
/// What runs the models. Source: Triton names ONNX models so; clients choose nothing by it.
const PLATFORM: &str = "onnx_vldm";

/// One part of one bundle.
pub(super) struct Model {
    /// `bundle.part`: part names have no dot, so the last one parts them whatever the bundle is called.
    pub(super) name: String,
    /// Its number, by which [`Residency`] knows it.
    index: usize,
    dir: PathBuf,
    part: Part,
    pub(super) signature: Signature,
    /// Bytes of graph and weights.
    bytes: u64,
    pub(super) statistics: Statistics,
    /// Why the last attempt to load it failed.
    fault: Mutex<Option<String>>,
}

/// A request that has passed every check.
pub(super) struct Job {
    id: Option<String>,
    tensors: Vec<(String, Tensor)>,
    wanted: Wanted,
    /// How long reading and checking took.
    pub(super) input: Duration,
}

impl Model {
    /// The parts of a bundle, numbered from `first`.
    pub(super) fn all(bundle: &str, dir: &Path, manifest: &Manifest, first: usize) -> Vec<Self> {
        let model = |(i, (name, part)): (usize, (&String, &Part))| Self {
            name: format!("{bundle}.{name}"),
            index: first + i,
            dir: dir.to_owned(),
            signature: Signature::of(part),
            bytes: manifest.bytes_of(part),
            part: part.clone(),
            statistics: Statistics::default(),
            fault: Mutex::new(None),
        };
        manifest.parts.iter().enumerate().map(model).collect()
    }

    /// Reads and checks a request; what follows the first `json` bytes of `body` are binary tensors.
    pub(super) fn read(&self, body: &Bytes, json: Option<usize>, most: usize) -> Result<Job, Refusal> {
        let start = Instant::now();
        let Some((json, binary)) = body.split_at_checked(json.unwrap_or(body.len())) else {
            let (expected, found) = (json.unwrap_or_default(), body.len());
            return Err(Refusal::bad(format!(
                "Inference-Header-Content-Length is {expected}, the body has {found} bytes"
            )));
        };
        let request = Request::parse(json)?;
        let wanted = request.wanted(&self.signature)?;
        let tensors = request.tensors(&self.signature, binary, most)?;
        Ok(Job { id: request.id, tensors, wanted, input: start.elapsed() })
    }

    /// Runs a request; the model is loaded when it is not. Blocks as long as the engine does.
    pub(super) fn run(
        &self,
        engine: &Engine,
        residency: &Residency,
        job: Job,
        queue: Duration,
    ) -> Result<Answer, Refusal> {
        if self.bytes > residency.budget() {
            let (name, needs, budget) = (&self.name, self.bytes, residency.budget());
            let why = format!("{name} takes {needs} bytes of memory, more than the server's {budget}");
            return Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, why));
        }
        let load = || pieces::load(engine.backend, &self.dir, &self.part, &engine.options);
        let lease = residency.lease(self.index, self.bytes, load);
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) =
            lease.as_ref().err().map(|_| "cannot be loaded".to_owned());
        let lease = lease.map_err(|e| Refusal::engine(&self.name, &e))?;
        let Job { id, tensors, wanted, input } = job;
        let started = Instant::now();
        let given: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let session = lease.session().ok_or_else(|| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "no model"))?;
        let outputs = session.run(&given).map_err(|e| Refusal::engine(&self.name, &e))?;
        let infer = started.elapsed();
        drop((lease, tensors));
        let started = Instant::now();
        let answer = answer(&self.name, id.as_deref(), (&self.signature.outputs, &outputs), &wanted)?;
        self.statistics.succeeded(Spent { queue, input, infer, output: started.elapsed() });
        Ok(answer)
    }

    /// Model metadata. Source: Open Inference Protocol, "Model Metadata Response JSON Object".
    pub(super) fn metadata(&self) -> Value {
        json!({
            "name": self.name,
            "versions": [VERSION],
            "platform": PLATFORM,
            "inputs": Signature::metadata(&self.signature.inputs),
            "outputs": Signature::metadata(&self.signature.outputs),
        })
    }

    /// Model configuration. Source: Triton's `extension_model_configuration`.
    pub(super) fn config(&self) -> Value {
        json!({
            "name": self.name,
            "platform": PLATFORM,
            "backend": "vldm",
            "max_batch_size": 0,
            "version_policy": {"latest": {"num_versions": 1}},
            "input": Signature::config(&self.signature.inputs),
            "output": Signature::config(&self.signature.outputs),
        })
    }

    /// Why it cannot be used, if it cannot.
    pub(super) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its line of the repository index. Source: Triton's `extension_model_repository`.
    pub(super) fn index(&self) -> Value {
        let fault = self.fault();
        let state = if fault.is_some() { "UNAVAILABLE" } else { "READY" };
        json!({"name": self.name, "version": VERSION, "state": state, "reason": fault.unwrap_or_default()})
    }
}
