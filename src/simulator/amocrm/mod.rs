//! Simulated amoCRM and Kommo: one protocol, two products.
//!
//! The site with the consent page is on `localhost`, and every account has a host of its own,
//! `<subdomain>.amocrm.localhost` or `<subdomain>.kommo.localhost`. The hints are those of
//! thephpleague/oauth2-server, and so is the order of the checks.
//!
//! Not verified by any source, and so ours: the language of Kommo's errors (Russian here too), the
//! answer of a host that belongs to no account (404), a refresh on another account's host, and
//! every answer of `exchange_api_key` but 202.

mod api_key;
mod problem;
mod token;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Form, Json, Router,
    body::Bytes,
    extract::{OriginalUri, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::task::TaskTracker;

use self::problem::Problem;
use super::{
    core::Core,
    ledger::Authorisation,
    oracle::Endpoint,
    page::{self, Choice, Consent, Decision, Verdict},
    request::{self, Params, bearer},
    rotation::Rotation,
    settings::{AmocrmAccount, AmocrmSettings, RefreshMode},
    shape,
};

/// One of the two products.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Product {
    Amocrm,
    Kommo,
}

impl Product {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Amocrm => "amoCRM",
            Self::Kommo => "Kommo",
        }
    }

    /// The suffix of an account's host.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Amocrm => ".amocrm.localhost",
            Self::Kommo => ".kommo.localhost",
        }
    }
}

#[derive(Debug)]
pub(super) struct Amocrm {
    pub core: Arc<Core>,
    pub settings: AmocrmSettings,
    product: Product,
    tasks: TaskTracker,
    /// When each account last exchanged an API key.
    exchanged_at: Mutex<HashMap<u64, Timestamp>>,
}

pub(super) fn rotation(settings: &AmocrmSettings) -> Rotation {
    match settings.refresh_mode {
        RefreshMode::Strict => Rotation::SINGLE_USE,
        RefreshMode::Lenient => Rotation::UntilNextUsed,
    }
}

pub(super) fn site(amocrm: Arc<Amocrm>) -> Router {
    Router::new()
        .route("/oauth", get(consent_page).post(decide))
        .route("/oauth/", get(consent_page).post(decide))
        .fallback(|State(amocrm): State<Arc<Amocrm>>| async move {
            amocrm.page(StatusCode::NOT_FOUND, "There is no such page.")
        })
        .with_state(amocrm)
}

pub(super) fn api(amocrm: Arc<Amocrm>) -> Router {
    let router = Router::new()
        .route("/oauth2/access_token", post(access_token))
        .route("/api/v4/account", get(account))
        .fallback(not_found)
        .method_not_allowed_fallback(not_found);
    // API keys are a thing of old amoCRM accounts; no source has them at Kommo.
    let router = match amocrm.product {
        Product::Amocrm => router.route("/oauth2/exchange_api_key", post(api_key::exchange)),
        Product::Kommo => router,
    };
    router.with_state(amocrm)
}

async fn not_found(OriginalUri(uri): OriginalUri) -> Response {
    Problem::NotFound(uri.path()).into_response()
}

impl Amocrm {
    pub(super) fn new(
        product: Product,
        core: Arc<Core>,
        settings: AmocrmSettings,
        tasks: TaskTracker,
    ) -> Self {
        Self { core, settings, product, tasks, exchanged_at: Mutex::default() }
    }

    fn page(&self, status: StatusCode, text: &str) -> Response {
        page::problem(status, self.product.title(), "This did not work", text)
    }

    /// The host of an account, without a port, as `referer` gives it.
    fn host(&self, account: &AmocrmAccount) -> String {
        format!("{}{}", account.subdomain, self.product.suffix())
    }

    /// The account whose host a request named.
    fn account_of(&self, headers: &HeaderMap) -> Option<&AmocrmAccount> {
        let host = headers.get(header::HOST)?.to_str().ok()?.to_ascii_lowercase();
        let (subdomain, _) = host.split_once('.')?;
        self.settings.accounts.iter().find(|account| account.subdomain == subdomain)
    }

    /// The parameters of a callback with a code.
    fn issue_code(&self, account: &AmocrmAccount, redirect_uri: &str) -> String {
        // The payload of the PHP library's codes and refresh tokens begins like this.
        let code = format!("def50200{}", shape::hex::<300>());
        let authorisation = Authorisation {
            account: account.id.to_string(),
            scopes: self.settings.scopes.clone(),
            redirect_uri: Some(redirect_uri.to_owned()),
            challenge: None,
        };
        let now = self.core.now();
        self.core.ledger().issue_code(authorisation, (&code, self.settings.code_life), now);
        code
    }

    /// The redirect URI of an authorisation request that amoCRM would show to a person.
    fn asked(&self, query: &Params) -> Result<&str, Box<Response>> {
        if !query.is("client_id", &self.settings.client_id) {
            return Err(self.page(StatusCode::BAD_REQUEST, "There is no such integration.").into());
        }
        self.settings.redirect_uri.as_deref().ok_or_else(|| {
            self.page(StatusCode::BAD_REQUEST, "The integration has no redirect URI.").into()
        })
    }
}

async fn consent_page(State(amocrm): State<Arc<Amocrm>>, query: Params) -> Response {
    amocrm.core.count_request(Endpoint::Authorize);
    if let Err(refusal) = amocrm.asked(&query) {
        return *refusal;
    }
    let choice = |account: &AmocrmAccount| Choice {
        id: account.id.to_string(),
        name: format!("{} ({})", account.name, amocrm.host(account)),
    };
    Consent {
        provider: amocrm.product.title(),
        client: &amocrm.settings.client_id,
        accounts: amocrm.settings.accounts.iter().map(choice).collect(),
        scopes: amocrm.settings.scopes.iter().map(String::as_str).collect(),
    }
    .into_response()
}

async fn decide(
    State(amocrm): State<Arc<Amocrm>>,
    query: Params,
    Form(decision): Form<Decision>,
) -> Response {
    amocrm.core.count_request(Endpoint::Decision);
    let redirect_uri = match amocrm.asked(&query) {
        Ok(redirect_uri) => redirect_uri,
        Err(refusal) => return *refusal,
    };
    let client_id = ("client_id", Some(amocrm.settings.client_id.as_str()));
    let state = ("state", query.get("state"));
    if decision.decision == Verdict::Deny {
        return page::callback(redirect_uri, &[("error", Some("access_denied")), client_id, state]);
    }
    let chosen = |account: &&AmocrmAccount| decision.chose(&account.id.to_string());
    let Some(account) = amocrm.settings.accounts.iter().find(chosen) else {
        return amocrm.page(StatusCode::BAD_REQUEST, "There is no such account.");
    };
    let code = amocrm.issue_code(account, redirect_uri);
    let host = amocrm.host(account);
    // 1 is amocrm.ru. No source says that Kommo sends it.
    let platform = (amocrm.product == Product::Amocrm).then_some("1");
    page::callback(
        redirect_uri,
        &[
            ("code", Some(&code)),
            state,
            ("referer", Some(&host)),
            ("platform", platform),
            client_id,
        ],
    )
}

async fn access_token(
    State(amocrm): State<Arc<Amocrm>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(account) = amocrm.account_of(&headers) else {
        return Problem::NotFound("/oauth2/access_token").into_response();
    };
    request::token(&amocrm.core, &headers, body, |request| amocrm.answer(account, request)).await
}

async fn account(State(amocrm): State<Arc<Amocrm>>, headers: HeaderMap) -> Response {
    let token = bearer(&headers);
    amocrm.core.count_call(Endpoint::Account, token);
    let Some(account) = amocrm.account_of(&headers) else {
        return Problem::NotFound("/api/v4/account").into_response();
    };
    let accepted = token.is_some_and(|token| {
        let mut ledger = amocrm.core.ledger();
        let now = amocrm.core.now();
        ledger
            .access(token, now)
            .is_ok_and(|id| ledger.authorisation(id).account == account.id.to_string())
    });
    if !accepted {
        return Problem::Unauthorized.into_response();
    }
    let url = format!("http://{}:{}", amocrm.host(account), amocrm.core.port);
    Json(json!({
        "id": account.id,
        "name": account.name,
        "subdomain": account.subdomain,
        "current_user_id": account.user_id,
        "country": "RU",
        "currency": "RUB",
        "_links": {"self": {"href": format!("{url}/api/v4/account")}},
    }))
    .into_response()
}
