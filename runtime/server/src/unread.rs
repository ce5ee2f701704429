//! What a handler leaves unread of a request's body.
//!
//! A server that answers early and closes the connection lets clients lose the answer, or send their next request into a
//! connection that is about to end. So a little of what is left is read and thrown away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tokio::runtime::Handle;
use tokio_stream::{Stream, StreamExt};

/// Bytes that are thrown away; after more the connection ends.
const MOST: usize = 1 << 20;
/// Time for them to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads what is left of the body of a request when its handler has let go of it.
pub async fn discard(request: Request, next: Next) -> Response {
    let keep = |body: Body| {
        if body.is_end_stream() { body } else { Body::from_stream(Unread(Some(body.into_data_stream()))) }
    };
    next.run(request.map(keep)).await
}

/// A body, until it has ended.
struct Unread(Option<BodyDataStream>);

impl Stream for Unread {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let next = ready!(Pin::new(body).poll_next(context));
        if !matches!(next, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(next)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let (Some(mut body), Ok(runtime)) = (self.0.take(), Handle::try_current()) else { return };
        runtime.spawn(tokio::time::timeout(PATIENCE, async move {
            let mut seen = 0;
            while let Some(Ok(bytes)) = body.next().await {
                seen += bytes.len();
                if seen > MOST {
                    break;
                }
            }
        }));
    }
}
