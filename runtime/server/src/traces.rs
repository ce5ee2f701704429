//! Traces over OTLP: a span of each request, of each run of its job, and of the stages of that.
//!
//! A request belongs to the trace that its `traceparent` header names, and its job too, whichever server runs it, and when. Without a
//! collector no span is made, and the header's trace is still named in the log.
//!
//! Source: W3C Trace Context; OpenTelemetry's semantic conventions for HTTP spans, and its environment variables.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::extract::{MatchedPath, Request};
use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use ureq::Agent;
use vldm_runtime::cascade::Report;

use crate::job::Job;
use crate::webhooks::agent;

/// Name of the header.
const PARENT: &str = "traceparent";
/// Time for an export, and for the last one. Source: OpenTelemetry, default of `OTEL_EXPORTER_OTLP_TIMEOUT`.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a collector's answer. Source: `opentelemetry-http`, whose own clients read no more.
const ANSWER: u64 = 4 << 20;

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "{address}: {what}; expected the address of a collector that speaks OTLP over HTTP, such as http://localhost:4318"
)]
pub struct TracesError {
    address: String,
    what: String,
}

/// Where traces go; nowhere by default.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<SdkTracerProvider>);

/// The trace of a request, as its header would have it.
#[derive(Debug, Clone, Default)]
pub struct Traced(pub Option<String>);

impl Traces {
    /// Traces go to the collector at this address, under this service's name unless the environment has another.
    ///
    /// # Errors
    /// [`TracesError`] when it is no address. That nobody answers there is no error: the log says so when spans are lost.
    pub fn to(address: &str) -> Result<Self, TracesError> {
        let error = |what: &str| TracesError { address: address.to_owned(), what: what.to_owned() };
        let base = address.trim_end_matches('/');
        let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://"));
        host.filter(|host| !host.is_empty()).ok_or_else(|| error("it is no http or https address"))?;
        let exporter = SpanExporter::builder().with_http().with_http_client(Client(agent(PATIENCE)));
        let exporter =
            exporter.with_endpoint(format!("{base}/v1/traces")).build().map_err(|e| error(&e.to_string()))?;
        let name = Resource::builder().build().get(&"service.name".into()).map(|name| name.to_string());
        let name = name.filter(|name| !name.starts_with("unknown_service")).unwrap_or_else(|| "vldm".to_owned());
        let resource = Resource::builder().with_service_name(name).build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource);
        Ok(Self(Some(provider.build())))
    }

    fn begin(&self, name: String, kind: SpanKind, parent: &Context, attributes: Vec<KeyValue>) -> Context {
        let Some(provider) = &self.0 else { return parent.clone() };
        let tracer = provider.tracer("vldm");
        let span = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        parent.with_span(span.start_with_context(&tracer, parent))
    }

    /// The span of a request. Probes and scrapes have none.
    pub(crate) fn request(&self, request: &Request) -> Context {
        let parent = asked(request.headers());
        let path = request.uri().path();
        if self.0.is_none() || path.starts_with("/health/") || path == "/metrics" {
            return parent;
        }
        let method = request.method().as_str().to_owned();
        let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
        let name = route.as_ref().map_or(method.clone(), |route| format!("{method} {route}"));
        let mut attributes =
            vec![KeyValue::new("http.request.method", method), KeyValue::new("url.path", path.to_owned())];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
        self.begin(name, SpanKind::Server, &parent, attributes)
    }

    /// The span of a run of a job, in the trace of its request.
    pub(crate) fn job(&self, job: &Job) -> Context {
        let attributes =
            vec![KeyValue::new("vldm.job", job.id.clone()), KeyValue::new("vldm.model", job.model.clone())];
        self.begin("job".to_owned(), SpanKind::Consumer, &read(job.trace.as_deref()), attributes)
    }

    /// The spans of the stages of a run that is finished and began at `began`.
    pub(crate) fn stages(&self, job: &Context, began: SystemTime, report: &Report) {
        let Some(provider) = &self.0 else { return };
        let tracer = provider.tracer("vldm");
        let after = |seconds: f64| began + Duration::try_from_secs_f64(seconds).unwrap_or_default();
        for stage in &report.stages {
            let span = tracer.span_builder(stage.kind.name()).with_start_time(after(stage.began)).with_attributes([
                KeyValue::new("vldm.units", stage.units as i64),
                KeyValue::new("vldm.busy_seconds", stage.busy_seconds),
            ]);
            let span = job.with_span(span.start_with_context(&tracer, job));
            span.span().end_with_timestamp(after(stage.ended));
        }
    }

    /// Sends what is left.
    pub(crate) fn end(&self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(PATIENCE)
        {
            tracing::warn!(target: "vldm::server", %error, "the last spans could not be sent");
        }
    }
}

/// Ends the span of a request.
pub(crate) fn answered(span: &Context, status: u16) {
    span.span().set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
    if status >= 500 {
        span.span().set_status(Status::error(""));
    }
    span.span().end();
}

/// Ends the span of a run of a job.
pub(crate) fn ended(span: &Context, outcome: &'static str, failed: bool) {
    span.span().set_attribute(KeyValue::new("vldm.outcome", outcome));
    if failed {
        span.span().set_status(Status::error(outcome));
    }
    span.span().end();
}

/// The trace that headers name.
fn asked(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers))
}

/// The span as a `traceparent` header; nothing where there is no trace.
pub(crate) fn written(span: &Context) -> Option<String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(span, &mut headers);
    headers.remove(PARENT)
}

/// The span of a `traceparent` header.
fn read(text: Option<&str>) -> Context {
    let headers: HashMap<String, String> = text.map(|text| (PARENT.to_owned(), text.to_owned())).into_iter().collect();
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// The number of its trace, for the log; empty where there is none.
pub(crate) fn id(span: &Context) -> String {
    let context = span.span().span_context().clone();
    if context.is_valid() { context.trace_id().to_string() } else { String::new() }
}

/// Sends what is exported. Called on the exporter's own thread, which it may block.
#[derive(Debug)]
struct Client(Agent);

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(
        &self,
        request: opentelemetry_http::Request<Bytes>,
    ) -> Result<opentelemetry_http::Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let answer = self.0.run(opentelemetry_http::Request::from_parts(head, &body[..]))?;
        let (head, mut body) = answer.into_parts();
        let body = body.with_config().limit(ANSWER).read_to_vec()?;
        Ok(opentelemetry_http::Response::from_parts(head, body.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_that_of_the_header_and_nonsense_is_none() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::new();
        headers.insert(PARENT, parent.parse().unwrap());
        assert_eq!(id(&asked(&headers)), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(written(&asked(&headers)).as_deref(), Some(parent));
        assert_eq!(written(&read(Some(parent))).as_deref(), Some(parent));
        for bad in ["", "00-0-0-0", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "\u{7f}"] {
            assert_eq!((id(&read(Some(bad))), written(&read(Some(bad)))), (String::new(), None), "{bad}");
        }
    }

    #[test]
    fn what_is_no_address_is_an_error() {
        for bad in ["localhost:4318", "ftp://localhost", "http://", "http://a b"] {
            let error = Traces::to(bad).unwrap_err().to_string();
            assert!(error.starts_with(bad) && error.contains("OTLP"), "{error}");
        }
    }
}
