//! `exchange_api_key`: how an account from before 2020 turns an API key into a code.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use jiff::SignedDuration;
use url::Url;

use super::{Amocrm, problem::Problem};
use crate::simulator::{
    oracle::Endpoint,
    request::{Encoding, TokenRequest},
};

/// An API key for a code: 202 at once, and the code arrives at the redirect URI from server to server.
pub(super) async fn exchange(
    State(amocrm): State<Arc<Amocrm>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    amocrm.core.count_request(Endpoint::ExchangeApiKey);
    let Some(account) = amocrm.account_of(&headers) else {
        return Problem::NotFound("/oauth2/exchange_api_key").into_response();
    };
    let request = TokenRequest::read(&headers, &body);
    if request.encoding != Encoding::Json {
        return Problem::bad("Check the `client_uuid` parameter").into_response();
    }
    let settings = &amocrm.settings;
    if !request.params.is("client_uuid", &settings.client_id)
        || !request.params.is("client_secret", &settings.simulated_client_secret)
    {
        return Problem::Client.into_response();
    }
    if !request.params.is("login", &account.login)
        || !request.params.is("api_key", &account.simulated_api_key)
    {
        return Problem::Unauthorized.into_response();
    }
    let Some(redirect_uri) = settings.redirect_uri.clone() else {
        return Problem::bad("Redirect URI is not associated with client").into_response();
    };
    if !amocrm.may_exchange_now(account.id) {
        return Problem::TooManyRequests.into_response();
    }
    let code = amocrm.issue_code(account, &redirect_uri);
    let params = [
        ("code", code),
        ("referer", amocrm.host(account)),
        ("from_exchange", "1".to_owned()),
        ("client_id", settings.client_id.clone()),
    ];
    amocrm.tasks.spawn(async move {
        if let Err(error) = deliver(&redirect_uri, &params).await {
            tracing::warn!(error = %error.without_url(), "cannot deliver a simulated code");
        }
    });
    StatusCode::ACCEPTED.into_response()
}

impl Amocrm {
    /// At most once in five minutes for an account.
    fn may_exchange_now(&self, account: u64) -> bool {
        const PAUSE: SignedDuration = SignedDuration::from_mins(5);
        let now = self.core.now();
        let mut exchanged_at = self.exchanged_at.lock();
        let again = exchanged_at.get(&account).is_none_or(|&at| now.duration_since(at) >= PAUSE);
        if again {
            exchanged_at.insert(account, now);
        }
        again
    }
}

async fn deliver(redirect_uri: &str, params: &[(&str, String)]) -> Result<(), reqwest::Error> {
    #[expect(clippy::disallowed_methods, reason = "here the provider calls the broker")]
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(3))
        .user_agent("amoService-oAuth-Code-Sender/1.0")
        .build()?;
    let Ok(mut url) = Url::parse(redirect_uri) else {
        tracing::warn!("the simulated integration's redirect URI is not a URL");
        return Ok(());
    };
    url.query_pairs_mut().extend_pairs(params);
    // The answer does not matter.
    client.get(url).send().await.map(drop)
}
