//! `GET /v1/videos/{id}/events`: what happens to a video, as server-sent events.
//!
//! Each event says all there is to say: where the video stands, what each stage has done, which frame is the latest. A client
//! that comes back with `Last-Event-ID` is told the present at once, unless it knows it; a slow one misses what has been
//! overtaken, and nobody waits for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Path, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::access::Caller;
use crate::hub::Hub;
use crate::live::Live;
use crate::problem::Problem;
use crate::videos::shown;

/// Time between two events.
const PAUSE: Duration = Duration::from_millis(200);
/// Time between two looks at a video that does not run.
const WAIT: Duration = Duration::from_millis(500);

/// The route.
pub fn router(hub: Arc<Hub>) -> Router {
    Router::new().route("/v1/videos/{id}/events", get(events)).with_state(hub)
}

async fn events(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    hub.look(&caller.name, &id)?;
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(tell(hub, caller, id, last, send));
    Ok(Sse::new(ReceiverStream::new(receive)).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

async fn tell(
    hub: Arc<Hub>,
    caller: Caller,
    id: String,
    mut last: Option<String>,
    send: mpsc::Sender<Result<Event, Infallible>>,
) {
    while !send.is_closed() {
        let Ok((job, live)) = hub.look(&caller.name, &id) else {
            let gone = Event::default().event("deleted").data(json!({ "id": id }).to_string());
            let _heard = send.send(Ok(gone)).await;
            return;
        };
        let (now, event) = describe(&shown(&hub, &job), live.as_deref(), &id);
        if last.as_ref() != Some(&now) {
            let name = if job.state.is_open() { "progress" } else { "done" };
            if send.send(Ok(Event::default().event(name).id(&now).data(event))).await.is_err() {
                return;
            }
            last = Some(now);
        }
        if !job.state.is_open() || hub.is_stopping() {
            return;
        }
        match live {
            Some(live) => {
                let mut changes = live.listen();
                tokio::time::sleep(PAUSE).await;
                let _changed = tokio::time::timeout(WAIT, changes.changed()).await;
            }
            None => tokio::time::sleep(WAIT).await,
        }
    }
}

/// An event and its id: the digest of what it says, the same from any process.
fn describe(video: &Value, live: Option<&Live>, id: &str) -> (String, String) {
    let mut event = json!({ "video": video });
    if let Some(live) = live {
        let picture = live.picture();
        event["stages"] = json!(picture.stages);
        if let Some(frame) = picture.frame {
            let url = format!("/v1/videos/{id}/content?variant=preview&frame={frame}");
            event["preview"] = json!({"frame": frame, "url": url});
        }
    }
    let text = event.to_string();
    (blake3::hash(text.as_bytes()).to_hex()[..16].to_owned(), text)
}
