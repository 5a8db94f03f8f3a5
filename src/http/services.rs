//! Services and their keys, for operators.

use std::collections::BTreeSet;

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    AppState, Problem,
    auth::Operator,
    extract::{JsonBody, PathParam},
};
use crate::{
    broker::BrokerError,
    domain::{
        caller::{Pattern, Service, StoredKey, Verb},
        slug::Slug,
    },
};

/// A service to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateService {
    /// What it will be called; also its `client_id` at `POST /oauth2/token`.
    #[schema(value_type = String, example = "billing")]
    name: Slug,
    /// The connections it may use: names, or beginnings followed by `*`.
    connections: Vec<Pattern>,
    /// What it may do with them; `token` unless said otherwise.
    #[serde(default = "token_only")]
    verbs: BTreeSet<Verb>,
    /// When its key ends; never unless said otherwise.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

fn token_only() -> BTreeSet<Verb> {
    BTreeSet::from([Verb::Token])
}

/// A key to be made for a service that has one.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateKey {
    /// When the key ends; never unless said otherwise.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

/// A service with its keys, which are known by their ids.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ServiceView {
    /// Its name.
    #[schema(value_type = String)]
    name: Slug,
    /// The connections it may use.
    connections: Vec<Pattern>,
    /// What it may do with them.
    verbs: BTreeSet<Verb>,
    /// Its keys.
    keys: Vec<KeyView>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The new key, shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// What is known of a key.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeyView {
    /// The public part of the key.
    id: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it ends; null for never.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

/// Every service.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Services {
    /// By name.
    services: Vec<ServiceView>,
}

impl ServiceView {
    fn new(service: Service, keys: Vec<StoredKey>) -> Self {
        let keys = keys
            .into_iter()
            .map(|key| KeyView {
                id: key.id,
                created_at: key.created_at,
                expires_at: key.expires_at,
            })
            .collect();
        Self {
            name: service.name,
            connections: service.connections,
            verbs: service.verbs,
            keys,
            created_at: service.created_at,
            key: None,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a new key is shown once, to its maker")]
    fn showing(self, key: &SecretString) -> Self {
        Self { key: Some(key.expose_secret().to_owned()), ..self }
    }
}

fn parse(name: &str) -> Result<Slug, Problem> {
    name.parse()
        .map_err(|_| BrokerError::NotFound("there is no service of that name".to_owned()).into())
}

/// Every service, with the ids of its keys.
#[utoipa::path(
    get, path = "/v1/services", tag = "services",
    responses((status = 200, description = "By name", body = Services)),
    security(("operator_key" = []))
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    _operator: Operator,
) -> Result<Json<Services>, Problem> {
    let services = state.broker.services().await?;
    let services =
        services.into_iter().map(|(service, keys)| ServiceView::new(service, keys)).collect();
    Ok(Json(Services { services }))
}

/// One service, with the ids of its keys.
#[utoipa::path(
    get, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "The service's name")),
    responses(
        (status = 200, description = "The service", body = ServiceView),
        (status = 404, description = "`not_found`", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    _operator: Operator,
    PathParam(service): PathParam<String>,
) -> Result<Json<ServiceView>, Problem> {
    let (service, keys) = state.broker.service(&parse(&service)?).await?;
    Ok(Json(ServiceView::new(service, keys)))
}

/// Make a service with its first key, which is shown once.
#[utoipa::path(
    post, path = "/v1/services", tag = "services",
    request_body = CreateService,
    responses(
        (status = 201, description = "Made, with its key", body = ServiceView),
        (status = 400, description = "`invalid_request`", body = Problem),
        (status = 409, description = "`conflict`: the name is taken", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    JsonBody(body): JsonBody<CreateService>,
) -> Result<impl IntoResponse, Problem> {
    let (service, key, stored) = state
        .broker
        .create_service(&by, body.name, body.connections, body.verbs, body.expires_at)
        .await?;
    let view = ServiceView::new(service, vec![stored]).showing(&key);
    Ok((StatusCode::CREATED, super::NO_STORE, Json(view)))
}

/// Make a second key for a service, to replace the first without a gap.
#[utoipa::path(
    post, path = "/v1/services/{service}/keys", tag = "services",
    params(("service" = String, Path, description = "The service's name")),
    request_body = CreateKey,
    responses(
        (status = 201, description = "Made; `key` is shown once", body = ServiceView),
        (status = 404, description = "`not_found`", body = Problem),
        (status = 409, description = "`conflict`: two keys live already", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn create_key(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    PathParam(service): PathParam<String>,
    JsonBody(body): JsonBody<CreateKey>,
) -> Result<impl IntoResponse, Problem> {
    let name = parse(&service)?;
    let (key, _) = state.broker.add_service_key(&by, &name, body.expires_at).await?;
    let (service, keys) = state.broker.service(&name).await?;
    let view = ServiceView::new(service, keys).showing(&key);
    Ok((StatusCode::CREATED, super::NO_STORE, Json(view)))
}

/// End one key of a service.
#[utoipa::path(
    delete, path = "/v1/services/{service}/keys/{key}", tag = "services",
    params(
        ("service" = String, Path, description = "The service's name"),
        ("key" = String, Path, description = "The key's id"),
    ),
    responses(
        (status = 204, description = "Ended"),
        (status = 404, description = "`not_found`", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn delete_key(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    PathParam((service, key)): PathParam<(String, String)>,
) -> Result<StatusCode, Problem> {
    state.broker.delete_service_key(&by, &parse(&service)?, &key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Delete a service with all its keys.
#[utoipa::path(
    delete, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "The service's name")),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "`not_found`", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    PathParam(service): PathParam<String>,
) -> Result<StatusCode, Problem> {
    state.broker.delete_service(&by, &parse(&service)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
