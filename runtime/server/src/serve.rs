//! The server as a whole: routes, the engine's thread, the way it stops.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::{Router, middleware};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use vldm_runtime::LoadOptions;

use crate::access::{authorize, record};
use crate::config::Config;
use crate::health::{self, Ready};
use crate::hub::{Hub, HubError};
use crate::models::{Engine, Model, Models};
use crate::problem::Problem;
use crate::tls::Tls;
use crate::{events, kserve, metrics, models_api, openapi, page, port, unread, videos, worker};

/// Time between two looks for results that have expired.
const EXPIRE: Duration = Duration::from_secs(30);

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// There is nothing to serve.
    #[error("expected at least one plan to serve, found none")]
    NoModels,
    /// The address cannot be used.
    #[error("{address}: {source}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The folder of jobs cannot be used.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A socket, a thread or a signal failed.
    #[error("the server cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn system(doing: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::System { doing, source }
}

/// [`serve`], until the process is asked to end (SIGTERM, Ctrl-C). `listens` is told the address.
///
/// # Errors
/// [`ServeError`].
pub fn run(config: Config, models: Models, engine: Engine, listens: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    tokio.map_err(system("start its threads"))?.block_on(async {
        let signal = asked_to_end()?;
        serve(config, models, engine, listens, signal).await
    })
}

#[cfg(unix)]
fn asked_to_end() -> Result<impl Future<Output = ()> + Send + 'static, ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(system("listen for signals"));
    let (mut term, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn asked_to_end() -> Result<impl Future<Output = ()> + Send + 'static, ServeError> {
    Ok(async {
        // A system without such a signal ends the process in its own way.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// Serves until `stop` comes: then no more work is taken, the running job stops at its next denoising step, and stays
/// queued on disk with everything that is finished. `listens` is told the address.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    mut config: Config,
    models: Models,
    engine: Engine,
    listens: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    if models.is_empty() {
        return Err(ServeError::NoModels);
    }
    let address = config.address;
    let hub = Arc::new(Hub::open(&config, models, engine)?);
    let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    listens(listener.local_addr().map_err(system("tell its address"))?);
    let ready = Ready::default();
    let (arrival, tls) = (config.limits.arrival, config.tls.take().map(Arc::new));
    let app = routes(config, &hub, &ready);
    let runs = hub.clone();
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker::work(&runs));
    let thread = thread.map_err(system("start its engine"))?;
    hub.send_events().map_err(system("start to send events"))?;
    let expires = tokio::spawn(expire(hub.clone()));
    ready.set(true);
    let renews = tls.clone().map(|tls| tokio::spawn(renew(tls)));
    let ends = hub.clone();
    let shutdown = async move {
        stop.await;
        ready.set(false);
        ends.stop();
    };
    port::answer(listener, tls, app, arrival, shutdown).await;
    expires.abort();
    renews.inspect(JoinHandle::abort);
    // The engine stops at its next step; a panic of it has been told already.
    let _ended = tokio::task::spawn_blocking(move || {
        let ended = thread.join();
        hub.traces.end();
        ended
    })
    .await;
    Ok(())
}

/// Reads the certificate again whenever the process is told to (SIGHUP).
#[cfg(unix)]
async fn renew(tls: Arc<Tls>) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return tracing::error!(target: "vldm::server", %error, "cannot listen for SIGHUP"),
    };
    while hangup.recv().await.is_some() {
        match tls.reload() {
            Ok(()) => tracing::info!(target: "vldm::server", "the certificate was read again"),
            Err(error) => tracing::error!(target: "vldm::server", %error, "the certificate stays as it was"),
        }
    }
}

/// A system without such a signal reads it with the next start.
#[cfg(not(unix))]
async fn renew(_: Arc<Tls>) {}

async fn expire(hub: Arc<Hub>) {
    let mut times = tokio::time::interval(EXPIRE);
    loop {
        times.tick().await;
        let hub = hub.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || hub.expire()).await {
            tracing::error!(target: "vldm::server", %error, "cannot remove what has expired");
        }
    }
}

/// All routes; those that need a key come first.
fn routes(config: Config, hub: &Arc<Hub>, ready: &Ready) -> Router {
    let (keys, memory) = (config.keys.map(Arc::new), config.memory);
    let guarded = Router::new()
        .merge(videos::router(hub.clone()))
        .merge(events::router(hub.clone()))
        .merge(metrics::router(hub.clone()))
        .merge(inference(hub, memory, ready))
        .merge(models_api::router(&hub.models))
        .layer(middleware::from_fn_with_state(keys, authorize));
    let nothing = || async { Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address") };
    Router::new()
        .merge(guarded)
        .merge(page::router())
        .merge(openapi::router())
        .merge(health::router(ready.clone()))
        .fallback(nothing)
        .layer(middleware::from_fn_with_state(hub.clone(), record))
        .layer(middleware::from_fn(unread::discard))
}

/// Each part of each bundle, one by one.
fn inference(hub: &Hub, memory: u64, ready: &Ready) -> Router {
    let bundle =
        |m: &Model| kserve::Bundle { name: m.name.clone(), dir: m.bundle.clone(), manifest: m.manifest.clone() };
    let Engine { backend, threads, lanes, kernels, library, settings, fallback } = hub.engine.clone();
    let options = LoadOptions { threads, lanes, kernels, library, settings, fallback, profile: None, crew: None };
    let ready = ready.clone();
    kserve::router(
        hub.models.iter().map(bundle).collect(),
        kserve::Engine { backend, options },
        kserve::Limits { memory, ..kserve::Limits::default() },
        Arc::new(move || ready.get()),
    )
}
