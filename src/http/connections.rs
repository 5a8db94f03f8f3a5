//! Connections, for operators to make and services to look at.

use axum::{Json, extract::State, http::StatusCode};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    auth::{AnyCaller, Operator, Peer},
    extract::{JsonBody, PathParam},
};
use crate::{
    broker::{ConnectionView, Deleted, KeyExchangeRequest, NewConnection, Revocation},
    domain::{connection::GrantType, slug::Slug},
};

/// Every connection that the caller may see.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Connections {
    /// By name.
    connections: Vec<ConnectionView>,
}

/// A connection to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateConnection {
    /// What it will be called: lower-case letters, digits and hyphens.
    #[schema(value_type = String, example = "avito-main")]
    name: Slug,
    /// The client it goes through, as the configuration names it.
    #[schema(value_type = String, example = "avito")]
    client: Slug,
    /// How it obtains its tokens; the client's `grant` unless said otherwise.
    grant_type: Option<GrantType>,
    /// The scopes; the client's unless said otherwise.
    scopes: Option<Vec<String>>,
    /// The account whose consent needs no confirmation.
    expected_account: Option<String>,
    /// For amoCRM accounts from before 2020: an API key in place of a person's consent.
    api_key_exchange: Option<ApiKeyExchange>,
}

/// An API key to be exchanged for a grant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiKeyExchange {
    /// The account's own host, such as `example.amocrm.ru`.
    account_host: String,
    /// The login of the key's owner.
    login: String,
    /// The API key.
    #[schema(value_type = String, write_only)]
    api_key: SecretString,
}

/// The account that an operator accepts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Confirm {
    /// The provider's id of the account; null where the provider cannot say whose it is.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    account: Option<String>,
}

/// The connections that the caller may see, without tokens.
#[utoipa::path(
    get, path = "/v1/connections", tag = "connections",
    responses(
        (status = 200, description = "By name", body = Connections),
        (status = 401, description = "`unauthorized`", body = Problem),
        (status = 503, description = "`provider_unavailable`: no key was confirmed for 15 minutes", body = Problem),
    ),
    security(("service_key" = []), ("operator_key" = []))
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    AnyCaller(caller): AnyCaller,
) -> Json<Connections> {
    Json(Connections { connections: state.broker.views(&caller) })
}

/// One connection, without its tokens.
#[utoipa::path(
    get, path = "/v1/connections/{connection}", tag = "connections",
    params(("connection" = String, Path, description = "The connection's name")),
    responses(
        (status = 200, description = "State, account, scopes, expiry, last error", body = ConnectionView),
        (status = 401, description = "`unauthorized`", body = Problem),
        (status = 503, description = "`provider_unavailable`: no key was confirmed for 15 minutes", body = Problem),
        (status = 404, description = "`not_found`: unknown, or not yours", body = Problem),
    ),
    security(("service_key" = []), ("operator_key" = []))
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    AnyCaller(caller): AnyCaller,
    PathParam(connection): PathParam<String>,
) -> Result<Json<ConnectionView>, Problem> {
    Ok(Json(state.broker.view_for(&caller, &connection).await?))
}

/// Make a connection.
///
/// One that obtains its tokens by client credentials has its first token in the answer's state, or
/// says in `last_error` why not. Any other waits for a consent.
#[utoipa::path(
    post, path = "/v1/connections", tag = "connections",
    request_body = CreateConnection,
    responses(
        (status = 201, description = "Made", body = ConnectionView),
        (status = 400, description = "`invalid_request`: unknown client, or a grant the provider lacks", body = Problem),
        (status = 403, description = "`frozen`, of an API-key exchange", body = Problem),
        (status = 409, description = "`conflict`: the name is taken, or quarantined", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    JsonBody(body): JsonBody<CreateConnection>,
) -> Result<(StatusCode, Json<ConnectionView>), Problem> {
    let new = NewConnection {
        name: body.name,
        client: body.client,
        grant_type: body.grant_type,
        scopes: body.scopes,
        expected_account: body.expected_account,
    };
    let view = match body.api_key_exchange {
        None => state.broker.create_connection(&by, new).await?,
        Some(ApiKeyExchange { account_host, login, api_key }) => {
            let request = KeyExchangeRequest { account_host, login, api_key };
            state.broker.connect_with_api_key(&by, new, request).await?
        }
    };
    Ok((StatusCode::CREATED, Json(view)))
}

/// Refresh now, whatever the schedule says.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/refresh", tag = "connections",
    params(("connection" = String, Path, description = "The connection's name")),
    responses(
        (status = 200, description = "Refreshed", body = ConnectionView),
        (status = 404, description = "`not_found`", body = Problem),
        (status = 409, description = "`not_connected`, `pending_confirm`, `consent_required`", body = Problem),
        (status = 502, description = "`provider_misconfigured`", body = Problem),
        (status = 503, description = "`provider_unavailable`", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn refresh(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    PathParam(connection): PathParam<String>,
) -> Result<Json<ConnectionView>, Problem> {
    Ok(Json(state.broker.refresh_now(&by, &connection).await?))
}

/// Accept the account that consented.
///
/// Naming another account than the one that consented discards its tokens.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/confirm", tag = "connections",
    params(("connection" = String, Path, description = "The connection's name")),
    request_body = Confirm,
    responses(
        (status = 200, description = "The connection is live", body = ConnectionView),
        (status = 400, description = "`invalid_request`: another account consented", body = Problem),
        (status = 403, description = "`forbidden`: the key lacks the verb `confirm`", body = Problem),
        (status = 404, description = "`not_found`", body = Problem),
        (status = 409, description = "`conflict`: nothing waits to be confirmed", body = Problem),
    ),
    security(("service_key" = []), ("operator_key" = []))
)]
pub(crate) async fn confirm(
    State(state): State<AppState>,
    AnyCaller(caller): AnyCaller,
    Peer(peer): Peer,
    PathParam(connection): PathParam<String>,
    JsonBody(body): JsonBody<Confirm>,
) -> Result<Json<ConnectionView>, Problem> {
    let account = body.account.as_deref();
    let view = state.broker.confirm(&caller, peer, &connection, account).await?;
    Ok(Json(view))
}

/// Revoke a connection's tokens, and forget it.
///
/// Nothing of it is served from now on. Where its provider has a revocation endpoint, the tokens are
/// revoked in the background for as long as that takes, and then it is forgotten. Where it has none,
/// or refuses, the connection stays visible without its tokens as `revoked`: a person has to remove
/// the application at the provider, and then to delete the connection once more.
#[utoipa::path(
    delete, path = "/v1/connections/{connection}", tag = "connections",
    params(("connection" = String, Path, description = "The connection's name")),
    responses(
        (status = 200, description = "Gone, or a person's task: `revocation` and `detail` say which", body = Deleted),
        (status = 202, description = "Its tokens are being revoked", body = Deleted),
        (status = 404, description = "`not_found`", body = Problem),
        (status = 409, description = "`conflict`: it is quarantined", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    PathParam(connection): PathParam<String>,
) -> Result<(StatusCode, Json<Deleted>), Problem> {
    let deleted = state.broker.delete_connection(&by, &connection).await?;
    let status = match deleted.revocation {
        Revocation::Revoking => StatusCode::ACCEPTED,
        Revocation::Acknowledged | Revocation::Manual | Revocation::None => StatusCode::OK,
    };
    Ok((status, Json(deleted)))
}
