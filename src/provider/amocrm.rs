//! amoCRM and Kommo beyond their profiles: the account host, and the exchange of API keys.

use reqwest::Method;
use secrecy::SecretString;

use super::{
    client::Client,
    error::ProviderError,
    profile::Profile,
    reply::Reply,
    request::{Body, OutboundRequest, RequestError, Values},
    response::refusal,
};
use crate::domain::connection::Vars;

/// The variable that holds the account's host.
pub(crate) const ACCOUNT_HOST: &str = "account_host";

/// True if the value of variable `name` in a callback may belong to the intended account. Checked
/// before a code or a secret is sent to the host that it names.
///
/// It is what it was `before`, when the account was connected. Only an account's host changes, when
/// the account is renamed: an operator who expects it by its new subdomain says so, and who expects
/// it by another gets no other. A number is an account's id, and tells nothing of its host.
pub fn is_meant(name: &str, value: &str, before: Option<&str>, expected: Option<&str>) -> bool {
    let subdomain = expected
        .filter(|text| name == ACCOUNT_HOST && text.bytes().any(|byte| !byte.is_ascii_digit()));
    match subdomain {
        Some(subdomain) => value.split('.').next() == Some(subdomain),
        None => before.is_none_or(|before| before == value),
    }
}

/// Turns the API key of an old account into a code: the answer is 202 and empty, and the code
/// arrives at the client's callback with `from_exchange=1` and no state.
///
/// From amocrm/amocrm-api-php, `src/AmoCRM/OAuth/AmoCRMOAuth.php` `exchangeApiKey`.
pub fn key_exchange(
    client: &Client,
    login: &str,
    api_key: &SecretString,
    vars: &Vars,
) -> Result<OutboundRequest, RequestError> {
    let endpoint = client.profile.key_exchange.as_ref();
    let endpoint = endpoint.ok_or(RequestError::NotOffered("API-key exchange"))?;
    let params = [
        ("login", login.into()),
        ("api_key", api_key.clone()),
        ("client_uuid", client.client_id.as_str().into()),
        ("client_secret", client.client_secret.clone()),
    ];
    Ok(OutboundRequest {
        method: Method::POST,
        url: Values::of(client, vars).url(&endpoint.url)?,
        headers: Vec::new(),
        body: Body::Json(params.map(|(name, value)| (name.to_owned(), value)).into()),
    })
}

/// Reads the answer of [`key_exchange`]: 202, or any other success.
///
/// # Errors
///
/// If the provider declines. Its words for that are unknown, so most come as `Retry` or `Ambiguous`.
pub fn read_key_exchange(profile: &Profile, reply: &Reply) -> Result<(), ProviderError> {
    if (200..300).contains(&reply.status) { Ok(()) } else { Err(refusal(profile, reply)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Verdict, test_support};

    #[test]
    fn an_account_keeps_its_host_unless_it_is_expected_by_another_subdomain() {
        let (demo, other) = (Some("demo.amocrm.ru"), "other.amocrm.ru");
        for (value, before, expected, meant) in [
            (other, None, None, true),
            (other, None, Some("31337"), true),
            (other, None, Some("other"), true),
            (other, None, Some("demo"), false),
            (other, None, Some("other.amocrm.ru"), false),
            ("demo.amocrm.ru", demo, None, true),
            (other, demo, None, false),
            (other, demo, Some("31337"), false),
            (other, demo, Some("other"), true),
            ("demo.amocrm.ru", demo, Some("other"), false),
        ] {
            assert_eq!(
                is_meant(ACCOUNT_HOST, value, before, expected),
                meant,
                "{value} {expected:?}"
            );
        }
        assert!(is_meant("region", "eu", Some("eu"), Some("other")));
        assert!(!is_meant("region", "us", Some("eu"), Some("us")));
    }

    #[test]
    fn an_accepted_key_exchange_is_empty() {
        let reply = |status, body: &str| Reply {
            status,
            retry_after: None,
            body: body.as_bytes().to_vec().into(),
        };
        let profile = test_support::profile("amocrm");
        assert!(read_key_exchange(&profile, &reply(202, "")).is_ok());
        for (status, verdict) in [
            (400, Verdict::Retry),
            (403, Verdict::Busy { retry_after: None }),
            (500, Verdict::Ambiguous),
        ] {
            let error = read_key_exchange(&profile, &reply(status, "{}")).unwrap_err();
            assert_eq!(error.verdict, verdict, "{status}");
        }
    }
}
