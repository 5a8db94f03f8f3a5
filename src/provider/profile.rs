//! The types of a profile's TOML file. Defaults are in `defaults`, checks beyond the types in
//! `check`.

mod defaults;
mod duration;

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use reqwest::header::HeaderName;
use serde::Deserialize;

use super::{
    network::Network,
    template::{Template, UrlTemplate},
};
use crate::domain::{connection::GrantType, slug::Slug};

/// One provider. [The profile format](crate::guide::profiles) explains each field.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The name of its file.
    pub name: Slug,
    /// The name for people.
    pub title: String,
    /// The addresses that may be called.
    #[serde(default)]
    pub network: Network,
    /// Values that differ between accounts, by the name that templates use.
    #[serde(default)]
    pub vars: BTreeMap<String, Var>,
    /// The authorization endpoint; none where no person consents.
    pub authorize: Option<Authorize>,
    /// The notation of scopes.
    #[serde(default)]
    pub scope: Scope,
    /// The token endpoint.
    pub token: TokenEndpoint,
    /// The revocation endpoint (RFC 7009); none if the provider documents none.
    pub revocation: Option<Revocation>,
    /// The grants that the provider offers.
    pub grants: Grants,
    /// Lifetimes of tokens, and the rotation of refresh tokens.
    #[serde(default)]
    pub tokens: Tokens,
    /// The rate of token requests.
    #[serde(default)]
    pub pace: Pace,
    /// Verdicts on error answers beyond RFC 6749; the first rule that fits decides.
    #[serde(default)]
    pub errors: Vec<ErrorRule>,
    /// The account call.
    pub account: Option<AccountCall>,
    /// The form of resource calls.
    pub resource: Resource,
    /// The endpoint that turns an amoCRM API key into a code.
    pub key_exchange: Option<KeyExchangeEndpoint>,
    /// A client's settings besides id and secret; all of them are secret.
    #[serde(default)]
    pub client: BTreeMap<String, Setting>,
}

impl Profile {
    /// The token request of a grant type; none if the provider does not offer it.
    pub fn grant(&self, grant_type: GrantType) -> Option<&GrantRequest> {
        match grant_type {
            GrantType::AuthorizationCode => self.grants.authorization_code.as_ref(),
            GrantType::ClientCredentials => self.grants.client_credentials.as_ref(),
        }
    }

    /// True if PKCE (RFC 7636) is used.
    pub fn pkce(&self) -> bool {
        self.authorize.as_ref().is_some_and(|authorize| authorize.pkce)
    }
}

/// A value that differs between accounts. Every allowed value is listed, or follows from a suffix.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Var {
    /// The callback's parameter that carries it; none if an operator gives it.
    pub from_callback: Option<String>,
    /// It is one DNS label under one of these.
    #[serde(default)]
    pub suffixes: Vec<String>,
    /// It is one of these.
    #[serde(default)]
    pub allow: Vec<String>,
}

/// The authorization endpoint (RFC 6749 section 3.1).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorize {
    /// Its URL.
    pub url: UrlTemplate,
    /// Standard parameters that the provider does not take.
    #[serde(default)]
    pub omit: Vec<StandardParam>,
    /// Parameters of its own.
    #[serde(default)]
    pub params: BTreeMap<String, Template>,
    /// PKCE, always with S256.
    #[serde(default = "defaults::pkce")]
    pub pkce: bool,
    /// The issuer that the provider names in every callback (RFC 9207): one that names none, or
    /// another, is refused. None for a provider that is not known to name itself.
    pub issuer: Option<String>,
}

/// A parameter of RFC 6749 that is sent unless a profile omits it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum StandardParam {
    /// The redirect URI.
    RedirectUri,
    /// Always `code`.
    ResponseType,
    /// The scopes that are asked for.
    Scope,
}

impl StandardParam {
    /// Its name in RFC 6749.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RedirectUri => "redirect_uri",
            Self::ResponseType => "response_type",
            Self::Scope => "scope",
        }
    }
}

/// The notation of scopes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scope {
    /// The text between two scopes.
    pub separator: String,
    /// Scopes that every request asks for.
    pub always: Vec<String>,
}

/// The token endpoint (RFC 6749 section 3.2).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEndpoint {
    /// Its URL.
    pub url: UrlTemplate,
    /// The encoding of the request's parameters.
    #[serde(default)]
    pub body: BodyFormat,
    /// The limit for a whole request to the provider.
    #[serde(default = "defaults::timeout", deserialize_with = "duration::required")]
    pub timeout: Duration,
}

/// The revocation endpoint (RFC 7009 section 2), which takes a form.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Its URL.
    pub url: UrlTemplate,
    /// The client authentication.
    pub client_auth: ClientAuth,
    /// The token to present. The other one ends with it, and stands in where this one is missing.
    #[serde(default)]
    pub token: RevokedToken,
}

/// The token of a grant that is presented for revocation.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum RevokedToken {
    /// The access token.
    Access,
    /// The refresh token.
    #[default]
    Refresh,
}

impl RevokedToken {
    /// Its `token_type_hint` (RFC 7009 section 2.1).
    pub fn hint(self) -> &'static str {
        match self {
            Self::Access => "access_token",
            Self::Refresh => "refresh_token",
        }
    }
}

/// The encoding of a token request's parameters.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum BodyFormat {
    /// `application/x-www-form-urlencoded`, as RFC 6749 has it.
    #[default]
    Form,
    /// A JSON object.
    Json,
}

/// The grants that a provider offers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// RFC 6749 section 4.1.
    pub authorization_code: Option<GrantRequest>,
    /// RFC 6749 section 4.4.
    pub client_credentials: Option<GrantRequest>,
    /// RFC 6749 section 6.
    pub refresh_token: Option<GrantRequest>,
}

/// The token request of one grant type.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// The client authentication.
    pub client_auth: ClientAuth,
    /// Standard parameters that the provider does not take.
    #[serde(default)]
    pub omit: Vec<StandardParam>,
    /// Parameters of its own.
    #[serde(default)]
    pub params: BTreeMap<String, Template>,
}

/// Client authentication (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// HTTP Basic.
    Basic,
    /// `client_id` and `client_secret` among the parameters.
    Body,
}

/// Lifetimes of tokens, and the rotation of refresh tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// The life of an access token whose `expires_in` is missing or makes no sense.
    #[serde(deserialize_with = "duration::required")]
    pub access_life: Duration,
    /// The longest `expires_in` that is believed.
    #[serde(deserialize_with = "duration::required")]
    pub max_access_life: Duration,
    /// The life of an unused refresh token; none if unknown.
    #[serde(deserialize_with = "duration::optional")]
    pub refresh_idle_life: Option<Duration>,
    /// The fate of a refresh token that was used.
    pub rotation: Rotation,
    /// The life of a used refresh token, for [`Rotation::Grace`].
    #[serde(deserialize_with = "duration::optional")]
    pub grace: Option<Duration>,
}

/// The rate of token requests to a provider, for each replica.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Pace {
    /// Token requests a second.
    pub per_second: NonZeroU32,
    /// Token requests that may go at once after a pause.
    pub burst: NonZeroU32,
    /// Background refreshes that may be under way at once.
    pub in_flight: NonZeroU32,
}

impl Tokens {
    /// The longest time between two uses of a refresh token, so that it does not die of disuse: a
    /// third of its idle life, or a week where that is unknown.
    pub fn keep_alive(&self) -> Duration {
        self.refresh_idle_life.map_or(Duration::from_hours(7 * 24), |life| life / 3)
    }
}

/// The fate of a refresh token that was used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// It works for a while more; then it is dead.
    Grace,
    /// It stays the same.
    None,
    /// It is dead at once. The default for an unknown provider.
    SingleUse,
    /// It is dead at once, and using it again kills its successors too.
    SingleUseFamily,
}

impl Rotation {
    /// True if a refresh token may be presented once more after `open_attempts` with an unknown
    /// outcome, while its access token lives or not.
    ///
    /// A repetition can hurt only where it kills what the provider may have issued; there it waits
    /// until the access token has ended and nothing is left to lose. Elsewhere it costs nothing: if
    /// the provider has acted, what it issued is lost to us in any case.
    pub fn may_present(self, open_attempts: u32, access_lives: bool) -> bool {
        match self {
            Self::Grace | Self::None | Self::SingleUse => true,
            Self::SingleUseFamily => open_attempts == 0 || !access_lives,
        }
    }
}

/// The verdict on one kind of answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorRule {
    /// The HTTP status; any if none.
    pub status: Option<u16>,
    /// Members of the JSON body, by JSON pointer (RFC 6901), and the values they must have.
    #[serde(default, rename = "match")]
    pub matches: BTreeMap<String, Scalar>,
    /// Members that must not be there.
    #[serde(default)]
    pub absent: Vec<String>,
    /// The verdict.
    pub verdict: RuleVerdict,
    /// For a refusal, why, as a stable word.
    pub reason: Option<String>,
}

/// A value that a member of a JSON body is compared with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(untagged, expecting = "expected a text, a whole number, true or false")]
pub enum Scalar {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A text.
    Text(String),
}

/// The verdicts that a rule can give.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum RuleVerdict {
    /// Slow down; nothing is lost.
    Busy,
    /// Our registration or request is at fault, not the account's grant.
    Misconfigured,
    /// The grant is dead; a person must consent again.
    Refused,
    /// Ask again; nothing is lost.
    Retry,
}

/// The call that tells who a token belongs to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountCall {
    /// Its URL, for GET.
    pub url: UrlTemplate,
    /// JSON pointer to the account's id.
    pub id: String,
    /// JSON pointer to its name.
    pub name: Option<String>,
    /// JSON pointers to other names that identify it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Headers, if they differ from a resource call's.
    pub headers: Option<BTreeMap<String, Template>>,
}

/// The form of a service's calls with a token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// The base URL of the account's API.
    pub base_url: UrlTemplate,
    /// Headers, by name as the provider writes it.
    #[serde(default = "defaults::resource_headers")]
    pub headers: BTreeMap<String, Template>,
}

/// The endpoint that turns an amoCRM API key into a code.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyExchangeEndpoint {
    /// Its URL.
    pub url: UrlTemplate,
}

/// A setting that every client of the provider needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// A description for the person who has to find it.
    pub about: String,
}

/// A header's name as HTTP has it; none if it cannot be one, or belongs to the connection itself.
pub(super) fn header_name(text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
    let ours =
        ["accept", "accept-encoding", "connection", "content-length", "content-type", "host"];
    let ours = ours.contains(&name.as_str()) || name == "transfer-encoding" || name == "upgrade";
    (!ours).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_presented_again_where_that_cannot_hurt() {
        for rotation in [Rotation::None, Rotation::Grace, Rotation::SingleUse] {
            assert!(rotation.may_present(7, true), "{rotation:?}");
        }
        let family = Rotation::SingleUseFamily;
        assert!(family.may_present(0, true));
        assert!(!family.may_present(1, true));
        assert!(family.may_present(1, false));
    }
}
