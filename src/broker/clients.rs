//! The clients that the configuration names.

use std::{collections::BTreeMap, sync::Arc};

use super::BrokerError;
use crate::{
    domain::{connection::Connection, slug::Slug},
    provider::client::Client,
};

/// Our registrations at the providers, by name.
#[derive(Debug)]
pub(crate) struct Clients(BTreeMap<Slug, Arc<Client>>);

impl Clients {
    pub(crate) fn new(clients: BTreeMap<Slug, Arc<Client>>) -> Self {
        Self(clients)
    }

    pub(crate) fn get(&self, name: &Slug) -> Option<&Arc<Client>> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.0.values()
    }

    /// The client of a stored connection. [`BrokerError::Misconfigured`] where it has left the
    /// configuration.
    pub(crate) fn of_connection(&self, name: &Slug) -> Result<&Arc<Client>, BrokerError> {
        self.get(name).ok_or_else(|| {
            BrokerError::Misconfigured(format!(
                "client `{name}` is not in the configuration any more; restore [clients.{name}]"
            ))
        })
    }

    /// The client that a caller names. [`BrokerError::Invalid`] where there is none.
    pub(crate) fn named(&self, name: &Slug) -> Result<&Arc<Client>, BrokerError> {
        self.get(name).ok_or_else(|| {
            let known: Vec<_> = self.0.keys().map(Slug::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            BrokerError::Invalid(format!(
                "there is no client `{name}` in the configuration; known: {known}"
            ))
        })
    }

    /// The names of our registrations at a provider.
    pub(crate) fn at_provider<'a>(
        &'a self,
        provider: &'a Slug,
    ) -> impl Iterator<Item = &'a Slug> + 'a {
        self.iter()
            .filter(move |client| client.profile.name == *provider)
            .map(|client| &client.name)
    }

    /// The provider of a client, where the configuration names it.
    pub(crate) fn provider_of(&self, client: &Slug) -> Option<&Slug> {
        self.get(client).map(|client| &client.profile.name)
    }

    /// The provider of a connection, as people call it.
    pub(crate) fn title_of(&self, connection: &Connection) -> &str {
        let client = self.get(&connection.client);
        client.map_or("the provider", |client| client.profile.title.as_str())
    }

    /// The task of a person where nobody can revoke the tokens of a deleted connection from here.
    pub(crate) fn removal_task(&self, connection: &Connection) -> String {
        let provider = self.title_of(connection);
        format!(
            "its tokens may live on at {provider}: remove the application in the account there, or \
             ask its owner to; then delete the connection once more"
        )
    }
}
