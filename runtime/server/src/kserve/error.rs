//! What a client is told when it gets no answer: a status and `{"error": …}`.

use std::fmt;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use vldm_runtime::BackendError;

/// Why a request is not served.
///
/// Source: Open Inference Protocol, REST, "Inference Response JSON Error Object": one key `error`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request is wrong, and would be wrong tomorrow.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// What an engine said: of inputs it is the client's matter, otherwise ours. Paths of this machine are not told.
    pub(super) fn engine(model: &str, error: &BackendError) -> Self {
        match error {
            BackendError::UnknownInput { name, expected, .. } => {
                Self::bad(format!("{model}: no input is called `{name}`; its inputs are {expected}"))
            }
            BackendError::InputCount { name, found, .. } => {
                Self::bad(format!("{model}: input `{name}` must be given once, found {found} times"))
            }
            BackendError::Input { name, expected, found, .. } => {
                Self::bad(format!("{model}: input `{name}` must be {expected}, found {found}"))
            }
            BackendError::Dim { name, dim, other, expected, found, .. } => {
                Self::bad(format!("{model}: input `{name}` has {found} {dim}, but {other} has {expected}"))
            }
            _ => {
                tracing::error!(model, error = error as &dyn std::error::Error, "inference failed");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("{model}: the engine failed; see the server's log"),
                )
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(json!({"error": self.message}))).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
