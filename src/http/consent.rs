//! The public side of a consent: the page behind a link, the press of its button, the callback.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use secrecy::{ExposeSecret as _, SecretString};

use askama::Template;

use super::{
    AppState,
    auth::Peer,
    pages::{Ask, Connected, Message, Previous, STYLE_SOURCE, Waiting, WrongAccount},
};
use crate::{
    broker::{BrokerError, Callback, Gone, LinkPage},
    domain::{
        connection::{self, Account},
        consent::Outcome,
        slug::Slug,
    },
    seal::secret,
};

/// Shows the consent page, or the end of the link's last attempt. Changes nothing, so that neither
/// a link preview nor a scanner can use the link up.
pub(crate) async fn show(
    State(state): State<AppState>,
    link: Result<Path<String>, PathRejection>,
    jar: CookieJar,
) -> Response {
    let Some(link) = link_secret(link) else { return gone(Gone::Ended) };
    let browser = browser(&state, &jar);
    match state.broker.link_page(&link, browser.as_ref()).await {
        Ok(page) => render(&page),
        Err(error) => explain(&error),
    }
}

/// The person pressed the button: binds this browser and goes to the provider.
#[expect(clippy::disallowed_methods, reason = "the binding goes into the browser's cookie")]
pub(crate) async fn begin(
    State(state): State<AppState>,
    link: Result<Path<String>, PathRejection>,
    Peer(peer): Peer,
    jar: CookieJar,
    headers: HeaderMap,
) -> Response {
    if !from_our_page(&headers, &state) {
        state.broker.note_refused_request(peer, "pressed on another site");
        return message(
            StatusCode::FORBIDDEN,
            &Message {
                title: "This request came from another site",
                advice: "Open the consent link itself and press its button.",
            },
        );
    }
    let Some(link) = link_secret(link) else { return gone(Gone::Ended) };
    let held = browser(&state, &jar);
    let browser = held.clone().unwrap_or_else(secret::random);
    let begun = state.broker.begin_consent(&link, &browser, peer).await;
    // An error may come after the link was bound to this browser.
    let jar = match (&begun, held) {
        (Err(BrokerError::Gone(_)), _) | (_, Some(_)) => jar,
        (_, None) => jar.add(cookie(&state, browser.expose_secret())),
    };
    let answer = begun.map_or_else(|error| explain(&error), |url| see_other(url.as_str()));
    (jar, answer).into_response()
}

/// The provider sent the browser back.
#[expect(clippy::disallowed_methods, reason = "the way back to the link's own page")]
pub(crate) async fn callback(
    State(state): State<AppState>,
    client: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    Peer(peer): Peer,
    jar: CookieJar,
) -> Response {
    let client = client.ok().and_then(|Path(client)| client.parse::<Slug>().ok());
    let params = query.as_deref().map_or_else(|| Some(BTreeMap::new()), single_params);
    let (client, params) = match (client, params) {
        (Some(client), Some(params)) => (client, params),
        (client, _) => {
            let why = client.map_or("unknown client", |_| "a parameter that comes twice");
            state.broker.note_refused_request(peer, why);
            return refuse_callback();
        }
    };
    if !params.contains_key("state") && params.get("from_exchange").is_some_and(|v| v == "1") {
        return match state.broker.finish_key_exchange(&client, &params, peer).await {
            Ok(()) => (StatusCode::OK, "accepted\n").into_response(),
            Err(_) => refuse_callback(),
        };
    }
    let callback = Callback { client, params, browser: browser(&state, &jar), peer };
    match state.broker.finish_consent(callback).await {
        Ok(back) => see_other(back.expose_secret()),
        Err(BrokerError::Invalid(_)) => refuse_callback(),
        Err(error) => explain(&error),
    }
}

fn render(page: &LinkPage) -> Response {
    let link = &page.link;
    let (connection, provider) = (page.connection.name.as_str(), page.provider.as_str());
    match (link.outcome, link.expected_account.as_deref()) {
        (Some(outcome), _) if link.spent_at.is_some() => render_spent(page, outcome),
        (Some(Outcome::WrongAccount), Some(expected_account)) => {
            html(StatusCode::OK, &WrongAccount { connection, provider, expected_account }, true)
        }
        (outcome, expected_account) => {
            let ask = Ask {
                requested_by: &link.requested_by.to_string(),
                connection,
                provider,
                scopes: &link.scopes,
                expected_account,
                ends_at: link.expires_at,
                previous: outcome.map(|outcome| match outcome {
                    Outcome::Denied => Previous::Denied,
                    _ => Previous::Failed { said: None },
                }),
            };
            html(StatusCode::OK, &ask, true)
        }
    }
}

/// The page of a link whose attempt brought a grant. Another link may have brought another account
/// since, of which this person learns nothing; and where the grant's account is unknown, none is
/// shown.
fn render_spent(page: &LinkPage, outcome: Outcome) -> Response {
    let link = &page.link;
    let (connection, provider) = (page.connection.name.as_str(), page.provider.as_str());
    let is_theirs = |account: Option<&Account>| {
        link.account.is_none() || account.map(|account| &account.id) == link.account.as_ref()
    };
    let shown = |account| link.account.as_ref().and(account);
    let pending = page.pending_account.as_ref();
    let live = page.connection.account.as_ref();
    let is_live = !matches!(
        page.connection.state,
        connection::State::PendingConsent | connection::State::PendingConfirm
    );
    match outcome {
        Outcome::PendingConfirm if page.waits && is_theirs(pending) => {
            let account = shown(pending);
            html(StatusCode::OK, &Waiting { connection, provider, account }, false)
        }
        Outcome::Connected | Outcome::PendingConfirm if is_live && is_theirs(live) => {
            let (account, return_to) = (shown(live), link.return_to.as_ref());
            html(StatusCode::OK, &Connected { connection, provider, account, return_to }, false)
        }
        // The waiting grant was discarded or has expired, or the connection has another account.
        _ => gone(Gone::Used),
    }
}

/// An error as a page.
fn explain(error: &BrokerError) -> Response {
    let (status, title, advice) = match error {
        BrokerError::Gone(why) => return gone(*why),
        BrokerError::Revoked => return gone(Gone::Ended),
        BrokerError::TooMany(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            "Too many attempts at once",
            "Finish one of the attempts that you began, or wait ten minutes and open the link again.",
        ),
        BrokerError::Conflict(_) | BrokerError::Frozen(_) => (
            StatusCode::CONFLICT,
            "This connection is on hold",
            "Nothing was changed. Tell the person who sent you the link.",
        ),
        BrokerError::Unavailable { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Not possible at this moment",
            "Nothing was changed. Open the link again in a minute.",
        ),
        BrokerError::Misconfigured(_) => (
            StatusCode::BAD_GATEWAY,
            "This connection is not set up correctly",
            "Nothing was changed. Tell the person who sent you the link.",
        ),
        _ => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "Something went wrong here",
            "Nothing was changed. Open the link again, or tell the person who sent it to you.",
        ),
    };
    message(status, &Message { title, advice })
}

fn gone(why: Gone) -> Response {
    let page = match why {
        Gone::Ended => Message::LINK_ENDED,
        Gone::OtherBrowser => Message::OTHER_BROWSER,
        Gone::Used => Message::LINK_USED,
    };
    message(StatusCode::GONE, &page)
}

fn refuse_callback() -> Response {
    message(
        StatusCode::BAD_REQUEST,
        &Message {
            title: "There is nothing to finish here",
            advice: "This was finished already, took longer than ten minutes, or was begun in another browser. Nothing was changed. Open the link that you were sent again, in the browser in which you began.",
        },
    )
}

/// A request to the public listener that took too long.
pub(crate) fn late() -> Response {
    message(
        StatusCode::GATEWAY_TIMEOUT,
        &Message {
            title: "This takes longer than usual",
            advice: "What was begun goes on. Open the link again in a minute.",
        },
    )
}

/// A fault of ours.
pub(crate) fn broken() -> Response {
    explain(&BrokerError::Internal)
}

/// No route of the public listener.
pub(crate) async fn not_found() -> Response {
    message(
        StatusCode::NOT_FOUND,
        &Message {
            title: "There is nothing here",
            advice: "Open the link that you were sent, whole and unchanged.",
        },
    )
}

/// A route of the public listener, asked in the wrong way.
pub(crate) async fn method_not_allowed() -> Response {
    message(
        StatusCode::METHOD_NOT_ALLOWED,
        &Message {
            title: "This address cannot be used that way",
            advice: "Open the link that you were sent in a browser.",
        },
    )
}

fn message(status: StatusCode, message: &Message<'_>) -> Response {
    html(status, message, false)
}

/// A page. One with a form tells our own origin in `Referer`, which some browsers need to say
/// where a POST comes from; no page has `form-action`, which Chromium would apply to the provider
/// that the POST redirects to.
fn html(status: StatusCode, page: &impl Template, form: bool) -> Response {
    let Ok(body) = page.render() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let policy = format!(
        "default-src 'none'; style-src {}; frame-ancestors 'none'; base-uri 'none'",
        *STYLE_SOURCE
    );
    let referrer = if form { "same-origin" } else { "no-referrer" };
    (
        status,
        [(header::CONTENT_SECURITY_POLICY, policy), (header::REFERRER_POLICY, referrer.to_owned())],
        Html(body),
    )
        .into_response()
}

/// 303, never 307: the next request is a GET (RFC 9700 section 4.12).
fn see_other(location: &str) -> Response {
    match HeaderValue::from_str(location) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The path's secret, if it has the form of one.
fn link_secret(segment: Result<Path<String>, PathRejection>) -> Option<SecretString> {
    let Path(text) = segment.ok()?;
    is_random(&text).then(|| SecretString::from(text))
}

/// True if a text has the form of [`secret::random`].
pub(super) fn is_random(text: &str) -> bool {
    text.len() == 43 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The parameters of a query, none of which may come twice.
pub(super) fn single_params(query: &str) -> Option<BTreeMap<String, String>> {
    let mut params = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if params.insert(name.into_owned(), value.into_owned()).is_some() {
            return None;
        }
    }
    Some(params)
}

/// `__Host-` binds the cookie to this host over https; on loopback http a browser refuses it.
fn cookie_name(state: &AppState) -> &'static str {
    if state.public_url.scheme() == "https" { "__Host-token-broker" } else { "token-broker" }
}

fn cookie(state: &AppState, value: &str) -> Cookie<'static> {
    Cookie::build((cookie_name(state), value.to_owned()))
        .path("/")
        .http_only(true)
        .secure(state.public_url.scheme() == "https")
        // Strict would not be sent on the way back from the provider.
        .same_site(SameSite::Lax)
        .build()
}

fn browser(state: &AppState, jar: &CookieJar) -> Option<SecretString> {
    let value = jar.get(cookie_name(state))?.value();
    is_random(value).then(|| SecretString::from(value))
}

/// True if the button was pressed on our own page: no other site may start a consent.
fn from_our_page(headers: &HeaderMap, state: &AppState) -> bool {
    match headers.get("sec-fetch-site") {
        Some(site) => site == "same-origin",
        None => headers
            .get(header::ORIGIN)
            .and_then(|origin| origin.to_str().ok())
            .is_some_and(|origin| origin == state.public_url.as_str().trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_comes_twice_spoils_the_callback() {
        assert!(single_params("code=a&state=b").is_some_and(|params| params.len() == 2));
        for bad in ["code=a&code=b", "state=a&x=1&state=a", "a&a"] {
            assert!(single_params(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_secret_has_43_characters_of_base64url() {
        assert!(is_random(&"aZ9-_".repeat(9)[..43]));
        for bad in
            ["", "undefined", &"a".repeat(42), &"a".repeat(44), &"é".repeat(43), &" ".repeat(43)]
        {
            assert!(!is_random(bad), "{bad}");
        }
    }
}
