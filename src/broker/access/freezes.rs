//! Freezes: what operators freeze is served no more, here at once and elsewhere at the next look at
//! the store. The background goes on refreshing it, so that its grants are alive when it is unfrozen.

use std::sync::Arc;

use super::{Access, keys::Caller};
use crate::{
    audit::{Actor, EventKind},
    broker::BrokerError,
    domain::{
        caller::{Holder, Requester},
        connection::Connection,
        consent::ConsentLink,
        freeze::{Freeze, FreezeKind, Freezes},
        slug::Slug,
    },
    store::StoreError,
};

impl Access {
    /// The freezes, as this process knows them.
    pub(crate) fn current_freezes(&self) -> Arc<Freezes> {
        Arc::clone(&self.freezes.read())
    }

    /// Freezes a thing: from now on nothing of it is served. Returns the freeze that stands and
    /// whether it is a new one.
    ///
    /// # Errors
    ///
    /// [`BrokerError::NotFound`] when there is no such thing; or when the store fails, and then it
    /// may be frozen all the same.
    pub(crate) async fn freeze(
        &self,
        kind: FreezeKind,
        name: &Slug,
        reason: &str,
        operator: &Slug,
        by: &Actor,
    ) -> Result<(Freeze, bool), BrokerError> {
        let known = match kind {
            FreezeKind::Client => self.clients.get(name).is_some() || self.has_unconfigured(name),
            FreezeKind::Connection => match self.cache.cached_or_load(name.as_str()).await {
                Ok(_) => true,
                Err(BrokerError::NotFound(_)) => false,
                Err(error) => return Err(error),
            },
            FreezeKind::Provider => self.clients.at_provider(name).next().is_some(),
            FreezeKind::Service => {
                self.store.services().await?.iter().any(|service| service.name == *name)
            }
        };
        if !known {
            return Err(BrokerError::NotFound(format!("there is no {kind} `{name}` to freeze")));
        }
        let frozen = self.store.freeze(kind, name, reason, operator).await?;
        self.load_freezes().await?;
        tracing::warn!(%kind, %name, by = %operator, "frozen: nothing of it is served");
        self.audit
            .emit(&self.audit.event(EventKind::Frozen, by).with_detail(&format!("{kind} {name}")));
        Ok(frozen)
    }

    /// Ends a freeze: the thing is served again.
    ///
    /// # Errors
    ///
    /// [`BrokerError::NotFound`] when it is not frozen; or when the store fails.
    pub(crate) async fn unfreeze(
        &self,
        kind: FreezeKind,
        name: &Slug,
        by: &Actor,
    ) -> Result<(), BrokerError> {
        let was_frozen = self.store.unfreeze(kind, name.as_str()).await?;
        self.load_freezes().await?;
        if !was_frozen {
            return Err(BrokerError::NotFound(format!("{kind} `{name}` is not frozen")));
        }
        tracing::warn!(%kind, %name, by = by.name, "unfrozen: it is served again");
        self.audit.emit(
            &self.audit.event(EventKind::Unfrozen, by).with_detail(&format!("{kind} {name}")),
        );
        Ok(())
    }

    /// Everything that is frozen, by kind and name.
    pub(crate) async fn list_freezes(&self) -> Result<Vec<Freeze>, BrokerError> {
        self.load_freezes().await?;
        Ok(self.current_freezes().iter().cloned().collect())
    }

    /// Reads every freeze from the store into memory, one reader at a time as with the keys. While
    /// the store does not answer, what was known stays frozen.
    pub(crate) async fn load_freezes(&self) -> Result<(), StoreError> {
        let _turn = self.loading_freezes.lock().await;
        let freezes = self.store.freezes().await?;
        *self.freezes.write() = Arc::new(freezes.into_iter().collect());
        Ok(())
    }

    fn has_unconfigured(&self, client: &Slug) -> bool {
        self.cache.connections().iter().any(|live| live.connection.client == *client)
    }

    /// The freeze that keeps a connection of this name and client from being served, if any.
    fn frozen(&self, connection: &Slug, client: &Slug) -> Option<FreezeKind> {
        let provider = self.clients.provider_of(client);
        self.current_freezes().of_connection(connection.as_str(), client, provider)
    }

    pub(crate) fn is_frozen(&self, connection: &Connection) -> bool {
        self.frozen(&connection.name, &connection.client).is_some()
    }

    pub(crate) fn ensure_not_frozen(
        &self,
        connection: &Slug,
        client: &Slug,
    ) -> Result<(), BrokerError> {
        self.frozen(connection, client).map_or(Ok(()), |kind| Err(BrokerError::Frozen(kind)))
    }

    pub(crate) fn ensure_service_not_frozen(&self, name: &Slug) -> Result<(), BrokerError> {
        if self.current_freezes().holds(FreezeKind::Service, name.as_str()) {
            return Err(BrokerError::Frozen(FreezeKind::Service));
        }
        Ok(())
    }

    pub(crate) fn ensure_caller_not_frozen(&self, caller: &Caller) -> Result<(), BrokerError> {
        match caller {
            Caller::Operator(_) => Ok(()),
            Caller::Service(service) => self.ensure_service_not_frozen(&service.name),
        }
    }

    pub(crate) fn ensure_requester_not_frozen(
        &self,
        link: &ConsentLink,
    ) -> Result<(), BrokerError> {
        match &link.requested_by {
            Requester { holder: Holder::Operator, .. } => Ok(()),
            Requester { holder: Holder::Service, name } => self.ensure_service_not_frozen(name),
        }
    }
}
