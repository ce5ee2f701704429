//! Videos over HTTP: jobs that outlive the process, the Videos API, the Open Inference Protocol and a web page.

mod access;
mod ask;
mod book;
pub mod config;
mod events;
mod film;
mod fit;
mod folders;
pub mod health;
mod hub;
mod job;
pub mod keys;
pub mod kserve;
mod live;
mod metrics;
pub mod models;
pub mod models_api;
pub mod openapi;
pub mod page;
mod port;
mod problem;
mod queue;
mod serve;
mod store;
mod tls;
mod unread;
mod videos;
mod webhooks;
mod worker;

pub use config::{Config, Limits, Workers};
pub use hub::HubError;
pub use models::{Engine, Model, Models};
pub use serve::{ServeError, run, serve};
pub use store::StoreError;
pub use tls::{Tls, TlsError};
pub use webhooks::{Endpoint, WebhookError};
