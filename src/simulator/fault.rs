//! Faults of a token or revocation endpoint that a test orders in advance.

use std::{future, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{hydra::OAuthError, serve::HangUp};

/// A fault of one token or revocation request.
///
/// `processed` says on which side of the state change: with `true` the code or refresh token is
/// spent and the answer lost, with `false` the provider never saw the request.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Fault {
    /// 200 with a page of HTML, as from a firewall or a maintenance screen.
    Html {
        /// On which side of the state change.
        processed: bool,
    },
    /// 200 with no body.
    Empty {
        /// On which side of the state change.
        processed: bool,
    },
    /// 200 with an RFC 6749 error.
    ErrorInOk {
        /// On which side of the state change.
        processed: bool,
    },
    /// 500 with a page of HTML.
    ServerError {
        /// On which side of the state change.
        processed: bool,
    },
    /// The connection closes without a byte of answer.
    Drop {
        /// On which side of the state change.
        processed: bool,
    },
    /// The connection is reset (TCP RST) without a byte of answer.
    Reset {
        /// On which side of the state change.
        processed: bool,
    },
    /// Not a byte of answer, until the client hangs up or the simulator ends.
    Hold {
        /// On which side of the state change.
        processed: bool,
    },
    /// 429 with this `Retry-After`: a number, a date, nonsense.
    Busy {
        /// The header's value.
        retry_after: String,
    },
    /// 503 with this `Retry-After`.
    Overloaded {
        /// The header's value.
        retry_after: String,
    },
    /// 400 `invalid_grant` (RFC 6749 section 5.2) for a grant that lives: the provider is mistaken.
    Refused,
    /// Hydra's 400 `invalid_request` for a refresh that met another one: not processed, try again.
    Contended,
    /// The first half of the JSON, in an answer that is complete for HTTP.
    CutJson,
    /// The head and the first bytes of the body, then the connection closes.
    CutBody {
        /// The number of bytes of the body; if it has no more, they all come but never their end.
        at: usize,
    },
    /// The head and the first bytes of the body, then nothing, until the client hangs up or the
    /// simulator ends.
    Stall {
        /// The number of bytes of the body; if it has no more, they all come but never their end.
        at: usize,
    },
    /// The answer without `access_token`.
    NoAccessToken,
    /// The answer with this `expires_in`: a string, a float, negative, absurd.
    ExpiresIn {
        /// The value in its place.
        value: Value,
    },
    /// The answer with this `scope`; without any if it is null.
    Scope {
        /// The value in its place.
        value: Value,
    },
    /// 200 with this body in place of the true one, which is lost; `{refresh_token}` in it stands for
    /// the refresh token of the true one.
    Body {
        /// The text of the body.
        text: String,
    },
    /// The true answer, once the faults are cleared.
    Late,
    /// The true answer, this much later.
    Slow {
        /// The delay in real time, whatever the simulator's clock says.
        milliseconds: u64,
    },
}

impl Fault {
    /// True if the provider never sees the request.
    pub(super) fn is_before_processing(&self) -> bool {
        match self {
            Self::Html { processed }
            | Self::Empty { processed }
            | Self::ErrorInOk { processed }
            | Self::ServerError { processed }
            | Self::Drop { processed }
            | Self::Reset { processed }
            | Self::Hold { processed } => !processed,
            Self::Busy { .. } | Self::Overloaded { .. } | Self::Refused | Self::Contended => true,
            Self::CutJson
            | Self::CutBody { .. }
            | Self::Stall { .. }
            | Self::NoAccessToken
            | Self::ExpiresIn { .. }
            | Self::Scope { .. }
            | Self::Body { .. }
            | Self::Late
            | Self::Slow { .. } => false,
        }
    }

    /// The answer that arrives in place of the true one. `cleared` changes when the faults are
    /// cleared.
    pub(super) async fn apply(
        self,
        answer: Response,
        mut cleared: watch::Receiver<()>,
    ) -> Response {
        const PAGE: &str = "<!doctype html><title>Please wait</title><h1>Please wait</h1>";
        let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
        match self {
            Self::Html { .. } => (html, PAGE).into_response(),
            Self::Empty { .. } => StatusCode::OK.into_response(),
            Self::ErrorInOk { .. } => {
                axum::Json(json!({"error": "server_error", "error_description": "Try later"}))
                    .into_response()
            }
            Self::ServerError { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, html, PAGE).into_response()
            }
            Self::Drop { .. } => HangUp::Close.into_response(),
            Self::Reset { .. } => HangUp::Reset.into_response(),
            Self::Hold { .. } => future::pending().await,
            Self::Busy { retry_after } => {
                let header = [(header::RETRY_AFTER, retry_after)];
                (StatusCode::TOO_MANY_REQUESTS, header).into_response()
            }
            Self::Overloaded { retry_after } => {
                let header = [(header::RETRY_AFTER, retry_after)];
                (StatusCode::SERVICE_UNAVAILABLE, header).into_response()
            }
            Self::Refused => {
                let body = axum::Json(json!({"error": "invalid_grant"}));
                (StatusCode::BAD_REQUEST, body).into_response()
            }
            Self::Contended => OAuthError::contended().into_response(),
            Self::CutJson => {
                map_body(answer, |body| Body::from(body.slice(..body.len() / 2))).await
            }
            Self::CutBody { at } => map_body(answer, |body| cut(&body, at, hang_up())).await,
            Self::Stall { at } => map_body(answer, |body| cut(&body, at, future::pending())).await,
            Self::NoAccessToken => {
                map_json(answer, |fields| {
                    fields.remove("access_token");
                })
                .await
            }
            Self::ExpiresIn { value } => {
                map_json(answer, |fields| {
                    fields.insert("expires_in".into(), value);
                })
                .await
            }
            Self::Scope { value } => {
                map_json(answer, |fields| match value {
                    Value::Null => drop(fields.remove("scope")),
                    value => drop(fields.insert("scope".into(), value)),
                })
                .await
            }
            Self::Body { text } => {
                map_body(answer, |body| {
                    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let refresh = answer["refresh_token"].as_str().unwrap_or_default();
                    Body::from(text.replace("{refresh_token}", refresh))
                })
                .await
            }
            Self::Late => {
                // An error means that the simulator ends and no client waits any more.
                let _ = cleared.changed().await;
                answer
            }
            Self::Slow { milliseconds } => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                answer
            }
        }
    }
}

/// The same status and headers around another body.
async fn map_body(answer: Response, body: impl FnOnce(Bytes) -> Body) -> Response {
    let (mut parts, old) = answer.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let old = axum::body::to_bytes(old, usize::MAX).await.unwrap_or_default();
    Response::from_parts(parts, body(old))
}

async fn map_json(
    answer: Response,
    change_fields: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> Response {
    map_body(answer, |body| match serde_json::from_slice(&body) {
        Ok(Value::Object(mut fields)) => {
            change_fields(&mut fields);
            Body::from(Value::Object(fields).to_string())
        }
        _ => Body::from(body),
    })
    .await
}

/// The first `at` bytes of the body, followed by `then` in place of the rest.
fn cut(
    body: &Bytes,
    at: usize,
    then: impl Future<Output = Result<Bytes, HangUp>> + Send + 'static,
) -> Body {
    let first = body.slice(..at.min(body.len()));
    Body::from_stream(stream::iter([Ok(first)]).chain(stream::once(then)))
}

/// Hangs up once the bytes before are on their way.
async fn hang_up() -> Result<Bytes, HangUp> {
    tokio::task::yield_now().await;
    Err(HangUp::Close)
}
