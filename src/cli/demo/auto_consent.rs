//! Automatic consent: goes through a consent as a browser would and presses every Allow.

use reqwest::{
    Client, Response, StatusCode,
    header::{COOKIE, LOCATION, ORIGIN, SET_COOKIE},
    redirect::Policy,
};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::cli::CliError;

/// One consent, from the link to the result page.
#[expect(clippy::disallowed_methods, reason = "a browser shows the link's secret in its URL")]
pub(super) async fn consent(link: &SecretString) -> Result<(), CliError> {
    let link = parse(link.expose_secret())?;
    let browser = browser()?;
    let page = browser.get(link.clone()).send().await.map_err(lost)?;
    expect(&page, StatusCode::OK)?;
    // A browser adds the origin to its POSTs; the broker looks at it.
    let origin = link.origin().ascii_serialization();
    let pressed = browser.post(link).header(ORIGIN, origin).send().await.map_err(lost)?;
    expect(&pressed, StatusCode::SEE_OTHER)?;
    let cookie = cookie(&pressed)?;
    let provider = next(&pressed)?;
    let page = browser.get(provider.clone()).send().await.map_err(lost)?;
    expect(&page, StatusCode::OK)?;
    let allowed =
        browser.post(provider).form(&[("decision", "allow")]).send().await.map_err(lost)?;
    let callback = next(&allowed)?;
    let back = browser.get(callback).header(COOKIE, &cookie).send().await.map_err(lost)?;
    expect(&back, StatusCode::SEE_OTHER)?;
    let result = browser.get(next(&back)?).header(COOKIE, &cookie).send().await.map_err(lost)?;
    expect(&result, StatusCode::OK)
}

#[expect(clippy::disallowed_methods, reason = "a browser is no provider's client")]
fn browser() -> Result<Client, CliError> {
    Client::builder().no_proxy().redirect(Policy::none()).build().map_err(CliError::internal)
}

fn parse(url: &str) -> Result<Url, CliError> {
    Url::parse(url).map_err(CliError::internal)
}

/// The URL that an answer redirects to.
fn next(response: &Response) -> Result<Url, CliError> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location
        .ok_or_else(|| CliError::internal(format!("a consent stopped at {}", response.status())))?;
    response.url().join(location).map_err(CliError::internal)
}

fn cookie(response: &Response) -> Result<String, CliError> {
    let set = response.headers().get(SET_COOKIE).and_then(|value| value.to_str().ok());
    set.and_then(|set| set.split(';').next())
        .map(str::to_owned)
        .ok_or_else(|| CliError::internal("the broker set no cookie"))
}

fn expect(response: &Response, status: StatusCode) -> Result<(), CliError> {
    if response.status() == status {
        Ok(())
    } else {
        Err(CliError::internal(format!("a consent met {} instead of {status}", response.status())))
    }
}

/// A request that was not answered. Its URL may hold a secret and is not told.
fn lost(error: reqwest::Error) -> CliError {
    CliError::internal(format!("a consent was interrupted: {}", error.without_url()))
}
