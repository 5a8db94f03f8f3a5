//! Simulated Avito: the site with the consent page on `localhost`, the API on `127.0.0.1`.
//!
//! Not verified by any source, and so ours: the form of a denial, every status and body of the
//! token endpoint but 200, and that a client-credentials token leaves older ones alive.

use std::sync::Arc;

use axum::{
    Form, Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{
    core::Core,
    ledger::{Authorisation, Pair},
    oracle::Endpoint,
    page::{self, Choice, Consent, Decision, Verdict},
    request::{self, Encoding, Params, TokenRequest, bearer},
    rotation::Rotation,
    settings::{
        Account, AvitoSettings, ErrorStyle, OldRefreshToken, RedirectUriMismatch, SpaceScopes,
    },
    shape,
};

#[derive(Debug)]
pub(super) struct Avito {
    pub core: Arc<Core>,
    pub settings: AvitoSettings,
}

pub(super) fn rotation(settings: &AvitoSettings) -> Rotation {
    match settings.old_refresh_token {
        OldRefreshToken::Dies => Rotation::SINGLE_USE,
        OldRefreshToken::Stays => Rotation::ALL_LIVE,
    }
}

pub(super) fn site(avito: Arc<Avito>) -> Router {
    Router::new()
        .route("/oauth", get(consent_page).post(decide))
        .fallback(|| async { something_went_wrong(StatusCode::NOT_FOUND) })
        .with_state(avito)
}

pub(super) fn api(avito: Arc<Avito>) -> Router {
    Router::new()
        .route("/token", post(token_without_slash))
        .route("/token/", post(token))
        .route("/core/v1/accounts/self", get(account))
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        .with_state(avito)
}

/// The answer of Kong, the gateway, on every unknown path.
async fn no_route() -> Response {
    let body = json!({"message": "no Route matched with those values"});
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// A wrong client or scope ends here: there is no callback at all.
fn something_went_wrong(status: StatusCode) -> Response {
    page::problem(status, "Avito", "Something went wrong", "Please try again later.")
}

/// An authorisation request that Avito would show to a person.
struct Asked {
    scopes: Vec<String>,
    state: Option<String>,
    redirect_uri: String,
}

impl Avito {
    fn asked(&self, query: &Params) -> Option<Asked> {
        let settings = &self.settings;
        let redirect_uri = settings.redirect_uri.clone()?;
        let mismatch = query.get("redirect_uri").is_some_and(|sent| sent != redirect_uri);
        if mismatch && settings.redirect_uri_mismatch == RedirectUriMismatch::Refuse {
            return None;
        }
        if !query.is("response_type", "code") || !query.is("client_id", &settings.client_id) {
            return None;
        }
        let separators: &[char] = match settings.space_scopes {
            SpaceScopes::Refuse => &[','],
            SpaceScopes::Split => &[',', ' '],
        };
        let scopes: Vec<_> = query.get("scope")?.split(separators).map(str::to_owned).collect();
        let approved = scopes.iter().all(|scope| settings.scopes.contains(scope));
        approved.then(|| Asked {
            scopes,
            state: query.get("state").map(str::to_owned),
            redirect_uri,
        })
    }

    fn client_is_ours(&self, params: &Params) -> bool {
        params.is("client_id", &self.settings.client_id)
            && params.is("client_secret", &self.settings.simulated_client_secret)
    }

    fn answer(&self, request: &TokenRequest) -> Response {
        let answer = match request.encoding {
            Encoding::Form if self.client_is_ours(&request.params) => self.grant(&request.params),
            Encoding::Form => Err(("invalid_client", "Client authentication failed")),
            _ => Err(("invalid_request", "The body must be form-encoded")),
        };
        match answer {
            Ok(grant) => Json(grant).into_response(),
            Err((error, description)) => {
                let status = match (self.settings.error_style, error) {
                    (ErrorStyle::InOk, _) => StatusCode::OK,
                    (ErrorStyle::Rfc, "invalid_client") => StatusCode::UNAUTHORIZED,
                    (ErrorStyle::Rfc, _) => StatusCode::BAD_REQUEST,
                };
                let body = json!({"error": error, "error_description": description});
                (status, Json(body)).into_response()
            }
        }
    }

    fn grant(&self, params: &Params) -> Result<Value, (&'static str, &'static str)> {
        let missing = |()| ("invalid_request", "A required parameter is missing");
        let required = |name| params.get(name).ok_or(()).map_err(missing);
        let mut ledger = self.core.ledger();
        let now = self.core.now();
        let access = shape::url_safe(22);
        let refresh = shape::url_safe(38);
        let pair = Pair {
            access: (&access, self.settings.access_life),
            refresh: Some((&refresh, self.settings.refresh_life)),
        };
        let (authorisation, pair) = match required("grant_type")? {
            "client_credentials" => {
                let owner = self.settings.accounts.first();
                let authorisation = Authorisation {
                    account: owner.map(|account| account.id.to_string()).unwrap_or_default(),
                    scopes: self.settings.scopes.clone(),
                    redirect_uri: None,
                    challenge: None,
                };
                ledger.issue_directly(authorisation, Pair { refresh: None, ..pair }, now);
                return Ok(json!({
                    "access_token": access,
                    "expires_in": self.settings.access_life,
                    "token_type": "Bearer",
                }));
            }
            "authorization_code" => {
                let code = ledger
                    .code(required("code")?, now)
                    .map_err(|_| ("invalid_grant", "The code is invalid or was used"))?;
                ledger.redeem(code, pair, now);
                (ledger.authorisation(code), pair)
            }
            "refresh_token" => {
                let old = ledger
                    .refresh(required("refresh_token")?, now)
                    .map_err(|_| ("invalid_grant", "The refresh token is invalid"))?;
                (ledger.authorisation(old), ledger.rotate(old, pair, now))
            }
            _ => return Err(("unsupported_grant_type", "The grant type is not supported")),
        };
        let mut body = json!({
            "access_token": pair.access.0,
            "expires_in": pair.access.1,
            "token_type": "Bearer",
            "scope": authorisation.scopes.join(","),
        });
        if let Some((refresh, _)) = pair.refresh {
            body["refresh_token"] = json!(refresh);
        }
        Ok(body)
    }

    /// The account behind a live token with the right to read it.
    fn account(&self, token: &str) -> Option<&Account> {
        let mut ledger = self.core.ledger();
        let now = self.core.now();
        let authorisation = {
            let id = ledger.access(token, now).ok()?;
            ledger.authorisation(id)
        };
        let readable = authorisation.scopes.iter().any(|scope| scope == "user:read");
        let theirs = |account: &&Account| account.id.to_string() == authorisation.account;
        self.settings.accounts.iter().find(theirs).filter(|_| readable)
    }
}

async fn consent_page(State(avito): State<Arc<Avito>>, query: Params) -> Response {
    avito.core.count_request(Endpoint::Authorize);
    let Some(asked) = avito.asked(&query) else {
        return something_went_wrong(StatusCode::BAD_REQUEST);
    };
    let choice =
        |account: &Account| Choice { id: account.id.to_string(), name: account.name.clone() };
    Consent {
        provider: "Avito",
        client: &avito.settings.client_id,
        accounts: avito.settings.accounts.iter().map(choice).collect(),
        scopes: asked.scopes.iter().map(String::as_str).collect(),
    }
    .into_response()
}

async fn decide(
    State(avito): State<Arc<Avito>>,
    query: Params,
    Form(decision): Form<Decision>,
) -> Response {
    avito.core.count_request(Endpoint::Decision);
    let chosen = |account: &&Account| decision.chose(&account.id.to_string());
    let (Some(asked), Some(account)) =
        (avito.asked(&query), avito.settings.accounts.iter().find(chosen))
    else {
        return something_went_wrong(StatusCode::BAD_REQUEST);
    };
    let state = asked.state.as_deref();
    if decision.decision == Verdict::Deny {
        let description = Some("The user denied the request");
        let params = [
            ("error", Some("access_denied")),
            ("error_description", description),
            ("state", state),
        ];
        return page::callback(&asked.redirect_uri, &params);
    }
    let code = shape::url_safe(22);
    let authorisation = Authorisation {
        account: account.id.to_string(),
        scopes: asked.scopes,
        redirect_uri: Some(asked.redirect_uri.clone()),
        challenge: None,
    };
    let now = avito.core.now();
    avito.core.ledger().issue_code(authorisation, (&code, avito.settings.code_life), now);
    page::callback(&asked.redirect_uri, &[("code", Some(&code)), ("state", state)])
}

async fn token_without_slash(
    state: State<Arc<Avito>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if state.settings.token_redirect {
        return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "/token/")]).into_response();
    }
    token(state, headers, body).await
}

async fn token(State(avito): State<Arc<Avito>>, headers: HeaderMap, body: Bytes) -> Response {
    request::token(&avito.core, &headers, body, |request| avito.answer(request)).await
}

async fn account(State(avito): State<Arc<Avito>>, headers: HeaderMap) -> Response {
    let refused = |status: StatusCode, message| {
        let body = json!({"error": {"code": status.as_u16(), "message": message}});
        (status, Json(body)).into_response()
    };
    let token = bearer(&headers);
    avito.core.count_call(Endpoint::Account, token);
    let Some(token) = token else { return refused(StatusCode::UNAUTHORIZED, "Unauthorized") };
    // An expired token is 403 here, like one that lacks the scope.
    let Some(account) = avito.account(token) else {
        return refused(StatusCode::FORBIDDEN, "Forbidden");
    };
    Json(json!({
        "id": account.id,
        "name": account.name,
        "email": format!("{}@example.com", account.id),
        "phone": "70000000000",
        "phones": ["70000000000"],
        "profile_url": format!("http://localhost:{}/user/{}", avito.core.port, account.id),
    }))
    .into_response()
}
