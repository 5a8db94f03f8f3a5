//! A client: our registration at a provider.

use std::{collections::BTreeMap, sync::Arc};

use secrecy::SecretString;

use crate::{connection::GrantType, provider::Profile, slug::Slug};

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
    /// What else the profile's `[client.*]` asks for, such as Divar's `api_key`.
    pub settings: BTreeMap<String, SecretString>,
    /// The scopes to ask for where a connection or link names none.
    pub scopes: Vec<String>,
    /// How a connection made with `POST /v1/connections` obtains its tokens.
    pub grant_type: GrantType,
    /// Where the provider sends the browser back to; registered at the provider byte for byte.
    pub redirect_uri: String,
}
