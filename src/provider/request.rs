//! The requests of every grant, made from a client and its provider's profile. Nothing is sent
//! here.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Method,
    header::{AUTHORIZATION, HeaderName},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use url::{Url, form_urlencoded};

use super::{
    client::Client,
    profile::{BodyFormat, ClientAuth, GrantRequest, RevokedToken, StandardParam, header_name},
    template::{RenderUrlError, Template, Unset, UrlTemplate},
    vars::VarError,
};
use crate::domain::connection::Vars;

/// A request to a provider, ready to be sent.
#[derive(Debug)]
pub struct OutboundRequest {
    /// GET or POST.
    pub method: Method,
    /// The URL; never with a secret in it.
    pub url: Url,
    /// Headers besides those of every request.
    pub headers: Vec<(HeaderName, SecretString)>,
    /// The body.
    pub body: Body,
}

/// The body of a request.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// `application/x-www-form-urlencoded`.
    Form(Vec<(String, SecretString)>),
    /// A JSON object of texts.
    Json(Vec<(String, SecretString)>),
}

/// Why a request cannot be made. It names settings, never values.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The provider does not offer it.
    #[error("the provider offers no {0}")]
    NotOffered(&'static str),
    /// The provider uses PKCE, and no challenge or verifier was given; or the other way round.
    #[error("PKCE must be used for the whole of a consent or not at all")]
    Pkce,
    /// A template names a value that is missing.
    #[error(transparent)]
    Unset(#[from] Unset),
    /// Values and template make no URL.
    #[error(transparent)]
    Url(#[from] RenderUrlError),
    /// A value that differs between accounts is not allowed, or no longer.
    #[error(transparent)]
    Var(#[from] VarError),
}

/// The parameters of an authorization request.
#[derive(Clone, Copy, Debug)]
pub struct Authorization<'a> {
    /// Comes back in the callback and ties it to this consent.
    pub state: &'a SecretString,
    /// The scopes to ask for.
    pub scopes: &'a [String],
    /// PKCE's S256 challenge; used only where the profile has PKCE, and needed there.
    pub challenge: Option<&'a str>,
    /// The account's variables, as far as they are known beforehand.
    pub vars: &'a Vars,
}

/// The tokens that a connection holds when it asks for a refresh.
#[derive(Clone, Copy, Debug)]
pub struct CurrentTokens<'a> {
    /// The refresh token.
    pub refresh: &'a SecretString,
    /// The last access token, alive or not: Divar wants it.
    pub access: &'a SecretString,
}

/// The URL at which a person consents (RFC 6749 section 4.1.1). It carries `state`.
pub fn authorize_url(client: &Client, asked: &Authorization<'_>) -> Result<Url, RequestError> {
    let profile = &client.profile;
    let authorize =
        profile.authorize.as_ref().ok_or(RequestError::NotOffered("authorization_code"))?;
    let values = Values::of(client, asked.vars);
    let mut url = values.url(&authorize.url)?;
    {
        let sent = |param| !authorize.omit.contains(&param);
        let mut query = url.query_pairs_mut();
        if sent(StandardParam::ResponseType) {
            query.append_pair("response_type", "code");
        }
        query.append_pair("client_id", &client.client_id);
        if sent(StandardParam::RedirectUri) {
            query.append_pair("redirect_uri", &client.redirect_uri);
        }
        let scope = scope(client, asked.scopes);
        if sent(StandardParam::Scope) && !scope.is_empty() {
            query.append_pair("scope", &scope);
        }
        query.append_pair("state", expose(asked.state));
        if profile.pkce() {
            query.append_pair("code_challenge", asked.challenge.ok_or(RequestError::Pkce)?);
            query.append_pair("code_challenge_method", "S256");
        }
        for (name, template) in &authorize.params {
            query.append_pair(name, expose(&values.render(template)?));
        }
    }
    // A space as `+` is right in a form, but not every provider reads a query as one.
    let query = url.query().map(|query| query.replace('+', "%20"));
    url.set_query(query.as_deref());
    Ok(url)
}

/// Exchanges a code for tokens (RFC 6749 section 4.1.3). `redirect_uri` is the one that the
/// authorization request carried.
pub fn code_exchange(
    client: &Client,
    code: &SecretString,
    verifier: Option<&SecretString>,
    redirect_uri: &str,
    vars: &Vars,
) -> Result<OutboundRequest, RequestError> {
    let grant = client.profile.grants.authorization_code.as_ref();
    let grant = grant.ok_or(RequestError::NotOffered("authorization_code"))?;
    let values = Values { redirect_uri, ..Values::of(client, vars) };
    let mut params = vec![("code", code.clone())];
    if !grant.omit.contains(&StandardParam::RedirectUri) {
        params.push(("redirect_uri", redirect_uri.into()));
    }
    if client.profile.pkce() {
        params.push(("code_verifier", verifier.ok_or(RequestError::Pkce)?.clone()));
    }
    values.token_request("authorization_code", grant, params)
}

/// Asks for a token for the client itself (RFC 6749 section 4.4.2).
pub fn client_credentials(
    client: &Client,
    scopes: &[String],
    vars: &Vars,
) -> Result<OutboundRequest, RequestError> {
    let grant = client.profile.grants.client_credentials.as_ref();
    let grant = grant.ok_or(RequestError::NotOffered("client_credentials"))?;
    let scope = scope(client, scopes);
    let sent = !grant.omit.contains(&StandardParam::Scope) && !scope.is_empty();
    let params = if sent { vec![("scope", scope.into())] } else { Vec::new() };
    Values::of(client, vars).token_request("client_credentials", grant, params)
}

/// Exchanges a refresh token for new tokens (RFC 6749 section 6).
pub fn refresh(
    client: &Client,
    tokens: CurrentTokens<'_>,
    redirect_uri: &str,
    vars: &Vars,
) -> Result<OutboundRequest, RequestError> {
    let grant = client.profile.grants.refresh_token.as_ref();
    let grant = grant.ok_or(RequestError::NotOffered("refresh_token"))?;
    let values = Values { redirect_uri, access: Some(tokens.access), ..Values::of(client, vars) };
    values.token_request("refresh_token", grant, vec![("refresh_token", tokens.refresh.clone())])
}

/// Asks for a token to be revoked (RFC 7009 section 2.1).
pub fn revoke(
    client: &Client,
    kind: RevokedToken,
    token: &SecretString,
    vars: &Vars,
) -> Result<OutboundRequest, RequestError> {
    let revocation = client.profile.revocation.as_ref();
    let revocation = revocation.ok_or(RequestError::NotOffered("revocation"))?;
    let url = Values::of(client, vars).url(&revocation.url)?;
    let (mut headers, mut params) = (Vec::new(), Vec::new());
    authenticate_client(client, revocation.client_auth, &mut headers, &mut params);
    params.push(("token", token.clone()));
    params.push(("token_type_hint", kind.hint().into()));
    let params = params.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(OutboundRequest { method: Method::POST, url, headers, body: Body::Form(params) })
}

/// Asks who an access token belongs to; none where the provider cannot say.
pub fn account(
    client: &Client,
    access: &SecretString,
    vars: &Vars,
) -> Option<Result<OutboundRequest, RequestError>> {
    let account = client.profile.account.as_ref()?;
    let values = Values { access: Some(access), ..Values::of(client, vars) };
    let templates = account.headers.as_ref().unwrap_or(&client.profile.resource.headers);
    let request = || {
        let url = values.url(&account.url)?;
        let mut headers = Vec::new();
        for (name, value) in values.headers(templates)? {
            headers.extend(header_name(&name).map(|name| (name, value)));
        }
        Ok(OutboundRequest { method: Method::GET, url, headers, body: Body::Empty })
    };
    Some(request())
}

/// The base URL of the account's API.
pub fn api_base_url(client: &Client, vars: &Vars) -> Result<String, RequestError> {
    let url = Values::of(client, vars).url(&client.profile.resource.base_url)?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The headers that a resource call needs, by name as the provider writes it.
pub fn resource_headers(
    client: &Client,
    access: &SecretString,
    vars: &Vars,
) -> Result<BTreeMap<String, SecretString>, RequestError> {
    let values = Values { access: Some(access), ..Values::of(client, vars) };
    Ok(values.headers(&client.profile.resource.headers)?)
}

/// The scopes as the provider wants them written, with those it always needs.
fn scope(client: &Client, scopes: &[String]) -> String {
    let Some(first) = scopes.first() else {
        return client.profile.scope.always.join(&client.profile.scope.separator);
    };
    let always = client.profile.scope.always.iter().filter(|scope| !scopes.contains(scope));
    let rest = scopes[1..].iter().chain(always);
    rest.fold(first.clone(), |text, scope| text + &client.profile.scope.separator + scope)
}

/// The values that the templates of one request may name.
pub(super) struct Values<'a> {
    client: &'a Client,
    vars: &'a Vars,
    redirect_uri: &'a str,
    access: Option<&'a SecretString>,
}

impl<'a> Values<'a> {
    pub(super) fn of(client: &'a Client, vars: &'a Vars) -> Self {
        Self { client, vars, redirect_uri: &client.redirect_uri, access: None }
    }

    /// A URL, with each value checked again: a stored one may be older than the profile.
    pub(super) fn url(&self, template: &UrlTemplate) -> Result<Url, RequestError> {
        for name in template.names() {
            if let Some(value) = self.vars.get(name) {
                self.client.profile.check_var(name, value)?;
            }
        }
        Ok(template.render(|name| self.vars.get(name).map(String::as_str))?)
    }

    fn render(&self, template: &Template) -> Result<SecretString, Unset> {
        let rendered = template.render(|name| match name {
            "access_token" => self.access.map(expose),
            "client_id" => Some(self.client.client_id.as_str()),
            "redirect_uri" => Some(self.redirect_uri),
            _ => match self.vars.get(name) {
                Some(var) => Some(var.as_str()),
                None => self.client.settings.get(name).map(expose),
            },
        });
        rendered.map(SecretString::from)
    }

    fn headers(
        &self,
        templates: &BTreeMap<String, Template>,
    ) -> Result<BTreeMap<String, SecretString>, Unset> {
        let render = |(name, value): (&String, &Template)| Ok((name.clone(), self.render(value)?));
        templates.iter().map(render).collect()
    }

    /// A POST to the token endpoint with the client's proof, the parameters of the grant and then
    /// those of the profile. One without a value is left out (RFC 6749 section 3.2).
    fn token_request(
        &self,
        grant_type: &str,
        grant: &GrantRequest,
        own: Vec<(&str, SecretString)>,
    ) -> Result<OutboundRequest, RequestError> {
        let client = self.client;
        let mut params = vec![("grant_type", SecretString::from(grant_type))];
        let mut headers = Vec::new();
        authenticate_client(client, grant.client_auth, &mut headers, &mut params);
        params.extend(own);
        for (name, template) in &grant.params {
            params.push((name, self.render(template)?));
        }
        params.retain(|(_, value)| !expose(value).is_empty());
        let params = params.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let body = match client.profile.token.body {
            BodyFormat::Form => Body::Form(params),
            BodyFormat::Json => Body::Json(params),
        };
        let url = self.url(&client.profile.token.url)?;
        Ok(OutboundRequest { method: Method::POST, url, headers, body })
    }
}

/// Adds the client's proof of who it is.
fn authenticate_client(
    client: &Client,
    auth: ClientAuth,
    headers: &mut Vec<(HeaderName, SecretString)>,
    params: &mut Vec<(&str, SecretString)>,
) {
    match auth {
        ClientAuth::Basic => headers.push((AUTHORIZATION, basic(client))),
        ClientAuth::Body => {
            params.push(("client_id", client.client_id.as_str().into()));
            params.push(("client_secret", client.client_secret.clone()));
        }
    }
}

/// HTTP Basic: each half is form-encoded first (RFC 6749 section 2.3.1).
fn basic(client: &Client) -> SecretString {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encode(&client.client_id), encode(expose(&client.client_secret)));
    format!("Basic {}", STANDARD.encode(pair)).into()
}

impl Body {
    /// The content type and the text to send; none if there is nothing to send.
    pub fn encode(&self) -> Option<(&'static str, SecretString)> {
        match self {
            Self::Empty => None,
            Self::Form(params) => {
                let mut form = form_urlencoded::Serializer::new(String::new());
                form.extend_pairs(params.iter().map(|(name, value)| (name, expose(value))));
                Some(("application/x-www-form-urlencoded", form.finish().into()))
            }
            Self::Json(params) => {
                let text = serde_json::to_string(&Object(params)).unwrap_or_default();
                Some(("application/json", text.into()))
            }
        }
    }
}

struct Object<'a>(&'a [(String, SecretString)]);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            object.serialize_entry(name, expose(value))?;
        }
        object.end()
    }
}

#[expect(clippy::disallowed_methods, reason = "a request to the provider is made of its secrets")]
fn expose(secret: &SecretString) -> &str {
    secret.expose_secret()
}
