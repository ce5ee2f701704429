//! Videos over HTTP: jobs that outlive the process, the Videos API, the Open Inference Protocol and a web page.

pub mod config;
pub mod health;
pub mod keys;
pub mod kserve;
pub mod models;
pub mod models_api;
pub mod page;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use vldm_runtime::LoadOptions;

pub use config::{Config, Limits};
pub use models::{Engine, Model, Models};

use self::health::Ready;

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
        source: std::io::Error,
    },
    /// The listening socket failed.
    #[error("the server's socket: {0}")]
    Socket(std::io::Error),
}

/// Serves until `stop` comes: then no more work is taken, the running job stops at its next denoising step, and stays
/// queued on disk with everything that is finished.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    config: Config,
    models: Models,
    engine: Engine,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    if models.is_empty() {
        return Err(ServeError::NoModels);
    }
    let address = config.address;
    let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    let ready = Ready::default();
    let app = Router::new().merge(health::router(ready.clone()));
    let app = app.merge(inference(&models, &engine, &ready)).merge(models_api::router(&models)).merge(page::router());
    ready.set(true);
    let stopping = async move {
        stop.await;
        ready.set(false);
    };
    axum::serve(listener, app).with_graceful_shutdown(stopping).await.map_err(ServeError::Socket)
}

/// Each part of each bundle, one by one.
fn inference(models: &Models, engine: &Engine, ready: &Ready) -> Router {
    let bundle =
        |m: &Model| kserve::Bundle { name: m.name.clone(), dir: m.bundle.clone(), manifest: m.manifest.clone() };
    let Engine { backend, threads, lanes, kernels, library, settings, fallback } = engine.clone();
    let options = LoadOptions { threads, lanes, kernels, library, settings, fallback, crew: None };
    let ready = ready.clone();
    kserve::router(
        models.iter().map(bundle).collect(),
        kserve::Engine { backend, options },
        kserve::Limits::default(),
        Arc::new(move || ready.get()),
    )
}
