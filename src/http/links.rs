//! Consent links, made over the internal listener.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    auth::{AnyCaller, Peer},
    extract::JsonBody,
};
use crate::{broker::LinkRequest, domain::slug::Slug};

/// What a consent link is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeLink {
    /// The connection to authorise; made if it does not exist.
    #[schema(value_type = String, example = "amocrm-shop")]
    connection: Slug,
    /// The client, for a connection that does not exist yet.
    #[schema(value_type = Option<String>, example = "amocrm")]
    client: Option<Slug>,
    /// The scopes to ask for; the connection's unless said otherwise.
    scopes: Option<Vec<String>>,
    /// The account that makes the connection live without confirmation: its id, or another name
    /// it answers to, such as an amoCRM subdomain.
    expected_account: Option<String>,
    /// Where the person may go afterwards: a name in `[return_to]` of the configuration.
    #[schema(value_type = Option<String>)]
    return_to: Option<Slug>,
    /// For the operator's own browser: lives 10 minutes, and needs no confirmation.
    #[serde(default, rename = "self")]
    own_browser: bool,
}

/// A consent link.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Link {
    /// What a person opens; shown once.
    url: String,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// The connection it authorises.
    #[schema(value_type = String)]
    connection: Slug,
}

/// Make a consent link.
#[utoipa::path(
    post, path = "/v1/consent-links", tag = "consent",
    request_body = MakeLink,
    responses(
        (status = 201, description = "Made; the URL is shown once", body = Link),
        (status = 400, description = "`invalid_request`: unknown client or `return_to`", body = Problem),
        (status = 403, description = "`forbidden`: the key lacks the verb `consent`; or `frozen`", body = Problem),
        (status = 404, description = "`not_found`", body = Problem),
        (status = 409, description = "`conflict`: another client's, no consent needed, or quarantined", body = Problem),
        (status = 429, description = "`too_many_requests`: too many links are open", body = Problem),
    ),
    security(("service_key" = []), ("operator_key" = []))
)]
#[expect(clippy::disallowed_methods, reason = "the link is shown once, to whoever made it")]
pub(crate) async fn create(
    State(state): State<AppState>,
    AnyCaller(caller): AnyCaller,
    Peer(peer): Peer,
    JsonBody(body): JsonBody<MakeLink>,
) -> Result<impl IntoResponse, Problem> {
    let request = LinkRequest {
        connection: body.connection,
        client: body.client,
        scopes: body.scopes,
        expected_account: body.expected_account,
        return_to: body.return_to,
        own_browser: body.own_browser,
    };
    let link = state.broker.make_link(&caller, peer, request).await?;
    let link = Link {
        url: link.url.expose_secret().to_owned(),
        expires_at: link.expires_at,
        connection: link.connection,
    };
    Ok((StatusCode::CREATED, super::NO_STORE, Json(link)))
}
