//! Ory Hydra's errors, with its own texts. Used by `divar` and `fault`. Source: ory/hydra `fosite/errors.go`, `fosite/access_error.go`.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::json;

/// An error of the token endpoint.
pub(super) struct OAuthError {
    status: StatusCode,
    error: &'static str,
    description: String,
}

impl OAuthError {
    fn new(status: StatusCode, error: &'static str, base: &str, hint: &str) -> Self {
        // Description and hint are joined by a space; double quotes become single.
        let description = format!("{base} {hint}").trim_end().replace('"', "'");
        Self { status, error, description }
    }

    pub(super) fn invalid_client(hint: &str) -> Self {
        const BASE: &str = "Client authentication failed (e.g., unknown client, no client \
                            authentication included, or unsupported authentication method).";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_client", BASE, hint)
    }

    pub(super) fn invalid_grant(hint: &str) -> Self {
        const BASE: &str = "The provided authorization grant (e.g., authorization code, resource \
                            owner credentials) or refresh token is invalid, expired, revoked, does \
                            not match the redirection URI used in the authorization request, or \
                            was issued to another client.";
        Self::new(StatusCode::BAD_REQUEST, "invalid_grant", BASE, hint)
    }

    pub(super) fn invalid_request(hint: &str) -> Self {
        const BASE: &str = "The request is missing a required parameter, includes an invalid \
                            parameter value, includes a parameter more than once, or is otherwise \
                            malformed.";
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", BASE, hint)
    }

    /// Older Hydra, for a refresh token that was used: ory/hydra issue 3004.
    pub(super) fn token_inactive() -> Self {
        const BASE: &str = "Token is inactive because it is malformed, expired or otherwise \
                            invalid. Token validation failed.";
        Self::new(StatusCode::UNAUTHORIZED, "token_inactive", BASE, "")
    }

    pub(super) fn unauthorized_client(hint: &str) -> Self {
        const BASE: &str = "The client is not authorized to request a token using this method.";
        Self::new(StatusCode::BAD_REQUEST, "unauthorized_client", BASE, hint)
    }

    /// Answer to a refresh that lost the race against another one.
    pub(super) fn contended() -> Self {
        Self::invalid_request(
            "Failed to refresh token because of multiple concurrent requests using the same token. \
             Please retry the request.",
        )
    }

    pub(super) fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/json;charset=UTF-8"),
            (header::CACHE_CONTROL, "no-store"),
            (header::PRAGMA, "no-cache"),
        ];
        let body = json!({"error": self.error, "error_description": self.description});
        (self.status, headers, body.to_string()).into_response()
    }
}

pub(super) fn scope_not_allowed(scope: &str) -> String {
    format!(
        "The requested scope is invalid, unknown, or malformed. The OAuth 2.0 Client is not allowed \
         to request scope '{scope}'."
    )
}
