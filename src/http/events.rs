//! The audit trail, for operators.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{AppState, NO_STORE, Problem, auth::Operator};
use crate::audit::StoredEvent;

/// The most events that an answer holds.
const MAX_EVENTS: u32 = 1_000;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// The `next_after` of the answer before; from the beginning without it.
    #[serde(default)]
    #[param(minimum = 0)]
    after: u64,
    /// How many at the most, from 1 to 1000.
    #[serde(default = "usual")]
    #[param(minimum = 1, maximum = 1000)]
    limit: u32,
}

fn usual() -> u32 {
    100
}

/// A page of the audit trail.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Events {
    /// In the order in which they came into the database, which is not quite that of `at`.
    events: Vec<StoredEvent>,
    /// What to ask for next, now or later: nothing is missed between.
    next_after: i64,
}

/// The audit trail, a page at a time.
///
/// Each replica adds its records about a second after what they are about. An empty page is the end
/// for now; asked again with its `next_after`, it has what has come since.
#[utoipa::path(
    get, path = "/v1/events", tag = "audit",
    params(EventsQuery),
    responses(
        (status = 200, description = "The next events, perhaps none", body = Events),
        (status = 400, description = "`invalid_request`", body = Problem),
        (status = 401, description = "`unauthorized`", body = Problem),
        (status = 503, description = "`provider_unavailable`: no key was confirmed for 15 minutes", body = Problem),
        (status = 403, description = "`forbidden`: the key is a service's", body = Problem),
    ),
    security(("operator_key" = []))
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    _operator: Operator,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    let fits = |Query(query): Query<EventsQuery>| {
        let after = i64::try_from(query.after).ok()?;
        (1..=MAX_EVENTS).contains(&query.limit).then_some((after, query.limit))
    };
    let (after, limit) = query.ok().and_then(fits).ok_or_else(|| {
        Problem::invalid(
            "the query takes `after`, the `next_after` of the answer before, and `limit`, from 1 to \
             1000, and nothing else",
        )
    })?;
    let events = state.broker.events(after, limit).await?;
    let next_after = events.last().map_or(after, |event| event.seq);
    Ok((NO_STORE, Json(Events { events, next_after })))
}
