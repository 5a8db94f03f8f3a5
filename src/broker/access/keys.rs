//! Keys: checking them, and making and ending them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use secrecy::SecretString;

use super::Access;
use crate::{
    audit::{Actor, EventKind},
    broker::{BrokerError, cache::UNCONFIRMED},
    domain::{
        caller::{self, Holder, Operator, Pattern, Requester, Service, StoredKey, Verb},
        slug::Slug,
    },
    seal::secret::Digest,
    store::StoreError,
};

/// The most keys of a service that may live at once: one in use, and the one that replaces it.
const MAX_LIVE_KEYS: i64 = 2;

/// The caller that showed a key.
#[derive(Clone, Debug)]
pub enum Caller {
    /// An operator, by name.
    Operator(Slug),
    /// A service and what it may do.
    Service(Arc<Service>),
}

impl Caller {
    /// The name in records: `operator alice`, `service billing`.
    pub fn label(&self) -> String {
        self.requester().to_string()
    }

    /// The caller, as the requester of a link.
    pub fn requester(&self) -> Requester {
        let (holder, name) = match self {
            Self::Operator(name) => (Holder::Operator, name),
            Self::Service(service) => (Holder::Service, &service.name),
        };
        Requester { holder, name: name.clone() }
    }

    /// As [`Caller::label`], of a service.
    pub(crate) fn label_of(service: &Service) -> String {
        format!("{} {}", Holder::Service, service.name)
    }
}

/// A key with the caller it stands for.
#[derive(Debug)]
pub(crate) struct KnownKey {
    pub(crate) stored: StoredKey,
    pub(crate) caller: Caller,
}

/// Every key, by its id; replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub(crate) by_id: BTreeMap<String, KnownKey>,
    pub(crate) operators: bool,
}

impl Access {
    /// The caller whose key this is.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Unauthorized`] when no live key fits; nothing tells which part is wrong.
    /// [`BrokerError::Unavailable`] when the store has confirmed no key for so long that any of them
    /// may have been deleted.
    #[expect(clippy::disallowed_methods, reason = "the key's public id is read from it")]
    pub(crate) fn authenticate(&self, shown: &SecretString) -> Result<Caller, BrokerError> {
        use secrecy::ExposeSecret as _;
        if self.cache.is_unconfirmed() {
            return Err(BrokerError::Unavailable {
                reason: UNCONFIRMED.to_owned(),
                retry_after: Duration::from_secs(5),
            });
        }
        let keys = self.keys();
        // An unknown id is compared as well, with a digest that nothing has.
        let known = caller::key_id(shown.expose_secret()).and_then(|id| keys.by_id.get(id));
        let expected = known.map_or(Digest::of_bytes(&[]), |key| key.stored.digest);
        let fits = Digest::of(shown) == expected;
        match known {
            Some(key)
                if fits
                    && key.stored.expires_at.is_none_or(|end| self.process.clock.now() < end) =>
            {
                Ok(key.caller.clone())
            }
            _ => Err(BrokerError::Unauthorized),
        }
    }

    /// True if any operator exists; until then operators' routes do not.
    pub(crate) fn has_operators(&self) -> bool {
        self.keys().operators
    }

    /// Makes an operator and their first key.
    pub(crate) async fn create_operator(&self, name: Slug) -> Result<SecretString, BrokerError> {
        let now = self.process.clock.now();
        let (key, stored) = caller::new_key(Holder::Operator, name.clone(), now, None);
        self.store.create_operator(&Operator { name, created_at: now }, &stored).await?;
        self.note_key(EventKind::OperatorMade, &Actor::command_line(), &stored);
        self.apply_new_key().await;
        Ok(key)
    }

    /// Makes a service and its first key, which is shown once.
    pub(crate) async fn create_service(
        &self,
        by: &Actor,
        name: Slug,
        connections: Vec<Pattern>,
        verbs: BTreeSet<Verb>,
        expires_at: Option<Timestamp>,
    ) -> Result<(Service, SecretString, StoredKey), BrokerError> {
        let now = self.process.clock.now();
        if connections.is_empty() {
            return Err(BrokerError::Invalid(
                "`connections` is empty: name at least one connection or pattern".to_owned(),
            ));
        }
        if verbs.is_empty() {
            return Err(BrokerError::Invalid("`verbs` is empty: name at least one".to_owned()));
        }
        check_expiry(expires_at, now)?;
        let service = Service { name: name.clone(), connections, verbs, created_at: now };
        let (key, stored) = caller::new_key(Holder::Service, name, now, expires_at);
        self.store.create_service(&service, &stored).await?;
        self.note_key(EventKind::ServiceMade, by, &stored);
        self.apply_new_key().await;
        Ok((service, key, stored))
    }

    /// Makes another key for a service, so that the first can be replaced without a gap.
    pub(crate) async fn add_service_key(
        &self,
        by: &Actor,
        name: &Slug,
        expires_at: Option<Timestamp>,
    ) -> Result<(SecretString, StoredKey), BrokerError> {
        let now = self.process.clock.now();
        check_expiry(expires_at, now)?;
        self.service(name).await?;
        let (key, stored) = caller::new_key(Holder::Service, name.clone(), now, expires_at);
        if !self.store.add_key(&stored, MAX_LIVE_KEYS).await? {
            return Err(BrokerError::Conflict(format!(
                "service `{name}` has two live keys already; delete one first"
            )));
        }
        self.note_key(EventKind::KeyMade, by, &stored);
        self.apply_new_key().await;
        Ok((key, stored))
    }

    /// Every service with its keys.
    pub(crate) async fn services(&self) -> Result<Vec<(Service, Vec<StoredKey>)>, BrokerError> {
        let services = self.store.services().await?;
        let keys = self.store.keys().await?;
        Ok(services
            .into_iter()
            .map(|service| {
                let own = keys
                    .iter()
                    .filter(|key| key.holder == Holder::Service && key.owner == service.name)
                    .cloned()
                    .collect();
                (service, own)
            })
            .collect())
    }

    /// One service with its keys.
    pub(crate) async fn service(
        &self,
        name: &Slug,
    ) -> Result<(Service, Vec<StoredKey>), BrokerError> {
        self.services()
            .await?
            .into_iter()
            .find(|(service, _)| service.name == *name)
            .ok_or_else(|| BrokerError::NotFound(format!("there is no service `{name}`")))
    }

    /// Deletes a service with all its keys, and withdraws the links that it made.
    pub(crate) async fn delete_service(&self, by: &Actor, name: &Slug) -> Result<(), BrokerError> {
        let existed = self.store.delete_service(name).await?;
        if existed {
            let record = self.audit.event(EventKind::ServiceDeleted, by);
            self.audit.emit(&record.with_detail(&format!("service {name}")));
        }
        self.load_keys().await?;
        if existed {
            Ok(())
        } else {
            Err(BrokerError::NotFound(format!("there is no service `{name}`")))
        }
    }

    /// Ends one key of a service.
    pub(crate) async fn delete_service_key(
        &self,
        by: &Actor,
        name: &Slug,
        id: &str,
    ) -> Result<(), BrokerError> {
        let (_, keys) = self.service(name).await?;
        let Some(key) = keys.iter().find(|key| key.id == id) else {
            return Err(BrokerError::NotFound(format!("service `{name}` has no such key")));
        };
        if self.store.delete_key(id).await? {
            self.note_key(EventKind::KeyDeleted, by, key);
        }
        self.load_keys().await?;
        Ok(())
    }

    /// Takes up a key that was made a moment ago. It is shown whether that succeeds or not, for it is
    /// never shown again; the next look at the store takes it up as well.
    async fn apply_new_key(&self) {
        if let Err(error) = self.load_keys().await {
            tracing::warn!(%error, "a new key is not known here for a moment");
        }
    }

    /// Reads every key from the store into memory. One at a time: a slower read that began earlier
    /// must not bring back what a later one no longer found.
    pub(crate) async fn load_keys(&self) -> Result<(), StoreError> {
        let _turn = self.loading_keys.lock().await;
        let services: Vec<_> = self.store.services().await?.into_iter().map(Arc::new).collect();
        let mut keys = Keys::default();
        for stored in self.store.keys().await? {
            let caller = match stored.holder {
                Holder::Operator => {
                    keys.operators = true;
                    Some(Caller::Operator(stored.owner.clone()))
                }
                Holder::Service => services
                    .iter()
                    .find(|service| service.name == stored.owner)
                    .map(|service| Caller::Service(Arc::clone(service))),
            };
            if let Some(caller) = caller {
                keys.by_id.insert(stored.id.clone(), KnownKey { stored, caller });
            }
        }
        let now = self.process.clock.now();
        for (id, KnownKey { stored, .. }) in &self.keys().by_id {
            if !keys.by_id.contains_key(id) && stored.expires_at.is_some_and(|end| end <= now) {
                let record = self.audit.event(EventKind::KeyExpired, &Actor::broker());
                self.audit.emit(&record.with_detail(&label(stored)).once_for(id));
            }
        }
        *self.keys.write() = Arc::new(keys);
        Ok(())
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read())
    }

    fn note_key(&self, kind: EventKind, by: &Actor, key: &StoredKey) {
        self.audit.emit(&self.audit.event(kind, by).with_detail(&label(key)));
    }
}

/// A key in records: whose it is, and its public part.
fn label(key: &StoredKey) -> String {
    format!("{} {}, key {}", key.holder, key.owner, key.id)
}

fn check_expiry(expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), BrokerError> {
    if expires_at.is_some_and(|end| end <= now) {
        return Err(BrokerError::Invalid("`expires_at` is in the past".to_owned()));
    }
    Ok(())
}
