//! The broker as an OAuth 2.0 token endpoint: any OAuth library in any language is a client.
//!
//! `grant_type=client_credentials` (RFC 6749 section 4.4); the client is a service, its secret one
//! of the service's keys, sent in the header or in the body (section 2.3.1). The connection is
//! named by `resource` (RFC 8707), or by `scope`. Errors are those of section 5.2.

use std::time::Duration;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use url::Url;
use utoipa::ToSchema;

use super::{AppState, NO_STORE, Problem, auth::peer, extract::MAX_BODY};
use crate::broker::{BrokerError, Caller, TokenRequest};

/// RFC 8414 metadata: what an OAuth library needs to know.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Metadata {
    issuer: String,
    token_endpoint: String,
    grant_types_supported: [&'static str; 1],
    response_types_supported: [&'static str; 1],
    token_endpoint_auth_methods_supported: [&'static str; 2],
}

/// The token request, for the description of the API.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the form that `read_form` reads")]
pub(crate) struct TokenForm {
    /// `client_credentials`
    grant_type: String,
    /// The connection: its URL in this API, or its name.
    resource: Option<String>,
    /// The connection's name, for libraries that cannot send `resource`.
    scope: Option<String>,
    /// The service's name, if not sent by HTTP Basic.
    client_id: Option<String>,
    /// One of the service's keys, if not sent by HTTP Basic.
    client_secret: Option<String>,
}

/// The token response of RFC 6749 section 5.1.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OAuthToken {
    access_token: String,
    token_type: &'static str,
    expires_in: u64,
    /// The connection: what a client may ask this broker for is a connection.
    scope: String,
    /// The provider's name.
    provider: String,
    /// The provider's id of the account, if known.
    account: Option<String>,
    /// Where the account's API is.
    api_base_url: Option<String>,
}

/// The error response of RFC 6749 section 5.2.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OAuthError {
    error: &'static str,
    error_description: String,
    #[serde(skip)]
    status: StatusCode,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl OAuthError {
    fn new(error: &'static str, description: impl Into<String>) -> Self {
        Self {
            error,
            error_description: description.into(),
            status: StatusCode::BAD_REQUEST,
            retry_after: None,
        }
    }

    fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, NO_STORE, Json(self)).into_response();
        if let Some(after) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, after.as_secs().max(1).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Basic realm=\"token-broker\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// A description is plain ASCII without quotes and backslashes (RFC 6749 section 5.2).
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '"' | '\\' | '`' => '\'',
            ' '..='~' => char,
            _ => '?',
        })
        .collect()
}

impl From<BrokerError> for OAuthError {
    fn from(error: BrokerError) -> Self {
        let description = plain(&error.to_string());
        let problem = Problem::from(error.clone());
        match error {
            BrokerError::Unauthorized => {
                let description = "unknown service or wrong key";
                Self::new("invalid_client", description).with_status(StatusCode::UNAUTHORIZED)
            }
            BrokerError::NotFound(_) => Self::new("invalid_target", description),
            // No code of RFC 6749 section 5.2 fits; of section 4.1.2.1, this one does.
            BrokerError::Frozen(_) => {
                Self::new("access_denied", format!("{}: {description}", problem.code))
                    .with_status(StatusCode::FORBIDDEN)
            }
            BrokerError::Internal | BrokerError::Integrity => {
                Self::new("server_error", description)
                    .with_status(StatusCode::INTERNAL_SERVER_ERROR)
            }
            BrokerError::Unavailable { retry_after, .. } => Self {
                retry_after: Some(retry_after),
                ..Self::new("temporarily_unavailable", description)
                    .with_status(StatusCode::SERVICE_UNAVAILABLE)
            },
            BrokerError::Unaudited => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new("temporarily_unavailable", description)
                    .with_status(StatusCode::SERVICE_UNAVAILABLE)
            },
            _ => Self::new("invalid_grant", format!("{}: {description}", problem.code)),
        }
    }
}

/// What this token endpoint offers (RFC 8414).
#[utoipa::path(
    get, path = "/.well-known/oauth-authorization-server", tag = "oauth2",
    responses((status = 200, description = "Metadata", body = Metadata))
)]
pub(crate) async fn metadata(State(state): State<AppState>) -> Json<Metadata> {
    let issuer = state.internal_url.as_str().trim_end_matches('/').to_owned();
    Json(Metadata {
        token_endpoint: format!("{issuer}/oauth2/token"),
        issuer,
        grant_types_supported: ["client_credentials"],
        // There is no authorization endpoint; the list must not be empty for some libraries.
        response_types_supported: ["none"],
        token_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post"],
    })
}

/// The fresh token of a connection, in the words of RFC 6749.
#[utoipa::path(
    post, path = "/oauth2/token", tag = "oauth2",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "A live token", body = OAuthToken),
        (status = 400, description = "RFC 6749 section 5.2, and `invalid_target` of RFC 8707", body = OAuthError),
        (status = 401, description = "`invalid_client`", body = OAuthError),
        (status = 403, description = "`access_denied`: an operator has frozen it", body = OAuthError),
        (status = 503, description = "`temporarily_unavailable`", body = OAuthError),
    )
)]
#[expect(clippy::disallowed_methods, reason = "the answer is what the token is for")]
pub(crate) async fn token(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, OAuthError> {
    let (parts, body) = request.into_parts();
    let form = read_form(&parts.headers, body).await?;
    let (client_id, key) = credentials(&parts.headers, &form)?;
    let Caller::Service(service) = state.broker.authenticate(&key)? else {
        return Err(BrokerError::Unauthorized.into());
    };
    if service.name.as_str() != client_id {
        return Err(BrokerError::Unauthorized.into());
    }
    match form.grant_type.as_deref() {
        Some("client_credentials") => {}
        Some(_) => {
            let advice = "this broker takes grant_type=client_credentials only";
            return Err(OAuthError::new("unsupported_grant_type", advice));
        }
        None => return Err(OAuthError::new("invalid_request", "grant_type is missing")),
    }
    let connection = form.connection(&state.internal_url)?;
    let request = TokenRequest { peer: peer(&parts.extensions), ..TokenRequest::default() };
    let token = state.broker.token(&service, &connection, request).await?;
    let answer = OAuthToken {
        access_token: token.access_token().expose_secret().to_owned(),
        token_type: "Bearer",
        expires_in: token.expires_in,
        scope: connection,
        provider: token.provider.clone(),
        account: token.account().map(str::to_owned),
        api_base_url: token.api_base_url().map(str::to_owned),
    };
    Ok((NO_STORE, [(header::PRAGMA, "no-cache")], Json(answer)).into_response())
}

#[derive(Default)]
pub(super) struct Form {
    pub(super) grant_type: Option<String>,
    resource: Option<String>,
    scope: Option<String>,
    client_id: Option<String>,
    client_secret: Option<SecretString>,
}

impl Form {
    /// The connection that is asked for: by its URL at this broker, or by its name.
    pub(super) fn connection(&self, internal_url: &Url) -> Result<String, OAuthError> {
        let text = match (&self.resource, &self.scope) {
            (Some(resource), _) => resource,
            (None, Some(scope)) => scope,
            (None, None) => {
                let advice = "name the connection in resource or scope";
                return Err(OAuthError::new("invalid_request", advice));
            }
        };
        let name = match Url::parse(text) {
            Ok(url) => Some(url.path())
                .filter(|_| url.origin() == internal_url.origin())
                .and_then(|path| path.strip_prefix("/v1/connections/"))
                .map(str::to_owned),
            Err(_) => Some(text.clone()),
        };
        name.filter(|name| name.parse::<crate::domain::slug::Slug>().is_ok()).ok_or_else(|| {
            let (code, what) = match self.resource {
                Some(_) => ("invalid_target", "resource"),
                None => ("invalid_scope", "scope"),
            };
            let advice = "is neither a connection's name nor its URL in this API";
            OAuthError::new(code, format!("{what} {advice}"))
        })
    }
}

pub(super) async fn read_form(
    headers: &HeaderMap,
    body: axum::body::Body,
) -> Result<Form, OAuthError> {
    let is_form = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
    if !is_form {
        let advice = "send the parameters as application/x-www-form-urlencoded";
        return Err(OAuthError::new("invalid_request", advice));
    }
    let bytes = axum::body::to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| OAuthError::new("invalid_request", "the body is too large"))?;
    let mut form = Form::default();
    for (name, value) in url::form_urlencoded::parse(&bytes) {
        let value = value.into_owned();
        let repeated = match &*name {
            "grant_type" => form.grant_type.replace(value).is_some(),
            "resource" => form.resource.replace(value).is_some(),
            "scope" => form.scope.replace(value).is_some(),
            "client_id" => form.client_id.replace(value).is_some(),
            "client_secret" => form.client_secret.replace(value.into()).is_some(),
            // Unknown parameters are ignored (RFC 6749 section 3.2).
            _ => false,
        };
        if repeated {
            let advice = format!("{name} is sent more than once");
            return Err(OAuthError::new("invalid_request", advice));
        }
    }
    Ok(form)
}

/// The client's id and secret, from the header or from the body but not from both.
pub(super) fn credentials(
    headers: &HeaderMap,
    form: &Form,
) -> Result<(String, SecretString), OAuthError> {
    let basic = headers.get(header::AUTHORIZATION);
    match (basic, &form.client_secret) {
        (Some(_), Some(_)) => {
            let advice = "send the secret in the header or in the body, not in both";
            Err(OAuthError::new("invalid_request", advice))
        }
        (Some(value), None) => {
            let (id, secret) = basic_credentials(value).ok_or(BrokerError::Unauthorized)?;
            if form.client_id.as_ref().is_some_and(|named| *named != id) {
                let advice = "client_id in the body names another client than the header";
                return Err(OAuthError::new("invalid_request", advice));
            }
            Ok((id, secret))
        }
        (None, Some(secret)) => {
            let id = form.client_id.clone().ok_or(BrokerError::Unauthorized)?;
            Ok((id, secret.clone()))
        }
        (None, None) => Err(BrokerError::Unauthorized.into()),
    }
}

pub(super) fn basic_credentials(value: &header::HeaderValue) -> Option<(String, SecretString)> {
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    // Both are form-encoded before they are joined (RFC 6749 section 2.3.1).
    let decode = |text: &str| {
        if text.contains('&') {
            return None;
        }
        let pair = format!("={text}");
        let mut values = url::form_urlencoded::parse(pair.as_bytes());
        values.next().map(|(_, value)| value.into_owned())
    };
    Some((decode(id)?, SecretString::from(decode(secret)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(resource: Option<&str>, scope: Option<&str>) -> Result<String, &'static str> {
        let form = Form {
            resource: resource.map(str::to_owned),
            scope: scope.map(str::to_owned),
            ..Form::default()
        };
        let internal_url = "http://127.0.0.1:8081".parse().unwrap();
        form.connection(&internal_url).map_err(|error| error.error)
    }

    #[test]
    fn the_connection_is_named_by_resource_or_scope() {
        let url = "http://127.0.0.1:8081/v1/connections/avito-main";
        assert_eq!(connection(Some(url), None).as_deref(), Ok("avito-main"));
        assert_eq!(connection(Some("avito-main"), None).as_deref(), Ok("avito-main"));
        assert_eq!(connection(None, Some("avito-main")).as_deref(), Ok("avito-main"));
        assert_eq!(connection(Some(url), Some("other")).as_deref(), Ok("avito-main"));
    }

    #[test]
    fn anything_else_is_refused_in_oauth_words() {
        assert_eq!(connection(None, None), Err("invalid_request"));
        assert_eq!(connection(Some("http://127.0.0.1/v1/services/x"), None), Err("invalid_target"));
        for elsewhere in ["http://127.0.0.1:8081/v1/connections/a/b", "http://h/v1/connections/a"] {
            assert_eq!(connection(Some(elsewhere), None), Err("invalid_target"), "{elsewhere}");
        }
        assert_eq!(connection(None, Some("two words")), Err("invalid_scope"));
    }

    #[test]
    fn basic_credentials_are_two_form_values() {
        let read = |text: &str| {
            let value = format!("basic {}", STANDARD.encode(text));
            basic_credentials(&value.parse().unwrap()).map(|(id, _)| id)
        };
        assert_eq!(read("billing:key").as_deref(), Some("billing"));
        assert_eq!(read("bill%69ng:key").as_deref(), Some("billing"));
        for bad in ["billing", "billing&x:key", "billing&:key", "billing:key&y=1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_description_stays_within_the_characters_of_the_rfc() {
        assert_eq!(plain("connection `a\"b\\c` é"), "connection 'a'b'c' ?");
    }
}
