//! `/_simulator/`: the oracle, the clock and the faults over HTTP, for tests in any language.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;

use super::{
    core::Core,
    fault::Fault,
    oracle::{Endpoint, Oracle},
};

pub(super) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/_simulator/oracle", get(oracle))
        .route("/_simulator/clock", post(clock))
        .route("/_simulator/faults", post(faults))
        .with_state(core)
}

async fn oracle(State(core): State<Arc<Core>>) -> Json<Oracle> {
    Json(core.oracle())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_seconds: u32,
}

async fn clock(State(core): State<Arc<Core>>, Json(order): Json<Advance>) -> StatusCode {
    core.advance(Duration::from_secs(u64::from(order.advance_seconds)));
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    fault: Fault,
    #[serde(default = "once")]
    times: u16,
}

fn once() -> u16 {
    1
}

/// The fallback for hosts that are none of the provider's: counts the request.
pub(super) fn elsewhere(core: Arc<Core>) -> Router {
    Router::new().fallback(async move || {
        core.count_request(Endpoint::Elsewhere);
        (StatusCode::NOT_FOUND, "No such simulated host\n")
    })
}

async fn faults(State(core): State<Arc<Core>>, Json(order): Json<Order>) -> StatusCode {
    core.order(&order.fault, usize::from(order.times));
    StatusCode::NO_CONTENT
}
