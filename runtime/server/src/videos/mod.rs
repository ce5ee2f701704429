//! The Videos API, in the shape of OpenAI's: `openai` 3.54.0, `resources/videos.py`, `types/video*.py`.

mod content;
mod make;

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::sync::Arc;

use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::hub::Hub;
use crate::job::{Job, State as Standing};
use crate::problem::Problem;

/// Videos on a page of the list, unless the request says otherwise.
const PAGE: usize = 20;
/// Most videos on a page of the list.
const MAX_PAGE: usize = 100;
/// When to ask again for a video that runs, and for one that waits, in milliseconds.
const POLL: (&str, &str) = ("500", "2000");

/// The routes under `/v1/videos`.
pub fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/v1/videos", post(make::create).get(list))
        .route("/v1/videos/extensions", post(make::extend))
        .route("/v1/videos/edits", post(|| refuse("edits: these models make videos and change none")))
        .route("/v1/videos/characters", post(|| refuse("characters: these models know none")))
        .route("/v1/videos/characters/{id}", get(|| refuse("characters: these models know none")))
        .route("/v1/videos/{id}", get(retrieve).delete(delete))
        .route("/v1/videos/{id}/content", get(content::content))
        .route("/v1/videos/{id}/cancel", post(cancel))
        .route("/v1/videos/{id}/remix", post(make::remix))
        .with_state(hub)
}

/// A video as clients see it; a queued one with its place in the queue.
pub(crate) fn shown(hub: &Hub, job: &Job) -> Value {
    placed(job, &if job.state == Standing::Queued { hub.positions() } else { HashMap::new() })
}

fn placed(job: &Job, positions: &HashMap<u64, usize>) -> Value {
    let mut video = job.video();
    if let Some(position) = positions.get(&job.number) {
        video["queue_position"] = (*position).into();
    }
    video
}

fn refuse(what: &'static str) -> Ready<Problem> {
    ready(Problem::new(StatusCode::NOT_IMPLEMENTED, "not_supported", what))
}

async fn retrieve(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let (job, _) = hub.look(&caller.name, &id)?;
    let wait = if job.state == Standing::InProgress { POLL.0 } else { POLL.1 };
    let poll = [(HeaderName::from_static("openai-poll-after-ms"), wait)];
    Ok((poll, Json(shown(&hub, &job))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    order: Order,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Asc,
    #[default]
    Desc,
}

async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(page) = page.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "invalid_query", e.body_text()))?;
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::value("limit", format!("expected 1 to {MAX_PAGE}")));
    }
    let mut jobs = hub.jobs(&caller.name);
    if page.order == Order::Desc {
        jobs.reverse();
    }
    if let Some(after) = &page.after {
        let at = jobs.iter().position(|job| job.id == *after).ok_or_else(|| Problem::no_video(after))?;
        jobs.drain(..=at);
    }
    let has_more = jobs.len() > limit;
    jobs.truncate(limit);
    let positions = hub.positions();
    let id = |job: Option<&Job>| job.map(|job| job.id.clone());
    Ok(Json(json!({
        "object": "list",
        "data": jobs.iter().map(|job| placed(job, &positions)).collect::<Vec<_>>(),
        "first_id": id(jobs.first()),
        "last_id": id(jobs.last()),
        "has_more": has_more,
    })))
}

async fn delete(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let gone = json!({"id": id, "object": "video.deleted", "deleted": true});
    blocking(move || hub.delete(&caller.name, &id)).await?;
    Ok(Json(gone))
}

async fn cancel(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    blocking(move || hub.cancel(&caller.name, &id).map(|job| Json(job.video()))).await
}

/// Work that reads or writes files, away from the threads that answer.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(Problem::internal)?
}

/// The idempotency key of a request, as the store names it.
fn token(headers: &HeaderMap, caller: &Caller, digest: &str) -> Result<Option<(String, String)>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=255).contains(&key.len()));
    let key = key.ok_or_else(|| Problem::value("Idempotency-Key", "expected 1 to 255 visible characters"))?;
    Ok(Some((format!("{}\n{key}", caller.name), digest.to_owned())))
}
