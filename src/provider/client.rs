//! A client: our registration at a provider.

use std::{collections::BTreeMap, sync::Arc};

use secrecy::SecretString;

use super::Profile;
use crate::domain::{
    caller::{Pattern, Service},
    connection::GrantType,
    slug::Slug,
};

/// Our registration at a provider, checked against the provider's profile.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its name in the configuration, and in the callback's path.
    pub name: Slug,
    /// The provider it is registered at.
    pub profile: Arc<Profile>,
    /// The identifier that the provider gave.
    pub client_id: String,
    /// The secret that the provider gave.
    pub client_secret: SecretString,
    /// The settings that the profile's `[client.*]` asks for, such as Divar's `api_key`.
    pub settings: BTreeMap<String, SecretString>,
    /// The scopes to ask for where a connection or link names none.
    pub scopes: Vec<String>,
    /// The services that may ask for consents through it, for connections that they may use.
    pub services: Vec<Pattern>,
    /// The grant type of a connection made with `POST /v1/connections`.
    pub grant_type: GrantType,
    /// The redirect URI, registered at the provider byte for byte.
    pub redirect_uri: String,
}

impl Client {
    /// True if a service may ask for consents through this registration.
    pub fn is_open_to(&self, service: &Service) -> bool {
        self.services.iter().any(|pattern| pattern.covers(service.name.as_str()))
    }

    /// Checks scopes that somebody asks for: none may be empty, hold white space or control
    /// characters, or the provider's separator, with which it would become two.
    ///
    /// # Errors
    ///
    /// One sentence; it does not repeat the scope.
    pub fn check_scopes(&self, scopes: &[String]) -> Result<(), String> {
        let separator = &self.profile.scope.separator;
        let fits = |scope: &String| {
            let printable = !scope.chars().any(|char| char.is_whitespace() || char.is_control());
            !scope.is_empty() && printable && !scope.contains(separator.as_str())
        };
        if scopes.iter().all(fits) {
            Ok(())
        } else {
            Err("expected a list of single scopes, without spaces or separators".into())
        }
    }
}

/// The grant that was asked for, if the provider has it; else the first that it has.
///
/// # Errors
///
/// One sentence that says what the provider offers instead.
pub fn choose_grant(profile: &Profile, asked: Option<GrantType>) -> Result<GrantType, String> {
    let offered: Vec<GrantType> = [GrantType::AuthorizationCode, GrantType::ClientCredentials]
        .into_iter()
        .filter(|grant| profile.grant(*grant).is_some())
        .collect();
    let words = || offered.iter().map(|grant| grant.as_str()).collect::<Vec<_>>().join(", ");
    match asked {
        Some(grant) if offered.contains(&grant) => Ok(grant),
        Some(grant) => {
            Err(format!("{} does not offer {grant}; it offers {}", profile.title, words()))
        }
        None => offered
            .first()
            .copied()
            .ok_or_else(|| format!("{} offers no grant a connection can use", profile.title)),
    }
}
