//! Simulated Divar Kenar: an Ory Hydra on `localhost` (consent page and token endpoint), Divar's own
//! API on `127.0.0.1`.
//!
//! Not verified by any source, and so ours: that Divar's Hydra is a plain one, what is answered to a
//! refresh without its documented extra parameters, and the status of an expired access token.

mod revocation;
mod token;

use std::sync::Arc;

use axum::{
    Form, Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use jiff::SignedDuration;
use serde_json::{Map, json};

use super::{
    core::Core,
    hydra,
    ledger::Authorisation,
    oracle::Endpoint,
    page::{self, Choice, Consent, Decision, Verdict},
    request::{Params, bearer},
    rotation::Rotation,
    settings::{Denial, DivarSettings, DivarUser, OldAccessToken},
    shape,
};

#[derive(Debug)]
pub(super) struct Divar {
    pub core: Arc<Core>,
    pub settings: DivarSettings,
}

pub(super) fn rotation(settings: &DivarSettings) -> Rotation {
    let grace = SignedDuration::from_secs(i64::from(settings.grace));
    let access_grace = match settings.old_access_token {
        OldAccessToken::Dies => SignedDuration::ZERO,
        OldAccessToken::Lives => grace,
    };
    Rotation::RevokesChain { grace, access_grace }
}

pub(super) fn site(divar: Arc<Divar>) -> Router {
    Router::new()
        .route("/oauth2/auth", get(consent_page).post(decide))
        .route("/oauth2/token", post(token::token))
        .route("/oauth2/revoke", post(revocation::revoke))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "There is no such page.") })
        .with_state(divar)
}

pub(super) fn api(divar: Arc<Divar>) -> Router {
    Router::new()
        .route("/v1/open-platform/users", get(users))
        .fallback(|| async { rpc_status(StatusCode::NOT_FOUND, 5, "Not Found") })
        .with_state(divar)
}

fn problem(status: StatusCode, text: &str) -> Response {
    page::problem(status, "Divar", "This did not work", text)
}

/// An error of Divar's own API, in the form of `google.rpc.Status`.
fn rpc_status(status: StatusCode, code: u8, message: &str) -> Response {
    (status, Json(json!({"code": code, "message": message, "details": []}))).into_response()
}

/// An authorisation request that Hydra would take to the login page.
struct Asked<'q> {
    redirect_uri: &'q str,
    scopes: Vec<&'q str>,
    challenge: Option<&'q str>,
}

impl Divar {
    fn asked<'q>(&self, query: &'q Params) -> Result<Asked<'q>, Box<Response>> {
        // A wrong client or redirect URI is shown here and never sent back.
        if !query.is("client_id", &self.settings.client_id) {
            let text = "invalid_client: The requested OAuth 2.0 Client does not exist.";
            return Err(problem(StatusCode::UNAUTHORIZED, text).into());
        }
        let registered = |uri: &&str| self.settings.redirect_uris.iter().any(|one| one == uri);
        let Some(redirect_uri) = query.get("redirect_uri").filter(registered) else {
            let text = "invalid_request: The 'redirect_uri' parameter does not match any of the \
                        OAuth 2.0 Client's pre-registered redirect urls.";
            return Err(problem(StatusCode::BAD_REQUEST, text).into());
        };
        let state = query.get("state");
        let refused = |error, description: &str| {
            Err(Box::new(page::callback(
                redirect_uri,
                &[
                    ("error", Some(error)),
                    ("error_description", Some(description)),
                    ("state", state),
                ],
            )))
        };
        if !query.is("response_type", "code") {
            let description = "The authorization server does not support obtaining a token using \
                               this method.";
            return refused("unsupported_response_type", description);
        }
        if state.unwrap_or_default().len() < 8 {
            let description = "The state is missing or does not have enough characters and is \
                               therefore considered too weak. Request parameter 'state' must be at \
                               least be 8 characters long to ensure sufficient entropy.";
            return refused("invalid_state", description);
        }
        let scopes: Vec<_> = query
            .get("scope")
            .unwrap_or_default()
            .split(' ')
            .filter(|one| !one.is_empty())
            .collect();
        if let Some(scope) = scopes.iter().find(|scope| !self.allows(scope)) {
            return refused("invalid_scope", &hydra::scope_not_allowed(scope));
        }
        let challenge = query.get("code_challenge");
        if challenge.is_some() && !query.is("code_challenge_method", "S256") {
            let description = "Clients must use code_challenge_method=S256, plain is not allowed.";
            return refused("invalid_request", description);
        }
        Ok(Asked { redirect_uri, scopes, challenge })
    }

    /// A scope is allowed by its name, alone or before the identifier of an object.
    fn allows(&self, scope: &str) -> bool {
        let name = scope.split_once('.').map_or(scope, |(name, _)| name);
        self.settings.scopes.iter().any(|allowed| allowed == name)
    }
}

async fn consent_page(State(divar): State<Arc<Divar>>, query: Params) -> Response {
    divar.core.count_request(Endpoint::Authorize);
    let asked = match divar.asked(&query) {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let choice = |user: &DivarUser| Choice { id: user.id.clone(), name: user.phone_number.clone() };
    Consent {
        provider: "Divar",
        client: &divar.settings.client_id,
        accounts: divar.settings.users.iter().map(choice).collect(),
        scopes: asked.scopes,
    }
    .into_response()
}

async fn decide(
    State(divar): State<Arc<Divar>>,
    query: Params,
    Form(decision): Form<Decision>,
) -> Response {
    divar.core.count_request(Endpoint::Decision);
    let asked = match divar.asked(&query) {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let state = ("state", query.get("state"));
    if decision.decision == Verdict::Deny {
        let description = "The resource owner denied the request.";
        let error = [("error", Some("access_denied")), ("error_description", Some(description))];
        return match divar.settings.denial {
            Denial::Error => page::callback(asked.redirect_uri, &[error[0], error[1], state]),
            Denial::Bare => page::callback(asked.redirect_uri, &[state]),
        };
    }
    let chosen = |user: &&DivarUser| decision.chose(&user.id);
    let Some(user) = divar.settings.users.iter().find(chosen) else {
        return problem(StatusCode::BAD_REQUEST, "There is no such user.");
    };
    let code = shape::ory("ac");
    let scope = asked.scopes.join(" ");
    let authorisation = Authorisation {
        account: user.id.clone(),
        scopes: asked.scopes.into_iter().map(str::to_owned).collect(),
        redirect_uri: Some(asked.redirect_uri.to_owned()),
        challenge: asked.challenge.map(str::to_owned),
    };
    let now = divar.core.now();
    divar.core.ledger().issue_code(authorisation, (&code, divar.settings.code_life), now);
    page::callback(asked.redirect_uri, &[("code", Some(&code)), ("scope", Some(&scope)), state])
}

async fn users(State(divar): State<Arc<Divar>>, headers: HeaderMap) -> Response {
    let token = bearer(&headers);
    divar.core.count_call(Endpoint::Account, token);
    let key = headers.get("x-api-key").and_then(|key| key.to_str().ok());
    if key != Some(&divar.settings.simulated_api_key) {
        return rpc_status(StatusCode::UNAUTHORIZED, 16, "invalid api key");
    }
    let found = {
        let mut ledger = divar.core.ledger();
        let now = divar.core.now();
        ledger.access(token.unwrap_or_default(), now).map(|id| ledger.authorisation(id))
    };
    let Ok(authorisation) = found else {
        return rpc_status(StatusCode::UNAUTHORIZED, 16, "invalid access token");
    };
    let user = divar.settings.users.iter().find(|user| user.id == authorisation.account);
    let Some(user) = user else { return rpc_status(StatusCode::NOT_FOUND, 5, "Not Found") };
    let granted = |name: &str| authorisation.scopes.iter().any(|scope| scope == name);
    let mut fields = Map::new();
    if granted("USER_ID") {
        fields.insert("user_id".into(), json!(user.id));
    }
    if granted("USER_PHONE") {
        fields.insert("phone_number".into(), json!(user.phone_number));
    }
    if fields.is_empty() {
        return rpc_status(StatusCode::FORBIDDEN, 7, "permission denied");
    }
    Json(fields).into_response()
}
