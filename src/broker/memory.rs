//! What is served: every connection with its access token open, and every key, in memory.
//!
//! The store is the truth; this is read at each request and brought up to date by
//! [`Broker::sync`](super::Broker::sync) and by every change made in this process.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use jiff::Timestamp;
use secrecy::SecretString;

use crate::{
    caller::{Service, StoredKey},
    connection::{self, Account, Connection, ConnectionId},
    slug::Slug,
};

/// A connection as it is served.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) connection: Connection,
    /// None where nothing is held, or it does not open.
    pub(crate) grant: Option<OpenGrant>,
    /// How many grants the connection has held.
    pub(crate) generation: i64,
    /// The account that consented and waits to be confirmed, if it is known.
    pub(crate) pending_account: Option<Account>,
    /// When the row last changed, on the database's clock.
    pub(crate) changed_at: Timestamp,
}

/// A grant with its access token open.
#[derive(Debug)]
pub(crate) struct OpenGrant {
    pub(crate) generation: i64,
    pub(crate) access: SecretString,
    pub(crate) fingerprint: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) received_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) headers: BTreeMap<String, SecretString>,
    pub(crate) api_base_url: Option<String>,
}

impl OpenGrant {
    /// The whole life of the access token.
    pub(crate) fn life(&self) -> Duration {
        connection::life(self.received_at, self.expires_at)
    }

    /// How long the access token can still be used.
    pub(crate) fn remaining(&self, now: Timestamp) -> Duration {
        connection::remaining(self.received_at, self.expires_at, now)
    }
}

/// Who showed a key.
#[derive(Clone, Debug)]
pub enum Caller {
    /// An operator, by name.
    Operator(Slug),
    /// A service and what it may do.
    Service(Arc<Service>),
}

impl Caller {
    /// The name in records: `operator alice`, `service billing`.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Operator(name) => format!("operator {name}"),
            Self::Service(service) => format!("service {}", service.name),
        }
    }
}

/// A key with the caller it stands for.
#[derive(Debug)]
pub(crate) struct KnownKey {
    pub(crate) stored: StoredKey,
    pub(crate) caller: Caller,
}

/// All that is held.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    connections: DashMap<Slug, Arc<Live>>,
    keys: RwLock<Arc<Keys>>,
    /// Milliseconds of the clock when the store last confirmed all of this.
    synced_at: AtomicI64,
}

/// Every key, by its id; replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub(crate) by_id: BTreeMap<String, KnownKey>,
    pub(crate) operators: bool,
}

impl Memory {
    pub(crate) fn connection(&self, name: &str) -> Option<Arc<Live>> {
        self.connections.get(name).map(|live| Arc::clone(&live))
    }

    /// Every connection, by name.
    pub(crate) fn connections(&self) -> Vec<Arc<Live>> {
        let mut all: Vec<_> = self.connections.iter().map(|live| Arc::clone(&live)).collect();
        all.sort_by(|a, b| a.connection.name.cmp(&b.connection.name));
        all
    }

    /// Takes a connection as the store has it. One that was read before the one we have is ignored:
    /// its generation is lower, or it is the same and the row has changed since.
    pub(crate) fn put(&self, live: Live) {
        let name = live.connection.name.clone();
        let live = Arc::new(live);
        self.connections
            .entry(name)
            .and_modify(|held| {
                let same = held.connection.id == live.connection.id;
                let version = |live: &Live| (live.generation, live.changed_at);
                if !same || version(held) <= version(&live) {
                    *held = Arc::clone(&live);
                }
            })
            .or_insert(live);
    }

    pub(crate) fn forget(&self, name: &str, id: ConnectionId) {
        self.connections.remove_if(name, |_, live| live.connection.id == id);
    }

    /// Forgets every connection: the store went back behind what is held.
    pub(crate) fn clear(&self) {
        self.connections.clear();
    }

    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn put_keys(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(keys);
    }

    pub(crate) fn mark_synced(&self, now: Timestamp) {
        self.synced_at.store(now.as_millisecond(), Ordering::Relaxed);
    }

    /// How long ago the store last confirmed what is held.
    pub(crate) fn age(&self, now: Timestamp) -> Duration {
        let age = now.as_millisecond() - self.synced_at.load(Ordering::Relaxed);
        Duration::from_millis(u64::try_from(age).unwrap_or_default())
    }
}
