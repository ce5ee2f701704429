//! The port: connections, with TLS or without, each within its limits of time, until the server stops.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::tls::Tls;

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after the system could not give a connection, for want of files most often.
const PAUSE: Duration = Duration::from_millis(200);
/// Time that clients have to finish when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Answers with `app` until `stop` comes; requests that run then have a little time to end. The head of a request must
/// arrive within `arrival`, which is also how long a connection may lie idle.
pub(crate) async fn answer(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    app: Router,
    arrival: Duration,
    stop: impl Future<Output = ()>,
) {
    let open = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(greet(stream, tls.clone(), app.clone(), arrival, open.watcher()));
            }
            Err(error) if of_client(&error) => {}
            Err(error) => {
                tracing::error!(target: "vldm::server", %error, "cannot take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(GRACE, open.shutdown()).await.is_err() {
        tracing::info!(target: "vldm::server", "clients that were still connected are left");
    }
}

/// A client that went away before it was greeted.
fn of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn greet(stream: TcpStream, tls: Option<Arc<Tls>>, app: Router, arrival: Duration, watcher: Watcher) {
    // Answers are small and whole; a system that cannot send them at once sends them a little later.
    let _delayed = stream.set_nodelay(true);
    let Some(tls) = tls else { return talk(stream, app, arrival, watcher).await };
    match tokio::time::timeout(HANDSHAKE.min(arrival), tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => talk(stream, app, arrival, watcher).await,
        Ok(Err(error)) => tracing::debug!(target: "vldm::http", %error, "no TLS handshake"),
        Err(_) => tracing::debug!(target: "vldm::http", "a TLS handshake took too long"),
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    arrival: Duration,
    watcher: Watcher,
) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(arrival);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(target: "vldm::http", %error, "a connection ended");
    }
}
