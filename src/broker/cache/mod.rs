//! The cache: what readers see. It holds every connection with its access token open.
//!
//! The store is the truth. The cache is read at each request, and brought up to date by
//! [`Cache::sync`] and by every change made in this process.
//!
//! May use: the store, the vault, the clients and the audit log. Used by every other owner.

mod load;
mod token_end;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use dashmap::{DashMap, Entry};
use jiff::Timestamp;
use parking_lot::Mutex;
use secrecy::SecretString;

pub(crate) use self::token_end::TokenEnd;
use super::{audit::AuditLog, clients::Clients, process::Process, vault::Vault};
use crate::{
    clock::{BootInstant, Moment},
    domain::{
        connection::{Account, Connection, ConnectionId},
        grant::{self, OpenGrant, SealedGrant},
        slug::Slug,
    },
    seal::secret::Digest,
    store::Store,
};

/// The time for which keys and connections are served while the store cannot confirm them.
const MAX_UNCONFIRMED: Duration = Duration::from_mins(15);

/// The reason why no key opens anything once [`Cache::is_unconfirmed`].
pub(crate) const UNCONFIRMED: &str =
    "the database has not confirmed keys and connections for 15 minutes";

/// A connection as it is served.
#[derive(Debug)]
pub(crate) struct CachedConnection {
    pub(crate) connection: Connection,
    /// None where nothing is held, or it does not open.
    pub(crate) grant: Option<CachedGrant>,
    /// The number of grants that the connection has held.
    pub(crate) generation: i64,
    /// The account that consented and waits to be confirmed, if it is known.
    pub(crate) pending_account: Option<Account>,
    /// When the row last changed, on the database's clock.
    pub(crate) changed_at: Timestamp,
}

/// A grant with its access token open.
#[derive(Clone, Debug)]
pub(crate) struct CachedGrant {
    pub(crate) generation: i64,
    pub(crate) access: SecretString,
    pub(crate) fingerprint: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) received_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) end: TokenEnd,
    pub(crate) headers: BTreeMap<String, SecretString>,
    pub(crate) api_base_url: Option<String>,
}

impl CachedGrant {
    /// The whole life of the access token.
    pub(crate) fn life(&self) -> Duration {
        grant::life(self.received_at, self.expires_at)
    }

    fn token(&self) -> Token {
        (self.fingerprint.clone(), self.expires_at)
    }

    /// The rest of the access token's life.
    pub(crate) fn left(&self, at: Moment) -> Duration {
        self.end.left(at)
    }

    /// The time for which the access token can still be used: the rest without the skew margin.
    pub(crate) fn remaining(&self, at: Moment) -> Duration {
        grant::remaining(self.life(), self.left(at))
    }
}

/// The mark of one access token among those of a connection. A provider may give the same one again,
/// and a longer life with it.
type Token = (String, Timestamp);

/// Every connection as it is served.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Store,
    vault: Arc<Vault>,
    clients: Arc<Clients>,
    audit: Arc<AuditLog>,
    process: Arc<Process>,
    connections: DashMap<Slug, Arc<CachedConnection>>,
    /// Tokens that this process received and has not read from the store yet.
    received: DashMap<ConnectionId, (Token, TokenEnd)>,
    /// The time when the store last confirmed what is held, in milliseconds since the machine
    /// started.
    synced_at: AtomicI64,
    /// The place to go on reading changes from, in milliseconds of the database's clock.
    changes_mark: AtomicI64,
    /// The id of a key that the key file lacked at the last look at the store.
    missing_key: Mutex<Option<String>>,
}

impl Cache {
    pub(crate) fn new(
        store: Store,
        vault: Arc<Vault>,
        clients: Arc<Clients>,
        audit: Arc<AuditLog>,
        process: Arc<Process>,
    ) -> Self {
        Self {
            store,
            vault,
            clients,
            audit,
            process,
            connections: DashMap::new(),
            received: DashMap::new(),
            synced_at: AtomicI64::new(0),
            changes_mark: AtomicI64::new(0),
            missing_key: Mutex::default(),
        }
    }

    pub(crate) fn connection(&self, name: &str) -> Option<Arc<CachedConnection>> {
        self.connections.get(name).map(|live| Arc::clone(&live))
    }

    /// Every connection, by name.
    pub(crate) fn connections(&self) -> Vec<Arc<CachedConnection>> {
        let mut all: Vec<_> = self.connections.iter().map(|live| Arc::clone(&live)).collect();
        all.sort_by(|a, b| a.connection.name.cmp(&b.connection.name));
        all
    }

    /// Takes a connection as the store has it. A deletion is final, whatever was read later or is
    /// newer otherwise. Any other record that was read before the one we have is ignored:
    /// its generation is lower, or it is the same and the row has changed since.
    ///
    /// When its token ends stands as it was first found: reading it again makes no token live
    /// longer, whatever the clocks say by then.
    fn insert_if_newer(&self, mut live: CachedConnection) {
        let id = live.connection.id;
        let entry = self.connections.entry(live.connection.name.clone());
        let held = match &entry {
            Entry::Occupied(held) if held.get().connection.id == id => Some(held.get()),
            _ => None,
        };
        let version = |live: &CachedConnection| {
            let deleted = live.connection.state.is_deleted();
            let generation = if deleted { 0 } else { live.generation };
            (deleted, generation, live.changed_at)
        };
        if held.is_some_and(|held| version(held) > version(&live)) {
            return;
        }
        if let Some(grant) = &mut live.grant {
            let token = grant.token();
            let held = held.and_then(|held| held.grant.as_ref());
            let held = held.filter(|held| held.token() == token).map(|held| held.end);
            let received = self.received.remove_if(&id, |_, (received, _)| *received == token);
            grant.end = held.or(received.map(|(_, (_, end))| end)).unwrap_or(grant.end);
        }
        entry.insert(Arc::new(live));
    }

    /// Notes when the access token ends of a grant that was received and is about to be stored.
    pub(crate) fn note_received(&self, id: ConnectionId, open: &OpenGrant, sealed: &SealedGrant) {
        let token = (Digest::of(&open.access).fingerprint(), sealed.expires_at);
        let end = TokenEnd::of_received(sealed, self.process.clock.moment());
        self.received.insert(id, (token, end));
    }

    /// True if this very connection is held, and not another one of its name, a deleted one or none.
    pub(crate) fn holds(&self, connection: &Connection) -> bool {
        let held = self.connections.get(&connection.name);
        held.is_some_and(|held| {
            held.connection.id == connection.id && !held.connection.state.is_deleted()
        })
    }

    /// The grant that is served for this very connection.
    pub(crate) fn grant_of(&self, connection: &Connection) -> Option<CachedGrant> {
        let held = self.connections.get(&connection.name)?;
        if held.connection.id == connection.id { held.grant.clone() } else { None }
    }

    /// The fingerprint and the generation of that grant, for records.
    pub(crate) fn grant_label(&self, connection: &Connection) -> Option<(String, i64)> {
        self.grant_of(connection).map(|grant| (grant.fingerprint, grant.generation))
    }

    /// The newest generation that is held of this very connection.
    pub(crate) fn generation_of(&self, connection: &Connection) -> Option<i64> {
        let held = self.connections.get(&connection.name)?;
        (held.connection.id == connection.id).then_some(held.generation)
    }

    pub(crate) fn remove(&self, name: &str, id: ConnectionId) {
        self.connections.remove_if(name, |_, live| live.connection.id == id);
        self.received.remove(&id);
    }

    /// Removes every connection: the store went back behind what is held.
    fn clear(&self) {
        self.connections.clear();
    }

    /// From now on what is held counts as confirmed by the store.
    pub(crate) fn mark_synced(&self) {
        self.synced_at.store(self.process.clock.since_boot().as_millis(), Ordering::Relaxed);
    }

    /// True if the store has not confirmed the cache for too long to serve from it.
    pub(crate) fn is_unconfirmed(&self) -> bool {
        let synced_at = BootInstant::from_millis(self.synced_at.load(Ordering::Relaxed));
        self.process.clock.since_boot().since(synced_at) > MAX_UNCONFIRMED
    }

    /// The id of a key that stored tokens need and the key file lacks.
    pub(crate) fn missing_key(&self) -> Option<String> {
        self.missing_key.lock().clone()
    }
}
