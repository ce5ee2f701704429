//! Who asks, and what is written down of it: bearer keys, request ids, one log line a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::hub::Hub;
use crate::keys::{self, Keys};
use crate::problem::Problem;
use crate::traces::{self, Traced};

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Name of the key; empty where none is needed.
    pub name: String,
    /// Priority of its jobs.
    pub priority: i32,
    /// The span of the request, as a `traceparent` header.
    pub trace: Option<String>,
}

/// Lets a request through that has a key, where keys are needed.
pub async fn authorize(State(keys): State<Option<Arc<Keys>>>, mut request: Request, next: Next) -> Response {
    let trace = request.extensions_mut().remove::<Traced>().and_then(|Traced(trace)| trace);
    let caller = match &keys {
        None => Caller { trace, ..Caller::default() },
        Some(keys) => {
            let value = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
            let key = value.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let owner = key.and_then(|(_, key)| keys.owner(key.trim()));
            let Some(owner) = owner else {
                let message = "expected the header `Authorization: Bearer KEY` with a key of this server";
                return Problem::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response();
            };
            Caller { name: owner.name.clone(), priority: owner.priority, trace }
        }
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Gives each request an id and a span, counts it and writes one line about it.
pub async fn record(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> Response {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let began = Instant::now();
    let random = keys::random::<8>().unwrap_or_else(|_| COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let id = format!("req_{}", keys::hex(&random));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = hub.traces.request(&request);
    request.extensions_mut().insert(Traced(traces::written(&span)));
    let mut response = next.run(request).await;
    let (status, seconds) = (response.status().as_u16(), began.elapsed().as_secs_f64());
    hub.metrics.answered(status, seconds);
    traces::answered(&span, status);
    let trace = traces::id(&span);
    tracing::info!(target: "vldm::http", request = id, trace, method = %method, path, status, seconds, "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}
