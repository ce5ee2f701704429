//! What is answered when a request cannot be served, in the shape that clients of the Videos API expect.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An answer that says what is wrong with a request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Status of the answer.
    pub status: StatusCode,
    /// What is wrong, for people.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// What is wrong, for programs.
    pub code: &'static str,
    /// Seconds after which to ask again.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem with the request as a whole.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// A value that cannot be taken.
    pub fn value(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", message) }
    }

    /// A field that means nothing here.
    pub fn unknown(names: &[String], known: &str) -> Self {
        let message = format!("unknown fields: {} (known here: {known})", names.join(", "));
        Self {
            param: names.first().cloned(),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_parameter", message)
        }
    }

    /// There is no such video, or it is somebody else's.
    pub fn no_video(id: &str) -> Self {
        let shown: String = id.chars().take(64).collect();
        Self {
            param: Some("video_id".to_owned()),
            ..Self::new(StatusCode::NOT_FOUND, "video_not_found", format!("no video has the id `{shown}`"))
        }
    }

    /// There is no room now.
    pub fn busy(message: impl Into<String>, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message) }
    }

    /// The server failed. What happened is in its log, not in the answer.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(target: "vldm::server", %error, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the server failed; its log says why")
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let error = json!({"message": self.message, "type": self.kind(), "param": self.param, "code": self.code});
        let mut response = (self.status, Json(json!({ "error": error }))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
