//! What amoCRM and Kommo do that no profile can say.

use reqwest::Method;
use secrecy::SecretString;

use super::{
    error::{ProviderError, judge},
    profile::Profile,
    request::{Body, OutboundRequest, RequestError, Values},
    response::{Reply, parse_body},
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

/// Reads the answer to [`key_exchange`]: any success means that the code is on its way.
///
/// # Errors
///
/// If the key, the login or our registration is refused, or the answer says nothing.
pub fn read_key_exchange(profile: &Profile, reply: &Reply) -> Result<(), ProviderError> {
    if (200..300).contains(&reply.status) {
        return Ok(());
    }
    Err(judge(profile, reply, parse_body(reply).as_ref()))
}
