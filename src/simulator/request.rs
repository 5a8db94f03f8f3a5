//! Parsing of a client's requests, as strict as the providers' own.

use std::convert::Infallible;

use axum::{
    body::Bytes,
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{core::Core, oracle::Endpoint};

/// Parameters of a query or a body, in the order sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    fn of_form(text: &[u8]) -> Self {
        Self(url::form_urlencoded::parse(text).into_owned().collect())
    }

    fn of_json(text: &[u8]) -> Option<Self> {
        let Ok(Value::Object(fields)) = serde_json::from_slice(text) else { return None };
        let text = |(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        };
        Some(Self(fields.into_iter().map(text).collect()))
    }

    /// A parameter that is there and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(sent, _)| sent == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The parameters of the query.
impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of_form(parts.uri.query().unwrap_or_default().as_bytes()))
    }
}

/// The encoding that a request names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encoding {
    Form,
    Json,
    Other,
}

/// A request to a token endpoint.
#[derive(Debug)]
pub(super) struct TokenRequest {
    pub encoding: Encoding,
    pub params: Params,
    /// The user and password of HTTP Basic.
    pub basic: Option<(String, String)>,
}

impl TokenRequest {
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = content_type.and_then(|value| value.split(';').next()).map(str::trim);
        let (encoding, params) = match media_type {
            Some("application/x-www-form-urlencoded") => (Encoding::Form, Params::of_form(body)),
            Some("application/json") => (Encoding::Json, Params::of_json(body).unwrap_or_default()),
            _ => (Encoding::Other, Params::default()),
        };
        Self { encoding, params, basic: basic(headers) }
    }
}

/// The user and password of HTTP Basic, form-decoded as RFC 6749 2.3.1 has it.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    let text = scheme
        .eq_ignore_ascii_case("basic")
        .then(|| STANDARD.decode(encoded.trim()).ok())
        .flatten()?;
    let text = String::from_utf8(text).ok()?;
    let (user, password) = text.split_once(':')?;
    let decoded = |text: &str| {
        let pair = format!("v={}", text.replace('&', "%26"));
        Params::of_form(pair.as_bytes()).get("v").unwrap_or_default().to_owned()
    };
    Some((decoded(user), decoded(password)))
}

/// The token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// One request to a token endpoint: counted, then answered or hit by the fault ordered for it.
///
/// `answer` is all or nothing and never waits, so a client that hangs up cannot split it.
pub(super) async fn token(
    core: &Core,
    headers: &HeaderMap,
    body: Bytes,
    answer: impl FnOnce(&TokenRequest) -> Response,
) -> Response {
    let request = TokenRequest::read(headers, &body);
    {
        let mut ledger = core.ledger();
        ledger.count_request(Endpoint::Token);
        for name in ["code", "refresh_token"] {
            if let Some(text) = request.params.get(name) {
                ledger.presented(text, Endpoint::Token);
            }
        }
    }
    match core.next_fault() {
        None => answer(&request),
        Some((fault, cleared)) if fault.is_before_processing() => {
            fault.apply(Response::default(), cleared).await
        }
        Some((fault, cleared)) => fault.apply(answer(&request), cleared).await,
    }
}
