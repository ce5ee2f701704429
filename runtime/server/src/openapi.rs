//! `GET /openapi.json`: all of the server's paths, what they take and what they answer, as OpenAPI 3.1.
//!
//! It lies beside this file, written by hand; the suite compares it with the routes and with answers of a server.

use axum::Router;
use axum::http::header;
use axum::routing::get;

/// The description.
pub const TEXT: &str = include_str!("openapi.json");

/// `/openapi.json`.
pub fn router() -> Router {
    Router::new().route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], TEXT) }))
}
