//! What an operator watches, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use vldm_runtime::cascade::Report;

use crate::hub::Hub;
use crate::problem::Problem;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Status {
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageOf {
    model: String,
    stage: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Held {
    state: &'static str,
}

/// Counters of a server.
pub struct Metrics {
    registry: Registry,
    requests: Family<Status, Counter>,
    seconds: Histogram,
    jobs: Family<Ended, Counter>,
    job_seconds: Histogram,
    queued: Gauge,
    running: Gauge,
    webhooks: Family<Ended, Counter>,
    events: Gauge,
    stage_seconds: Family<StageOf, Counter<f64, AtomicU64>>,
    networks: Family<Held, Gauge>,
    loaded: Counter,
    reused: Counter,
    resident: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vldm");
        let (requests, jobs, webhooks) = (Family::default(), Family::default(), Family::default());
        let (queued, running, events) = (Gauge::default(), Gauge::default(), Gauge::default());
        let seconds = Histogram::new(exponential_buckets(0.001, 4.0, 8));
        let job_seconds = Histogram::new(exponential_buckets(1.0, 4.0, 8));
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register_with_unit("http_request", "Time to an answer's head", Unit::Seconds, seconds.clone());
        registry.register("jobs", "Runs of jobs that ended", jobs.clone());
        registry.register_with_unit("job", "Time of a run of a job", Unit::Seconds, job_seconds.clone());
        registry.register("jobs_queued", "Jobs that wait", queued.clone());
        registry.register("jobs_running", "Jobs that run", running.clone());
        registry.register("webhooks", "Attempts to tell an endpoint of an event", webhooks.clone());
        registry.register("webhooks_waiting", "Events that no endpoint has taken yet", events.clone());
        let stage_seconds = Family::default();
        registry.register_with_unit(
            "stage",
            "Time that lanes were busy with a stage of finished videos",
            Unit::Seconds,
            stage_seconds.clone(),
        );
        let (networks, loaded, reused, resident) =
            (Family::default(), Counter::default(), Counter::default(), Gauge::default());
        let what = "Graphs and weights that jobs use, and that are kept for the next job";
        registry.register_with_unit("networks", what, Unit::Bytes, networks.clone());
        registry.register("networks_loaded", "Networks that were loaded for jobs", loaded.clone());
        registry.register("networks_reused", "Networks that were there when a job wanted them", reused.clone());
        registry.register_with_unit("resident_memory", "Memory of the process", Unit::Bytes, resident.clone());
        Self {
            registry,
            requests,
            seconds,
            jobs,
            job_seconds,
            queued,
            running,
            webhooks,
            events,
            stage_seconds,
            networks,
            loaded,
            reused,
            resident,
        }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, status: u16, seconds: f64) {
        self.requests.get_or_create(&Status { status }).inc();
        self.seconds.observe(seconds);
    }

    /// A run of a job ended.
    pub fn ended(&self, outcome: &str, seconds: f64) {
        self.jobs.get_or_create(&Ended { outcome: outcome.to_owned() }).inc();
        self.job_seconds.observe(seconds);
    }

    /// A video was made.
    pub fn made(&self, model: &str, report: &Report) {
        for stage in &report.stages {
            let of = StageOf { model: model.to_owned(), stage: stage.kind.name().to_owned() };
            self.stage_seconds.get_or_create(&of).inc_by(stage.busy_seconds);
        }
    }

    /// Counts attempts to tell an endpoint of an event, by how they ended.
    pub fn webhooks(&self) -> impl Fn(&str) + Send + use<> {
        let counts = self.webhooks.clone();
        move |outcome| {
            counts.get_or_create(&Ended { outcome: outcome.to_owned() }).inc();
        }
    }

    fn text(&self, hub: &Hub) -> Result<String, Problem> {
        let (queued, running) = hub.counts();
        self.queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.events.set(i64::try_from(hub.events().map_err(Problem::internal)?).unwrap_or(i64::MAX));
        let pool = hub.pool.counts();
        for (state, bytes) in [("used", pool.used_bytes), ("idle", pool.idle_bytes)] {
            self.networks.get_or_create(&Held { state }).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        for (counter, count) in [(&self.loaded, pool.loaded), (&self.reused, pool.reused)] {
            counter.inner().store(count, Ordering::Relaxed);
        }
        if let Some(bytes) = resident() {
            self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(Problem::internal)?;
        Ok(text)
    }
}

/// Memory that this process holds, in bytes, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// `/metrics`.
pub fn router(hub: Arc<Hub>) -> Router {
    let answer = move || {
        let hub = hub.clone();
        async move {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            hub.metrics.text(&hub).map(|text| ([(header::CONTENT_TYPE, kind)], text).into_response())
        }
    };
    Router::new().route("/metrics", get(answer))
}
