//! Paths and handlers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::Service;
use super::answer::{Answer, JSON_LENGTH};
use super::error::Refusal;
use super::model::{Model, VERSION};

/// Extensions that [`server`] announces.
const EXTENSIONS: &[&str] = &["binary_tensor_data", "statistics", "model_configuration", "model_repository(index)"];
/// Most bytes of the body of an index request, which may say one word.
const MAX_INDEX: usize = 4096;

type Shared = State<Arc<Service>>;

pub(super) fn routes(service: Arc<Service>) -> Router {
    let model = Router::new()
        .route("/", get(metadata))
        .route("/ready", get(model_ready))
        .route("/config", get(config))
        .route("/stats", get(statistics))
        .route("/infer", post(infer));
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/repository/index", post(index))
        .nest("/v2/models/{model}", model.clone())
        .nest("/v2/models/{model}/versions/{version}", model)
        .route("/v2/{*rest}", any(nothing))
        .method_not_allowed_fallback(other_method)
        .with_state(service)
}

/// The model that a path names.
struct Asked(Arc<Model>);

impl FromRequestParts<Arc<Service>> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Refusal> {
        let path: Path<HashMap<String, String>> =
            Path::from_request_parts(parts, service).await.map_err(|e| Refusal::bad(e.body_text()))?;
        let name = path.get("model").map_or("", String::as_str);
        let missing = |what: String| Refusal::new(StatusCode::NOT_FOUND, what);
        let model = service.models.iter().find(|model| model.name == name);
        let model = model
            .ok_or_else(|| missing(format!("no model is called {name:?}; POST /v2/repository/index lists them")))?;
        match path.get("version").filter(|version| *version != VERSION) {
            None => Ok(Self(Arc::clone(model))),
            Some(version) => {
                Err(missing(format!("model {name:?} has no version {version:?}; its only one is {VERSION}")))
            }
        }
    }
}

async fn nothing() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no such path of the Open Inference Protocol is served here")
}

async fn other_method() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path is not asked with that method")
}

async fn server() -> Json<Value> {
    Json(json!({"name": "vldm", "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS}))
}

async fn live() -> Json<Value> {
    Json(json!({"live": true}))
}

async fn ready(State(service): Shared) -> Response {
    let ready = (service.ready)();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"live": true, "ready": ready}))).into_response()
}

async fn metadata(Asked(model): Asked) -> Json<Value> {
    Json(model.metadata())
}

async fn config(Asked(model): Asked) -> Json<Value> {
    Json(model.config())
}

async fn model_ready(State(service): Shared, Asked(model): Asked) -> Response {
    let ready = (service.ready)() && model.fault().is_none();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"name": model.name, "ready": ready}))).into_response()
}

async fn statistics(Asked(model): Asked) -> Json<Value> {
    Json(json!({"model_stats": [model.statistics.report(&model.name, VERSION)]}))
}

async fn all_statistics(State(service): Shared) -> Json<Value> {
    let reports: Vec<Value> = service.models.iter().map(|m| m.statistics.report(&m.name, VERSION)).collect();
    Json(json!({"model_stats": reports}))
}

async fn index(State(service): Shared, body: Body) -> Result<Json<Value>, Refusal> {
    let body = to_bytes(body, MAX_INDEX).await.map_err(|e| Refusal::bad(format!("the body: {e}")))?;
    let only_ready = if body.is_empty() {
        false
    } else {
        let value: Value = serde_json::from_slice(&body).map_err(|e| Refusal::bad(format!("the body: {e}")))?;
        value.get("ready").and_then(Value::as_bool).unwrap_or(false)
    };
    let listed = service.models.iter().filter(|model| !only_ready || model.fault().is_none());
    Ok(Json(listed.map(|model| model.index()).collect()))
}

async fn infer(State(service): Shared, Asked(model): Asked, headers: HeaderMap, body: Body) -> Result<Answer, Refusal> {
    let start = Instant::now();
    let answer = inference(&service, &model, &headers, body).await;
    if answer.is_err() {
        model.statistics.failed(start.elapsed());
    }
    answer
}

async fn inference(
    service: &Arc<Service>,
    model: &Arc<Model>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Answer, Refusal> {
    let busy = || Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too many requests at once; come back in a second");
    if !(service.ready)() {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server takes no new work"));
    }
    let place = Arc::clone(&service.places).try_acquire_owned().map_err(|_| busy())?;
    let json = json_length(headers)?;
    let body = arrived(service, headers, body).await?;
    let (asked, most) = (Arc::clone(model), service.limits.elements);
    let job = blocking(move || asked.read(&body, json, most)).await?;
    let queued = Instant::now();
    let turn = Arc::clone(&service.turns).acquire_owned().await.map_err(|_| busy())?;
    let (asked, service, queue) = (Arc::clone(model), Arc::clone(service), queued.elapsed());
    // The permits go along: a client that hangs up does not free what its request still takes.
    let held: [OwnedSemaphorePermit; 2] = [place, turn];
    blocking(move || {
        let answer = asked.run(&service.engine, &service.residency, job, queue);
        drop(held);
        answer
    })
    .await
}

/// Bytes of JSON at the start of the body, when the client says.
fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    if let Some(coding) = headers.get(header::CONTENT_ENCODING).filter(|coding| *coding != "identity") {
        let why = format!("content coding {coding:?} is not read; send the body as it is");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length
        .map(Some)
        .ok_or_else(|| Refusal::bad(format!("Inference-Header-Content-Length: expected bytes, found {value:?}")))
}

/// The whole body, if it is small enough and comes in time.
async fn arrived(service: &Service, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let most = service.limits.body;
    let large = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request has at most {most} bytes"));
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if announced.is_some_and(|length| length > most) {
        return Err(large());
    }
    let body = tokio::time::timeout(service.limits.arrival, to_bytes(body, most)).await;
    let body = body.map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?;
    body.map_err(|_| large())
}

/// Work that holds a thread for a while. A panic is told as an error, and the server lives on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the inference broke off; see the server's log"))
    })
}
