//! The use cases, one method each: fetch a token, refresh, consent, confirm, create, delete.
//!
//! Knows the store and the providers, but no HTTP: handlers extract, call one method, render.
//! Every call to a provider that may change a grant runs on the task tracker, so that a caller
//! who hangs up cancels nothing and shutdown waits for it.mod deletion;
mod access;
mod audit;
mod cache;
mod connections;
mod consent;
mod deletion;
mod error;
mod health;
mod limits;
mod recovery;
mod refresh;
mod token;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

pub use self::{
    audit::ShipError,
    cache::Caller,
    connections::{ConnectionView, NewConnection},
    consent::{
        Callback,
        api_key::KeyExchangeRequest,
        links::{LinkPage, LinkRequest, MadeLink},
    },
    deletion::{Deleted, Revocation},
    error::{BrokerError, Gone},
    health::{ClientHealth, Health, HealthStatus},
    recovery::watermark::LastSeen,
    refresh::in_flight::RefreshReason,
    token::{IssuedToken, TokenRequest},
};
use self::{
    cache::{Cache, End},
    limits::{gate::Gate, public::PublicLimiter},
    refresh::in_flight::Boarding,
};
use crate::{
    audit::Trail,
    clock::Clock,
    domain::{
        connection::{ConnectionId, HeldGrant},
        consent::LinkId,
        grant_conflict::GrantLineage,
        slug::Slug,
    },
    failpoint::Failpoints,
    provider::{Network, Outbound, client::Client},
    seal::{Keyring, Place, secret::Digest},
    spool::Spool,
    store::{Store, StoreError},
};

/// What the broker is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where the connections are kept.
    pub store: Store,
    /// The sealing keys.
    pub keyring: Keyring,
    /// The way out to the providers.
    pub outbound: Outbound,
    /// Where received grants lie until they are in the store.
    pub spool: Spool,
    /// The name of this replica, the same after every restart.
    pub replica: String,
    /// What this replica last saw of the store.
    pub watermark: LastSeen,
    /// Where audit records go.
    pub trail: Trail,
    /// For how long the store keeps them.
    pub keep_events: Duration,
    /// The time.
    pub clock: Clock,
    /// Our registrations.
    pub clients: BTreeMap<Slug, Arc<Client>>,
    /// Where browsers reach us.
    pub public_url: Url,
    /// Where a person may be sent after consenting.
    pub return_to: BTreeMap<Slug, Url>,
    /// Where tests hold a refresh.
    pub failpoints: Failpoints,
}

/// The broker: one per process, shared by the listeners and the refresher.
#[derive(Debug)]
pub struct Broker {
    store: Store,
    keyring: Keyring,
    outbound: Outbound,
    spool: Spool,
    replica: String,
    /// Locked for as long as it is compared, so that it is never compared with an older answer.
    watermark: tokio::sync::Mutex<LastSeen>,
    trail: Arc<Trail>,
    keep_events: Duration,
    /// The refusals of visitors that were recorded lately: of strangers, and of each connection.
    refused: audit::PerMinuteLimiter<Option<ConnectionId>>,
    /// How often a link's button was pressed lately.
    presses: audit::PerMinuteLimiter<LinkId>,
    /// Records could not be shipped the last time.
    held_up: AtomicBool,
    clock: Clock,
    clients: BTreeMap<Slug, Arc<Client>>,
    public_url: Url,
    return_to: BTreeMap<Slug, Url>,
    memory: Cache,
    loading_keys: tokio::sync::Mutex<()>,
    loading_freezes: tokio::sync::Mutex<()>,
    /// By provider.
    gates: BTreeMap<Slug, Gate>,
    failpoints: Failpoints,
    /// Nothing is claimed any more.
    closing: CancellationToken,
    visitors: PublicLimiter,
    /// The refreshes that run.
    flights: DashMap<ConnectionId, Boarding>,
    /// The deleted connections whose revocation is under way here.
    revoking: DashMap<ConnectionId, ()>,
    /// Where to go on reading changes from, in milliseconds of the database's clock.
    changes_mark: AtomicI64,
    /// How many milliseconds the wall clock is ahead of the database's; zero while they agree.
    clocks_apart: AtomicI64,
    /// A key that the key file lacked at the last look at the store.
    lacking: Mutex<Option<String>>,
    tasks: TaskTracker,
}

impl Broker {
    /// Puts the broker together and fills its memory from the store.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, StoreError> {
        let Parts {
            store,
            keyring,
            outbound,
            spool,
            replica,
            watermark,
            trail,
            keep_events,
            clock,
            clients,
            public_url,
            return_to,
            failpoints,
        } = parts;
        let profiles = clients.values().map(|client| &client.profile);
        let gates = profiles
            .map(|profile| (profile.name.clone(), Gate::new(profile, clock.clone())))
            .collect();
        let broker = Arc::new(Self {
            store,
            keyring,
            outbound,
            spool,
            replica,
            watermark: tokio::sync::Mutex::new(watermark),
            trail: Arc::new(trail),
            keep_events,
            refused: audit::PerMinuteLimiter::new(clock.since_boot()),
            presses: audit::PerMinuteLimiter::new(clock.since_boot()),
            held_up: AtomicBool::new(false),
            clock,
            clients,
            public_url,
            return_to,
            memory: Cache::default(),
            loading_keys: tokio::sync::Mutex::default(),
            loading_freezes: tokio::sync::Mutex::default(),
            gates,
            failpoints,
            closing: CancellationToken::new(),
            visitors: PublicLimiter::default(),
            flights: DashMap::new(),
            revoking: DashMap::new(),
            changes_mark: AtomicI64::new(0),
            clocks_apart: AtomicI64::new(0),
            lacking: Mutex::default(),
            tasks: TaskTracker::new(),
        });
        broker.sync().await?;
        Ok(broker)
    }

    /// Brings memory up to date with the store: what other replicas and commands have changed.
    ///
    /// # Errors
    ///
    /// When the store cannot be read; memory keeps what it has.
    pub async fn sync(&self) -> Result<(), StoreError> {
        // First, so that nothing else that fails keeps a freeze from being seen.
        self.load_freezes().await?;
        self.keyring.reload_if_changed();
        self.check_database().await?;
        let mark = self.changes_mark.load(Ordering::Relaxed);
        let mark = Timestamp::from_millisecond(mark).unwrap_or(Timestamp::UNIX_EPOCH);
        let changes = self.store.changed_since(mark).await?;
        self.compare_clocks();
        let mut lacking = None;
        for record in changes.records {
            lacking = self.cache_record(record).await.or(lacking);
        }
        for (id, name) in changes.deleted {
            self.memory.forget(name.as_str(), id);
        }
        self.load_keys().await?;
        if lacking.is_none() {
            self.changes_mark.store(changes.mark.as_millisecond(), Ordering::Relaxed);
        }
        // Otherwise all of it is read again the next time, when the key may be there.
        *self.lacking.lock().unwrap_or_else(PoisonError::into_inner) = lacking;
        self.memory.mark_synced(self.clock.since_boot());
        Ok(())
    }

    /// From now on no refresh is begun; those that wait for their turn end, and what was sent is
    /// seen through.
    pub fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
    }

    /// The tasks that shutdown has to wait for.
    #[must_use]
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// The store, for the checks of `/health`.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Our registrations at a provider.
    fn clients_of<'a>(&'a self, provider: &'a Slug) -> impl Iterator<Item = &'a Arc<Client>> {
        self.clients.values().filter(move |client| client.profile.name == *provider)
    }

    /// The gate before a client's provider.
    fn gate(&self, client: &Client) -> &Gate {
        &self.gates[&client.profile.name]
    }

    fn client(&self, name: &Slug) -> Result<&Arc<Client>, BrokerError> {
        self.clients.get(name).ok_or_else(|| {
            BrokerError::Misconfigured(format!(
                "client `{name}` is not in the configuration any more; restore [clients.{name}]"
            ))
        })
    }

    /// Seals a grant's tokens for their generation, and notes when the access token ends.
    fn seal_grant(&self, id: ConnectionId, generation: i64, grant: ReceivedGrant<'_>) -> HeldGrant {
        let record = id.to_string();
        let place = |field| Place { record: &record, field, generation };
        let held = HeldGrant {
            generation,
            access: self.keyring.seal(place("access"), grant.access),
            refresh: grant.refresh.map(|token| self.keyring.seal(place("refresh"), token)),
            scopes: grant.scopes,
            received_at: grant.received_at,
            expires_at: grant.expires_at,
            origin: grant.origin,
        };
        let token = (Digest::of(grant.access).fingerprint(), held.expires_at);
        self.memory.note_received(id, token, End::of_received(&held, self.clock.moment()));
        held
    }

    /// Providers that are reached on loopback only: simulators, most likely.
    #[must_use]
    pub fn loopback_providers(&self) -> Vec<String> {
        let profiles = self.clients.values().map(|client| &client.profile);
        let mut titles: Vec<_> = profiles
            .filter(|profile| matches!(profile.network, Network::Loopback))
            .map(|profile| profile.title.clone())
            .collect();
        titles.sort();
        titles.dedup();
        titles
    }
}

/// A grant as it came, before it is sealed.
#[derive(Clone)]
struct ReceivedGrant<'a> {
    access: &'a SecretString,
    refresh: Option<&'a SecretString>,
    scopes: Vec<String>,
    received_at: Timestamp,
    expires_at: Timestamp,
    origin: Option<GrantLineage>,
}
