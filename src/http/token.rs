//! The token routes, called by services before each request.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::{IntoParams, ToSchema};

use super::{
    AppState, Problem,
    auth::{Peer, ServiceCaller},
    extract::{JsonBody, PathParam},
};
use crate::broker::{IssuedToken, TokenRequest};

/// How fresh the token should be.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenQuery {
    /// How many seconds the token should live at least; half of its life at the most.
    min_ttl: Option<u64>,
}

/// A token that the provider's API refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rejected {
    /// The `fingerprint` of the answer that the token came in.
    fingerprint: String,
}

/// A live token with all that is needed to use it.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenAnswer<'a> {
    /// The token itself.
    #[serde(serialize_with = "open")]
    #[schema(value_type = String)]
    access_token: &'a SecretString,
    /// Always `Bearer`.
    token_type: &'static str,
    /// How many seconds the token lives from now.
    expires_in: u64,
    /// When the token ends.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// The scopes that the provider granted.
    scope: &'a [String],
    /// The connection's name.
    connection: &'a str,
    /// The provider's name.
    provider: &'a str,
    /// The provider's id of the account, if known.
    account: Option<&'a str>,
    /// Where the account's API is.
    api_base_url: Option<&'a str>,
    /// The headers that carry the token to that API.
    #[serde(serialize_with = "open_all")]
    #[schema(value_type = BTreeMap<String, String>)]
    headers: &'a BTreeMap<String, SecretString>,
    /// What to report the token by, should the API refuse it.
    fingerprint: &'a str,
    /// How many grants the connection has held.
    generation: i64,
    /// Past its planned refresh, or shorter-lived than was asked for.
    stale: bool,
}

impl<'a> TokenAnswer<'a> {
    pub(crate) fn new(token: &'a IssuedToken) -> Self {
        Self {
            access_token: token.access_token(),
            token_type: "Bearer",
            expires_in: token.expires_in,
            expires_at: token.expires_at(),
            scope: token.scopes(),
            connection: token.connection(),
            provider: &token.provider,
            account: token.account(),
            api_base_url: token.api_base_url(),
            headers: token.headers(),
            fingerprint: token.fingerprint(),
            generation: token.generation(),
            stale: token.stale,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the answer is what the token is for")]
fn open<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

#[expect(clippy::disallowed_methods, reason = "the answer is what the token is for")]
fn open_all<S: Serializer>(
    headers: &BTreeMap<String, SecretString>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.iter().map(|(name, value)| (name, value.expose_secret())))
}

/// The fresh token of a connection.
///
/// A live token is answered from memory at once. Without one the answer waits for the refresh;
/// `Prefer: wait=SECONDS` says for how long, and also makes an answer wait whose token would live
/// for less than `min_ttl`.
#[utoipa::path(
    get,
    path = "/v1/connections/{connection}/token",
    tag = "tokens",
    params(("connection" = String, Path, description = "The connection's name"), TokenQuery,
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS` (RFC 7240), 60 at the most")),
    responses(
        (status = 200, description = "A live token", body = TokenAnswer<'_>),
        (status = 400, description = "`invalid_request`", body = Problem),
        (status = 401, description = "`unauthorized`", body = Problem),
        (status = 403, description = "`frozen`", body = Problem),
        (status = 404, description = "`not_found`: unknown, or not yours", body = Problem),
        (status = 409, description = "`not_connected`, `pending_confirm`, `consent_required`", body = Problem),
        (status = 410, description = "`revoked`", body = Problem),
        (status = 500, description = "`integrity_error`", body = Problem),
        (status = 502, description = "`provider_misconfigured`", body = Problem),
        (status = 503, description = "`provider_unavailable`, `audit_unavailable`, with Retry-After", body = Problem),
    ),
    security(("service_key" = []))
)]
pub(crate) async fn token(
    State(state): State<AppState>,
    ServiceCaller(service): ServiceCaller,
    Peer(peer): Peer,
    PathParam(connection): PathParam<String>,
    headers: HeaderMap,
    query: Result<Query<TokenQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|_| {
        Problem::invalid("the query takes `min_ttl`, a whole number of seconds, and nothing else")
    })?;
    let request = TokenRequest {
        min_ttl: Duration::from_secs(query.min_ttl.unwrap_or_default()),
        wait: preferred_wait(&headers),
        peer,
    };
    let token = state.broker.token(&service, &connection, request).await?;
    Ok(answer(&token))
}

/// The provider's API refused this token.
///
/// Forces at most one refresh a minute, and none when the connection holds a newer token by now;
/// then answers as the token route does.
#[utoipa::path(
    post,
    path = "/v1/connections/{connection}/token/rejected",
    tag = "tokens",
    params(("connection" = String, Path, description = "The connection's name")),
    request_body = Rejected,
    responses(
        (status = 200, description = "A live token", body = TokenAnswer<'_>),
        (status = 403, description = "`frozen`", body = Problem),
        (status = 404, description = "`not_found`", body = Problem),
        (status = 409, description = "`not_connected`, `pending_confirm`, `consent_required`", body = Problem),
        (status = 503, description = "`provider_unavailable`, `audit_unavailable`, with Retry-After", body = Problem),
    ),
    security(("service_key" = []))
)]
pub(crate) async fn rejected(
    State(state): State<AppState>,
    ServiceCaller(service): ServiceCaller,
    Peer(peer): Peer,
    PathParam(connection): PathParam<String>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Rejected>,
) -> Result<Response, Problem> {
    let request = TokenRequest { wait: preferred_wait(&headers), peer, ..TokenRequest::default() };
    let token =
        state.broker.token_rejected(&service, &connection, &body.fingerprint, request).await?;
    Ok(answer(&token))
}

fn answer(token: &IssuedToken) -> Response {
    let mut response = Json(TokenAnswer::new(token)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `Prefer: wait=SECONDS` among other preferences (RFC 7240 section 4.3). An unreadable preference
/// is ignored, as that RFC wants.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next()?.trim().split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_read_among_other_preferences() {
        let wait = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(value));
            preferred_wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("wait=10"), Some(10));
        assert_eq!(wait("respond-async, wait=5"), Some(5));
        assert_eq!(wait("WAIT = \"7\"; x=y"), Some(7));
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("return=minimal"), None);
        assert_eq!(preferred_wait(&HeaderMap::new()), None);
    }
}
