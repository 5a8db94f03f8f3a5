//! Simulated Admitad: the store with the consent page on `localhost`, the API on `127.0.0.1`.
//!
//! Not verified by any source, and so ours: the form of a denial, statuses and bodies for a bad
//! code, a dead refresh token and too many tokens, the scope that `/me/` needs, and that a code is
//! bound to the exact redirect URI of its request.

use std::sync::Arc;

use axum::{
    Form, Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;

use super::{
    core::Core,
    ledger::{Authorisation, Ledger, Pair, Refusal},
    oracle::{End, Endpoint},
    page::{self, Choice, Consent, Decision, Verdict},
    request::{self, Encoding, Params, TokenRequest, bearer},
    rotation::Rotation,
    settings::{Account, AdmitadSettings, ExpiresIn, MissingSlash, OldRefreshToken},
    shape,
};

/// Withdrawn: asking for one gives 401, by Admitad's "help on access settings".
const WITHDRAWN: [&str; 4] =
    ["payments", "offline_sales", "offline_receipts", "manage_offline_receipts"];

#[derive(Debug)]
pub(super) struct Admitad {
    pub core: Arc<Core>,
    pub settings: AdmitadSettings,
}

pub(super) fn rotation(settings: &AdmitadSettings) -> Rotation {
    match settings.old_refresh_token {
        OldRefreshToken::Dies => Rotation::SINGLE_USE,
        OldRefreshToken::Stays => Rotation::ALL_LIVE,
    }
}

pub(super) fn site(admitad: Arc<Admitad>) -> Router {
    Router::new()
        .route("/api/authorize/", get(consent_page).post(decide))
        .fallback(not_found)
        .with_state(admitad)
}

pub(super) fn api(admitad: Arc<Admitad>) -> Router {
    Router::new()
        .route("/token", post(token_without_slash))
        .route("/token/", post(token))
        .route("/me/", get(me))
        .fallback(not_found)
        .with_state(admitad)
}

async fn not_found() -> Response {
    problem(StatusCode::NOT_FOUND, "There is no such page.")
}

fn problem(status: StatusCode, text: &str) -> Response {
    page::problem(status, "Admitad", "This did not work", text)
}

/// An error of the API, with Admitad's own number where it has one.
struct ApiError {
    status: StatusCode,
    error: &'static str,
    description: String,
    code: Option<u8>,
}

impl ApiError {
    fn new(status: StatusCode, error: &'static str, description: &str, code: u8) -> Self {
        Self { status, error, description: description.to_owned(), code: Some(code) }
    }

    fn bad_request(error: &'static str, description: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, description, 3)
    }

    /// Without a number, as in the answer that affiliateforge/php-admitad-api captured.
    fn client(client_id: &str) -> Self {
        let description = format!("client_id {client_id} doesn't exist");
        let status = StatusCode::UNAUTHORIZED;
        Self { status, error: "invalid_client", description, code: None }
    }

    fn into_response(self) -> Response {
        let mut body = json!({"error": self.error, "error_description": self.description});
        if let Some(code) = self.code {
            body["error_code"] = json!(code);
        }
        let mut response = (self.status, Json(body)).into_response();
        let challenge = format!("Bearer realm=\"api.admitad.com\", error=\"{}\"", self.error);
        if let (StatusCode::UNAUTHORIZED, Ok(challenge)) = (self.status, challenge.parse()) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

fn required<'a>(request: &'a TokenRequest, name: &str) -> Result<&'a str, ApiError> {
    request
        .params
        .get(name)
        .ok_or_else(|| ApiError::bad_request("invalid_request", &format!("{name} is required")))
}

impl Admitad {
    /// The client, from HTTP Basic or from the body, as the grant allows.
    fn check_client(
        &self,
        request: &TokenRequest,
        basic: bool,
        body: bool,
    ) -> Result<(), ApiError> {
        let sent = request.params.get("client_id");
        let in_basic = request.basic.as_ref().filter(|_| basic);
        let credentials = match in_basic {
            Some((user, password)) => Some((user.as_str(), password.as_str())),
            None if body => sent.zip(request.params.get("client_secret")),
            None => None,
        };
        let ours =
            (self.settings.client_id.as_str(), self.settings.simulated_client_secret.as_str());
        if credentials == Some(ours) && sent.is_none_or(|sent| sent == ours.0) {
            Ok(())
        } else {
            let named = credentials.map(|(id, _)| id).or(sent).unwrap_or_default();
            Err(ApiError::client(named))
        }
    }

    fn scopes(&self, scope: &str) -> Result<Vec<String>, ApiError> {
        let scopes: Vec<_> = scope.split(' ').map(str::to_owned).collect();
        if let Some(scope) = scopes.iter().find(|scope| WITHDRAWN.contains(&scope.as_str())) {
            let description = format!("Scope {scope} is not available");
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_scope", &description, 2));
        }
        match scopes.iter().find(|scope| !self.settings.scopes.contains(scope)) {
            Some(scope) => {
                let description = format!("Scope {scope} is not allowed");
                Err(ApiError::bad_request("invalid_scope", &description))
            }
            None => Ok(scopes),
        }
    }

    fn answer(&self, request: &TokenRequest) -> Response {
        self.grant(request)
            .map_or_else(ApiError::into_response, |grant| Json(grant).into_response())
    }

    fn grant(&self, request: &TokenRequest) -> Result<Value, ApiError> {
        if request.encoding != Encoding::Form {
            return Err(ApiError::bad_request("invalid_request", "The body must be form-encoded"));
        }
        let (access, refresh) = (shape::alphanumeric(), shape::alphanumeric());
        let pair = Pair {
            access: (&access, self.settings.access_life),
            refresh: Some((&refresh, self.settings.refresh_life)),
        };
        let mut ledger = self.core.ledger();
        let now = self.core.now();
        let (authorisation, pair) = match required(request, "grant_type")? {
            "client_credentials" => (self.issue_to_client(request, &mut ledger, pair, now)?, pair),
            "authorization_code" => (self.redeem_code(request, &mut ledger, pair, now)?, pair),
            "refresh_token" => self.rotate(request, &mut ledger, pair, now)?,
            _ => {
                let description = "The grant type is not supported";
                return Err(ApiError::bad_request("unsupported_grant_type", description));
            }
        };
        Ok(self.token_answer(&authorisation, pair))
    }

    /// The client credentials grant.
    fn issue_to_client(
        &self,
        request: &TokenRequest,
        ledger: &mut Ledger,
        pair: Pair<'_>,
        now: Timestamp,
    ) -> Result<Arc<Authorisation>, ApiError> {
        self.check_client(request, true, false)?;
        required(request, "client_id")?;
        let owner = self.settings.accounts.first();
        let authorisation = Authorisation {
            account: owner.map(|account| account.id.to_string()).unwrap_or_default(),
            scopes: self.scopes(required(request, "scope")?)?,
            redirect_uri: None,
            challenge: None,
        };
        self.ensure_below_cap(ledger, now)?;
        ledger.issue_directly(authorisation.clone(), pair, now);
        Ok(Arc::new(authorisation))
    }

    fn redeem_code(
        &self,
        request: &TokenRequest,
        ledger: &mut Ledger,
        pair: Pair<'_>,
        now: Timestamp,
    ) -> Result<Arc<Authorisation>, ApiError> {
        self.check_client(request, true, true)?;
        let invalid = |description| ApiError::bad_request("invalid_grant", description);
        let code = ledger
            .code(required(request, "code")?, now)
            .map_err(|_| invalid("The code is invalid, expired or was used"))?;
        let authorisation = ledger.authorisation(code);
        let redirect_uri = required(request, "redirect_uri")?;
        if authorisation.redirect_uri.as_deref() != Some(redirect_uri) {
            return Err(invalid("redirect_uri doesn't match"));
        }
        self.ensure_below_cap(ledger, now)?;
        ledger.redeem(code, pair, now);
        Ok(authorisation)
    }

    fn rotate<'a>(
        &self,
        request: &TokenRequest,
        ledger: &'a mut Ledger,
        pair: Pair<'a>,
        now: Timestamp,
    ) -> Result<(Arc<Authorisation>, Pair<'a>), ApiError> {
        self.check_client(request, false, true)?;
        let old = ledger.refresh(required(request, "refresh_token")?, now).map_err(|_| {
            let description = "Refresh token is unavailable";
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_grant", description, 5)
        })?;
        self.ensure_below_cap(ledger, now)?;
        Ok((ledger.authorisation(old), ledger.rotate(old, pair, now)))
    }

    fn ensure_below_cap(&self, ledger: &Ledger, now: Timestamp) -> Result<(), ApiError> {
        if ledger.live_access_tokens(now) < self.settings.token_cap {
            return Ok(());
        }
        let description = "Maximum number of tokens exceeded";
        Err(ApiError::new(StatusCode::FORBIDDEN, "access_denied", description, 6))
    }

    fn token_answer(&self, authorisation: &Authorisation, pair: Pair<'_>) -> Value {
        let account = self.account(authorisation);
        let expires_in = match self.settings.expires_in {
            ExpiresIn::Number => json!(pair.access.1),
            ExpiresIn::Text => json!(pair.access.1.to_string()),
        };
        let mut body = json!({
            "id": account.map(|account| account.id),
            "username": account.map(|account| &account.name),
            "first_name": "",
            "last_name": "",
            "language": "en",
            "access_token": pair.access.0,
            "token_type": "bearer",
            "expires_in": expires_in,
            "scope": authorisation.scopes.join(" "),
            "group": "webmaster",
        });
        if let Some((refresh, _)) = pair.refresh {
            body["refresh_token"] = json!(refresh);
        }
        body
    }

    fn account(&self, authorisation: &Authorisation) -> Option<&Account> {
        self.settings
            .accounts
            .iter()
            .find(|account| account.id.to_string() == authorisation.account)
    }

    /// The redirect URI and scopes of an authorisation request that Admitad shows to a person.
    fn asked<'q>(&self, query: &'q Params) -> Result<(&'q str, Vec<String>), Box<Response>> {
        let domain = |uri: &str| Url::parse(uri).ok()?.host_str().map(str::to_owned);
        let registered = self.settings.redirect_uri.as_deref().and_then(domain);
        let redirect_uri = query
            .get("redirect_uri")
            .filter(|uri| registered.is_some() && domain(uri) == registered)
            .ok_or_else(|| problem(StatusCode::BAD_REQUEST, "The redirect URI is not allowed."))
            .map_err(Box::new)?;
        let refused = |error, description: &str| {
            let params = [
                ("state", query.get("state")),
                ("error", Some(error)),
                ("error_description", Some(description)),
            ];
            page::callback(redirect_uri, &params)
        };
        let client_id = query.get("client_id").unwrap_or_default();
        if client_id != self.settings.client_id {
            // By Admitad's "authorization of third-party web applications", this error does come back.
            let description = format!("client_id {client_id} doesn't exist");
            return Err(refused("invalid_client", &description).into());
        }
        if !query.is("response_type", "code") {
            let description = "response_type must be code";
            return Err(refused("unsupported_response_type", description).into());
        }
        let scopes = self.scopes(query.get("scope").unwrap_or_default()).map_err(|failure| {
            if failure.status == StatusCode::UNAUTHORIZED {
                Box::new(problem(failure.status, &failure.description))
            } else {
                Box::new(refused(failure.error, &failure.description))
            }
        })?;
        Ok((redirect_uri, scopes))
    }
}

async fn consent_page(State(admitad): State<Arc<Admitad>>, query: Params) -> Response {
    admitad.core.count_request(Endpoint::Authorize);
    let scopes = match admitad.asked(&query) {
        Ok((_, scopes)) => scopes,
        Err(refusal) => return *refusal,
    };
    let choice =
        |account: &Account| Choice { id: account.id.to_string(), name: account.name.clone() };
    Consent {
        provider: "Admitad",
        client: &admitad.settings.client_id,
        accounts: admitad.settings.accounts.iter().map(choice).collect(),
        scopes: scopes.iter().map(String::as_str).collect(),
    }
    .into_response()
}

async fn decide(
    State(admitad): State<Arc<Admitad>>,
    query: Params,
    Form(decision): Form<Decision>,
) -> Response {
    admitad.core.count_request(Endpoint::Decision);
    let (redirect_uri, scopes) = match admitad.asked(&query) {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let state = ("state", query.get("state"));
    if decision.decision == Verdict::Deny {
        let description = ("error_description", Some("The user denied access"));
        return page::callback(
            redirect_uri,
            &[state, ("error", Some("access_denied")), description],
        );
    }
    let chosen = |account: &&Account| decision.chose(&account.id.to_string());
    let Some(account) = admitad.settings.accounts.iter().find(chosen) else {
        return problem(StatusCode::BAD_REQUEST, "There is no such account.");
    };
    let code = shape::hex::<15>();
    let authorisation = Authorisation {
        account: account.id.to_string(),
        scopes,
        redirect_uri: Some(redirect_uri.to_owned()),
        challenge: None,
    };
    let now = admitad.core.now();
    admitad.core.ledger().issue_code(authorisation, (&code, admitad.settings.code_life), now);
    page::callback(redirect_uri, &[state, ("code", Some(&code))])
}

async fn token_without_slash(State(admitad): State<Arc<Admitad>>) -> Response {
    match admitad.settings.missing_slash {
        MissingSlash::Redirect => {
            (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "/token/")]).into_response()
        }
        MissingSlash::NotFound => not_found().await,
    }
}

async fn token(State(admitad): State<Arc<Admitad>>, headers: HeaderMap, body: Bytes) -> Response {
    request::token(&admitad.core, &headers, body, |request| admitad.answer(request)).await
}

async fn me(State(admitad): State<Arc<Admitad>>, headers: HeaderMap) -> Response {
    let token = bearer(&headers);
    admitad.core.count_call(Endpoint::Account, token);
    let found = {
        let mut ledger = admitad.core.ledger();
        let now = admitad.core.now();
        let found = ledger.access(token.unwrap_or_default(), now);
        found.map(|id| ledger.authorisation(id))
    };
    let invalid = |description, code| {
        ApiError::new(StatusCode::UNAUTHORIZED, "invalid_token", description, code).into_response()
    };
    let authorisation = match found {
        Ok(authorisation) => authorisation,
        Err(Refusal::Dead(End::Expired)) => return invalid("Token expired", 0),
        Err(_) => return invalid("Token doesn't exist", 1),
    };
    if !authorisation.scopes.iter().any(|scope| scope == "private_data") {
        let description = "Insufficient rights";
        return ApiError::new(StatusCode::FORBIDDEN, "insufficient_scope", description, 2)
            .into_response();
    }
    let Some(account) = admitad.account(&authorisation) else { return not_found().await };
    Json(json!({
        "id": account.id,
        "username": account.name,
        "first_name": "",
        "last_name": "",
        "email": format!("{}@example.com", account.name),
        "language": "en",
    }))
    .into_response()
}
