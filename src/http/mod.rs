//! The two listeners: routes, extractors, layers, pages and problems.
//!
//! Handlers extract, call one method of the broker, and render. No route is on both listeners but
//! liveness, so that a mistake in a proxy cannot publish tokens.
//!
//! May use: `broker` and `domain`; never `store` or `provider`. Used by `app`, which serves it.

mod auth;
mod connections;
mod consent;
mod deadline;
mod error;
mod events;
mod extract;
mod freezes;
mod health;
mod links;
mod oauth2;
mod openapi;
pub mod pages;
#[cfg(test)]
mod properties;
pub mod server;
mod services;
mod token;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument as _;
use url::Url;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::{error::Problem, openapi::openapi};
use crate::{
    broker::{Broker, BrokerError},
    clock::Clock,
};

/// Longer than the longest wait for a refresh.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(75);

const NO_STORE: [(HeaderName, HeaderValue); 1] =
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

/// The state of every handler.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The use cases.
    pub broker: Arc<Broker>,
    /// The URL for browsers.
    pub public_url: Url,
    /// The URL for services.
    pub internal_url: Url,
    /// Cancelled when the process begins to end.
    pub draining: CancellationToken,
    /// Measures how long requests take.
    pub clock: Clock,
}

/// The public listener's routes, for browsers and providers.
pub fn public_router(state: AppState) -> Router {
    let router = Router::new()
        .route("/connect/{secret}", get(consent::show).post(consent::begin))
        // `get` would answer HEAD as well, and a callback counts.
        .route("/callback/{client}", get(consent::callback).head(consent::method_not_allowed))
        .route("/health/live", get(health::live))
        .method_not_allowed_fallback(consent::method_not_allowed)
        .fallback(consent::not_found);
    layered(router, &state, consent::late, consent::broken)
        .layer(middleware::map_response(page_headers))
        .with_state(state)
}

/// The internal listener's routes, for services, operators and ops.
pub fn internal_router(state: AppState) -> Router {
    let (router, api) = api_router().split_for_parts();
    let document = openapi::complete(api);
    let router = router
        .route("/openapi.json", get(move || std::future::ready(openapi::answer(&document))))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found);
    let late = || {
        let advice = "the answer took too long; what was begun goes on, ask again in a moment";
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", advice).into_response()
    };
    let broken = || Problem::from(BrokerError::Internal).into_response();
    layered(router, &state, late, broken).with_state(state)
}

/// The routes with their descriptions: the API document is made from the same list.
fn api_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(token::token))
        .routes(routes!(token::rejected))
        .routes(routes!(connections::list, connections::create))
        .routes(routes!(connections::show, connections::delete))
        .routes(routes!(connections::refresh))
        .routes(routes!(connections::confirm))
        .routes(routes!(links::create))
        .routes(routes!(freezes::list, freezes::create))
        .routes(routes!(freezes::delete))
        .routes(routes!(services::list, services::create))
        .routes(routes!(services::show, services::delete))
        .routes(routes!(services::create_key))
        .routes(routes!(services::delete_key))
        .routes(routes!(events::list))
        .routes(routes!(oauth2::metadata))
        .routes(routes!(oauth2::token))
        .routes(routes!(health::health))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
}

/// Adds the layers of both listeners. Each has its own answer to a request that takes too long and
/// to a panic.
fn layered(
    router: Router<AppState>,
    state: &AppState,
    late: fn() -> Response,
    broken: fn() -> Response,
) -> Router<AppState> {
    let in_time = move |request: Request, next: Next| async move {
        timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| late())
    };
    router
        .layer(middleware::from_fn(in_time))
        .layer(CatchPanicLayer::custom(move |_| broken()))
        .layer(middleware::map_response(common_headers))
        .layer(middleware::from_fn_with_state(state.clock.clone(), trace))
}

/// One span a request, named by the matched route and never by the path: a path may hold a secret.
async fn trace(State(clock): State<Clock>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    let span = tracing::debug_span!("http.request", %method, route);
    async move {
        let stopwatch = clock.stopwatch();
        let response = next.run(request).await;
        let duration_ms = u64::try_from(stopwatch.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(status = response.status().as_u16(), duration_ms, "answered");
        response
    }
    .instrument(span)
    .await
}

async fn common_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Headers of every public answer, errors included.
async fn page_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::REFERRER_POLICY).or_insert(HeaderValue::from_static("no-referrer"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    ));
    response
}

async fn not_found(method: Method) -> Problem {
    let detail = format!("there is no such route for {method}; see /openapi.json");
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
}

async fn method_not_allowed(method: Method) -> Problem {
    let detail = format!("this route does not take {method}; see /openapi.json");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
