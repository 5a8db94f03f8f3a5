//! Health: for containers, for load balancers, and for people.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::AppState;
use crate::broker::{Health, HealthStatus};

/// How the broker is: for people and monitors.
#[utoipa::path(
    get, path = "/health", tag = "health",
    responses(
        (status = 200, description = "`ok` or `degraded`", body = Health),
        (status = 503, description = "`down`", body = Health),
    )
)]
pub(crate) async fn health(State(state): State<AppState>) -> Response {
    let health = state.broker.health().await;
    let status = match health.status {
        HealthStatus::Ok | HealthStatus::Degraded => StatusCode::OK,
        HealthStatus::Down => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, super::NO_STORE, Json(health)).into_response()
}

/// Whether the process lives.
#[utoipa::path(
    get, path = "/health/live", tag = "health",
    responses((status = 204, description = "It does"))
)]
pub(crate) async fn live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Whether requests should be sent here.
#[utoipa::path(
    get, path = "/health/ready", tag = "health",
    responses((status = 204, description = "They should"), (status = 503, description = "They should not"))
)]
pub(crate) async fn ready(State(state): State<AppState>) -> StatusCode {
    if state.broker.is_ready() && !state.draining.is_cancelled() {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
