//! What an operator watches, in Prometheus' text format.

use std::sync::Arc;

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
        Self { registry, requests, seconds, jobs, job_seconds, queued, running, webhooks, events }
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
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(Problem::internal)?;
        Ok(text)
    }
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
