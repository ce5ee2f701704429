//! `GET /v1/videos/{id}/content`: the video, as far as it is there, and small pictures of it.

use std::io::SeekFrom;
use std::path::{Path as File, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::blocking;
use crate::access::Caller;
use crate::film;
use crate::hub::Hub;
use crate::job::State as Standing;
use crate::problem::Problem;
use crate::worker::{RUN, VIDEO};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    #[serde(default)]
    variant: Variant,
    /// Says which preview is meant, so that caches tell them apart.
    #[serde(rename = "frame")]
    _frame: Option<usize>,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Variant {
    #[default]
    Video,
    Thumbnail,
    Spritesheet,
    Preview,
}

pub(super) async fn content(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    wish: Result<Query<Wish>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(wish) = wish.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "invalid_query", e.body_text()))?;
    let (job, live) = hub.look(&caller.name, &id)?;
    let folder = hub.folder(&job.id);
    match wish.variant {
        Variant::Video if job.state == Standing::Completed => file(&folder.join(VIDEO), &headers).await,
        Variant::Video if job.state.is_open() => file(&growing(&folder), &headers).await.map_err(|_| not_yet(&id)),
        Variant::Video => Err(Problem::new(StatusCode::NOT_FOUND, "no_content", format!("the video `{id}` has ended"))),
        Variant::Preview => live.and_then(|live| live.preview()).map(png).ok_or_else(|| not_yet(&id)),
        Variant::Thumbnail => {
            let bytes = blocking(move || {
                let first = film::tiles(&folder).ok().and_then(|tiles| tiles.into_iter().next());
                first.map(std::fs::read).transpose().map_err(Problem::internal)
            });
            bytes.await?.map(png).ok_or_else(|| not_yet(&id))
        }
        Variant::Spritesheet => {
            let sheet = blocking(move || Ok(film::sheet(&folder).ok().flatten())).await?;
            sheet.map(png).ok_or_else(|| not_yet(&id))
        }
    }
}

/// The video that plays as far as it has come.
fn growing(folder: &File) -> PathBuf {
    folder.join(RUN).join("scratch").join("growing.mp4")
}

fn not_yet(id: &str) -> Problem {
    let message = format!("there is nothing of the video `{id}` yet");
    Problem { retry_after: Some(1), ..Problem::new(StatusCode::CONFLICT, "video_not_ready", message) }
}

fn png(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], bytes).into_response()
}

async fn file(path: &File, headers: &HeaderMap) -> Result<Response, Problem> {
    let mut file = tokio::fs::File::open(path).await.map_err(Problem::internal)?;
    let length = file.metadata().await.map_err(Problem::internal)?.len();
    let wanted = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let range = wanted.and_then(|text| range(text, length));
    let (status, first, end) = match range {
        None => (StatusCode::OK, 0, length),
        Some((first, end)) if first < end => (StatusCode::PARTIAL_CONTENT, first, end),
        Some(_) => {
            let all = format!("bytes */{length}");
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, all)]).into_response());
        }
    };
    file.seek(SeekFrom::Start(first)).await.map_err(Problem::internal)?;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(end - first), 1 << 16));
    let mut response = (status, body).into_response();
    let head = response.headers_mut();
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    head.insert(header::CONTENT_LENGTH, HeaderValue::from(end - first));
    if status == StatusCode::PARTIAL_CONTENT {
        let part = format!("bytes {first}-{}/{length}", end - 1);
        head.insert(header::CONTENT_RANGE, HeaderValue::from_str(&part).map_err(Problem::internal)?);
    }
    Ok(response)
}

/// First byte and end of a range, no bytes when the file has none such, `None` when it is none of one range: then the
/// whole file is the answer. Source: RFC 9110, 14.1 and 14.2.
fn range(text: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (first, end) = match (first, last) {
        ("", last) => (length.saturating_sub(number(last)?), length),
        (first, "") => (number(first)?, length),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(length))
        }
    };
    Some((first, end.max(first)))
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_are_those_of_the_standard() {
        for (text, expected) in [
            ("bytes=0-9", Some((0, 10))),
            ("bytes=90-", Some((90, 100))),
            ("bytes=-5", Some((95, 100))),
            ("bytes=50-500", Some((50, 100))),
            ("bytes=-500", Some((0, 100))),
            ("bytes=100-", Some((100, 100))),
            ("bytes=-0", Some((100, 100))),
            ("bytes=9-3", None),
            ("bytes=0-1,5-6", None),
            ("bytes=a-b", None),
            ("bytes=99999999999999999999-", None),
            ("chunks=1-2", None),
        ] {
            assert_eq!(range(text, 100), expected, "{text}");
        }
    }
}
