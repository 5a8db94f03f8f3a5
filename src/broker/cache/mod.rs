//! What is served: every connection with its access token open, and every key, in memory.
//!
//! The store is the truth; this is read at each request and brought up to date by
//! [`Broker::sync`](super::Broker::sync) and by every change made in this process.

pub(crate) mod load;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use dashmap::{DashMap, Entry};
use jiff::Timestamp;
use secrecy::SecretString;

use crate::{
    clock::{BootInstant, Moment},
    domain::{
        caller::{Holder, Requester, Service, StoredKey},
        connection::{self, Account, Connection, ConnectionId, HeldGrant},
        freeze::Freezes,
        slug::Slug,
    },
};

/// A connection as it is served.
#[derive(Debug)]
pub(crate) struct CachedConnection {
    pub(crate) connection: Connection,
    /// None where nothing is held, or it does not open.
    pub(crate) grant: Option<CachedGrant>,
    /// How many grants the connection has held.
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
    pub(crate) end: End,
    pub(crate) headers: BTreeMap<String, SecretString>,
    pub(crate) api_base_url: Option<String>,
}

impl CachedGrant {
    /// The whole life of the access token.
    pub(crate) fn life(&self) -> Duration {
        connection::life(self.received_at, self.expires_at)
    }

    fn token(&self) -> Token {
        (self.fingerprint.clone(), self.expires_at)
    }

    /// How long the access token lives on.
    pub(crate) fn left(&self, at: Moment) -> Duration {
        self.end.left(at)
    }

    /// How long the access token can still be used: what is left, without the skew margin.
    pub(crate) fn remaining(&self, at: Moment) -> Duration {
        connection::remaining(self.life(), self.left(at))
    }
}

/// When an access token ends, by two clocks: it lives only while neither has come that far. One
/// counts suspend and is never set; the other goes on where the whole machine was stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct End {
    since_boot: BootInstant,
    wall: Timestamp,
}

impl End {
    /// Of a token that somebody else received, or this process before it was started anew: the
    /// clock that is ahead, the database's or ours, decides how old it is.
    pub(crate) fn of_stored(grant: &HeldGrant, at: Moment) -> Self {
        Self::after(left(grant, at.now.max(at.wall)), at)
    }

    /// Of a token that this process received a moment ago: it need not ask its wall clock.
    pub(crate) fn of_received(grant: &HeldGrant, at: Moment) -> Self {
        Self::after(left(grant, at.now), at)
    }

    fn after(left: Duration, at: Moment) -> Self {
        let wall = at.wall.checked_add(left).unwrap_or(Timestamp::MAX);
        Self { since_boot: at.since_boot + left, wall }
    }

    fn left(self, at: Moment) -> Duration {
        let by_wall = Duration::try_from(self.wall.duration_since(at.wall)).unwrap_or_default();
        self.since_boot.since(at.since_boot).min(by_wall)
    }
}

/// What is left of a token's life at this time; never more than the whole of it.
fn left(grant: &HeldGrant, now: Timestamp) -> Duration {
    let left = Duration::try_from(grant.expires_at.duration_since(now)).unwrap_or_default();
    left.min(connection::life(grant.received_at, grant.expires_at))
}

/// What tells one access token of a connection from another. A provider may give the same one again,
/// and a longer life with it.
type Token = (String, Timestamp);

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
        self.requester().to_string()
    }

    /// Who it is.
    #[must_use]
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

/// All that is held.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    connections: DashMap<Slug, Arc<CachedConnection>>,
    /// Tokens that this process received and has not read from the store yet.
    received: DashMap<ConnectionId, (Token, End)>,
    keys: RwLock<Arc<Keys>>,
    freezes: RwLock<Arc<Freezes>>,
    /// When the store last confirmed all of this, in milliseconds since the machine started.
    synced_at: AtomicI64,
}

/// Every key, by its id; replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub(crate) by_id: BTreeMap<String, KnownKey>,
    pub(crate) operators: bool,
}

impl Cache {
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
    pub(crate) fn put(&self, mut live: CachedConnection) {
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

    /// Notes when a token ends that was received and is about to be stored.
    pub(crate) fn note_received(&self, id: ConnectionId, token: Token, end: End) {
        self.received.insert(id, (token, end));
    }

    /// Whether this very connection is held, and not another one of its name, a deleted one or none.
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

    pub(crate) fn forget(&self, name: &str, id: ConnectionId) {
        self.connections.remove_if(name, |_, live| live.connection.id == id);
        self.received.remove(&id);
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

    pub(crate) fn freezes(&self) -> Arc<Freezes> {
        Arc::clone(&self.freezes.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn put_freezes(&self, freezes: Freezes) {
        let freezes = Arc::new(freezes);
        *self.freezes.write().unwrap_or_else(std::sync::PoisonError::into_inner) = freezes;
    }

    pub(crate) fn mark_synced(&self, now: BootInstant) {
        self.synced_at.store(now.as_millis(), Ordering::Relaxed);
    }

    /// How long ago the store last confirmed what is held.
    pub(crate) fn age(&self, now: BootInstant) -> Duration {
        now.since(BootInstant::from_millis(self.synced_at.load(Ordering::Relaxed)))
    }
}
