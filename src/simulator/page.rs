//! The pages that a person sees: consent, and a provider's own error page.

use askama::Template;
use axum::{
    http::{HeaderName, StatusCode, header},
    response::{Html, IntoResponse as _, Response},
};
use serde::Deserialize;
use url::Url;

/// The consent page: the client, the accounts and the scopes.
#[derive(Debug, Template)]
#[template(path = "consent.html", config = "src/simulator/pages/askama.toml")]
pub(super) struct Consent<'a> {
    pub provider: &'a str,
    pub client: &'a str,
    pub accounts: Vec<Choice>,
    pub scopes: Vec<&'a str>,
}

/// An account to choose.
#[derive(Debug)]
pub(super) struct Choice {
    pub id: String,
    pub name: String,
}

#[derive(Debug, Template)]
#[template(path = "error.html", config = "src/simulator/pages/askama.toml")]
struct Problem<'a> {
    provider: &'a str,
    title: &'a str,
    text: &'a str,
}

/// The form of the consent page.
#[derive(Debug, Deserialize)]
pub(super) struct Decision {
    pub decision: Verdict,
    /// The chosen account; without it, the first.
    pub account: Option<String>,
}

impl Decision {
    /// True if this account was chosen; without a choice, any is.
    pub(super) fn chose(&self, id: &str) -> bool {
        self.account.as_deref().is_none_or(|chosen| chosen == id)
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Allow,
    Deny,
}

impl Consent<'_> {
    pub(super) fn into_response(self) -> Response {
        page(StatusCode::OK, &self)
    }
}

/// A page of the provider's own that leads nowhere: there is no callback.
pub(super) fn problem(status: StatusCode, provider: &str, title: &str, text: &str) -> Response {
    page(status, &Problem { provider, title, text })
}

fn page(status: StatusCode, template: &impl Template) -> Response {
    const HEADERS: [(HeaderName, &str); 2] =
        [(header::CACHE_CONTROL, "no-store"), (header::REFERRER_POLICY, "same-origin")];
    match template.render() {
        Ok(text) => (status, HEADERS, Html(text)).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render a simulated page");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The way back to the client: 303 to its redirect URI with these parameters.
pub(super) fn callback(redirect_uri: &str, params: &[(&str, Option<&str>)]) -> Response {
    let Ok(mut url) = Url::parse(redirect_uri) else {
        return (StatusCode::BAD_REQUEST, "The redirect URI is not a URL\n").into_response();
    };
    let sent = params.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
    url.query_pairs_mut().extend_pairs(sent);
    (StatusCode::SEE_OTHER, [(header::LOCATION, url.as_str())]).into_response()
}
