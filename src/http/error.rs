//! Problems (RFC 9457): the one table from errors to statuses and stable codes.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::broker::BrokerError;

/// A problem as RFC 9457 has it, with the stable `code` that programs should look at.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the code says which problem it is.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The status in words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Stable and machine-readable.
    pub code: &'static str,
    /// One sentence: what is wrong and what to do.
    pub detail: String,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem of the given status.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// Bad input.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        use StatusCode as S;
        let detail = error.to_string();
        let (status, code) = match &error {
            BrokerError::Invalid(_) => (S::BAD_REQUEST, "invalid_request"),
            BrokerError::Unauthorized => (S::UNAUTHORIZED, "unauthorized"),
            BrokerError::Forbidden(_) => (S::FORBIDDEN, "forbidden"),
            BrokerError::Frozen(_) => (S::FORBIDDEN, "frozen"),
            BrokerError::NotFound(_) => (S::NOT_FOUND, "not_found"),
            BrokerError::Conflict(_) => (S::CONFLICT, "conflict"),
            BrokerError::NotConnected => (S::CONFLICT, "not_connected"),
            BrokerError::PendingConfirm => (S::CONFLICT, "pending_confirm"),
            BrokerError::ConsentRequired { .. } => (S::CONFLICT, "consent_required"),
            BrokerError::Gone(_) => (S::GONE, "gone"),
            BrokerError::Revoked => (S::GONE, "revoked"),
            BrokerError::TooMany(_) => (S::TOO_MANY_REQUESTS, "too_many_requests"),
            BrokerError::Integrity => (S::INTERNAL_SERVER_ERROR, "integrity_error"),
            BrokerError::Internal => (S::INTERNAL_SERVER_ERROR, "internal"),
            BrokerError::Misconfigured(_) => (S::BAD_GATEWAY, "provider_misconfigured"),
            BrokerError::Unavailable { .. } => (S::SERVICE_UNAVAILABLE, "provider_unavailable"),
            BrokerError::Unaudited => (S::SERVICE_UNAVAILABLE, "audit_unavailable"),
        };
        let mut problem = Self::new(status, code, detail);
        problem.retry_after = match error {
            BrokerError::Unavailable { retry_after, .. } => Some(retry_after),
            BrokerError::Unaudited => Some(Duration::from_secs(1)),
            BrokerError::TooMany(_) => Some(Duration::from_mins(1)),
            _ => None,
        };
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = retry_after {
            headers.insert(header::RETRY_AFTER, after.as_secs().max(1).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"token-broker\""),
            );
        }
        response
    }
}
