//! Freezes, for operators.

use axum::{Json, extract::State, http::StatusCode};
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
        freeze::{Freeze, FreezeKind},
        slug::Slug,
    },
};

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// What is to be frozen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeFreeze {
    /// What kind of thing it is.
    kind: FreezeKind,
    /// Its name.
    #[schema(value_type = String, example = "avito-main")]
    name: Slug,
    /// Why, in a line for other operators; callers are not told.
    #[schema(max_length = 500)]
    reason: String,
}

/// Everything that is frozen.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FreezeList {
    /// By kind and name.
    freezes: Vec<Freeze>,
}

/// Everything that is frozen.
#[utoipa::path(
    get, path = "/v1/freezes", tag = "freezes",
    responses((status = 200, description = "By kind and name", body = FreezeList)),
    security(("operator_key" = []))
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    _operator: Operator,
) -> Result<Json<FreezeList>, Problem> {
    Ok(Json(FreezeList { freezes: state.broker.freezes().await? }))
}

/// Stop serving a provider, a client, a service or a connection.
///
/// Live tokens included; on this replica at once, on every other one that reaches the database
/// within 5 seconds. Token routes answer 403 `frozen`. Background refreshes go on, so that grants
/// do not die of disuse. A thing that is frozen already keeps its first freeze.
#[utoipa::path(
    post, path = "/v1/freezes", tag = "freezes",
    request_body = MakeFreeze,
    responses(
        (status = 200, description = "It was frozen already, by this freeze", body = Freeze),
        (status = 201, description = "Frozen", body = Freeze),
        (status = 400, description = "`invalid_request`", body = Problem),
        (status = 404, description = "`not_found`: there is no such thing", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    Operator { name: operator, by }: Operator,
    JsonBody(body): JsonBody<MakeFreeze>,
) -> Result<(StatusCode, Json<Freeze>), Problem> {
    let reason = body.reason.trim();
    let length = reason.chars().count();
    if !(1..=MAX_REASON).contains(&length) || reason.contains(char::is_control) {
        return Err(Problem::invalid("`reason` must be a line of 1 to 500 characters"));
    }
    let frozen = state.broker.freeze(body.kind, &body.name, reason, &operator, &by).await;
    let (freeze, is_new) = frozen?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(freeze)))
}

/// Serve it again.
#[utoipa::path(
    delete, path = "/v1/freezes/{kind}/{name}", tag = "freezes",
    params(
        ("kind" = FreezeKind, Path, description = "What kind of thing it is"),
        ("name" = String, Path, description = "Its name"),
    ),
    responses(
        (status = 204, description = "No longer frozen"),
        (status = 404, description = "`not_found`: it is not frozen", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Operator { by, .. }: Operator,
    PathParam((kind, name)): PathParam<(String, String)>,
) -> Result<StatusCode, Problem> {
    let unknown = || BrokerError::NotFound("nothing of that name is frozen".to_owned());
    let kind: FreezeKind = kind.parse().map_err(|_| unknown())?;
    let name: Slug = name.parse().map_err(|_| unknown())?;
    state.broker.unfreeze(kind, &name, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}
