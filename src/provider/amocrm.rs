//! What amoCRM and Kommo do that no profile can say.

use reqwest::Method;
use secrecy::SecretString;

use super::{
    error::ProviderError,
    profile::Profile,
    request::{Body, OutboundRequest, RequestError, Values},
    response::{Reply, refusal},
};
use crate::{client::Client, connection::Vars};

/// Turns the API key of an old account into a code: the answer is 202 and empty, and the code
/// arrives at the client's callback with `from_exchange=1` and no state.
///
/// From amocrm/amocrm-api-php, `src/AmoCRM/OAuth/AmoCRMOAuth.php` `exchangeApiKey`.
///
/// # Errors
///
/// If the provider's profile has no `key_exchange`, or the account host is missing or not allowed.
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

/// Reads the answer of [`key_exchange`]: 202, or whatever else says yes.
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
