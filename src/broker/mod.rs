//! The use cases: fetch a token, refresh, consent, confirm, create, delete.
//!
//! [`Broker`] is a facade: one method for each use case. The work is done by owners, each a struct
//! whose fields are all that it may touch:
//!
//! | owner | what it does |
//! |---|---|
//! | `TokenReader` ([`token`]) | hands out live tokens, and starts a refresh where there is none |
//! | `SingleFlight`, `Refresher`, `Committer` ([`refresh`]) | the refresh protocol |
//! | `Links`, `ConsentFlow`, `CodeExchange`, `Confirmations`, `ApiKeys` ([`consent`]) | from a link to a grant |
//! | `Connections` ([`connections`]), `Deletions` ([`deletion`]) | made, listed, refreshed by hand; revoked and forgotten |
//! | `Access` ([`access`]) | keys, freezes, and whether a connection may take a grant |
//! | `Cache` ([`cache`]) | what readers see |
//! | `Recovery` ([`recovery`]) | spooled grants after a crash; databases that went back |
//! | `AuditLog` ([`audit`]) | what is put on record |
//! | `Vault` ([`vault`]), `Limits` ([`limits`]), `ProviderCalls` ([`provider_calls`]), `Clients` ([`clients`]) | sealing; pace and breakers; the way out; the configuration's clients |
//!
//! May use: the store, the spool, the audit files and the providers, but no HTTP: handlers extract,
//! call one method, render. Used by [`http`](crate::http), [`app`](crate::app) and the commands.
//!
//! Every call to a provider that may change a grant runs on the task tracker, so that a caller who
//! hangs up cancels nothing and shutdown waits for it.

pub(crate) mod access;
mod assemble;
pub(crate) mod audit;
pub(crate) mod cache;
pub(crate) mod clients;
mod clock_skew;
pub(crate) mod connections;
pub(crate) mod consent;
pub(crate) mod deletion;
mod error;
mod health;
pub(crate) mod limits;
mod process;
pub(crate) mod provider_calls;
mod reason;
pub(crate) mod recovery;
pub(crate) mod refresh;
mod sync;
pub(crate) mod token;
pub(crate) mod vault;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio_util::task::TaskTracker;
use url::Url;

use self::{
    access::Access, audit::AuditLog, connections::Connections, consent::Consents,
    deletion::Deletions, health::HealthReporter, process::Process, refresh::SingleFlight,
    sync::Sync, token::TokenReader,
};
pub use self::{
    access::Caller,
    audit::ShipError,
    connections::{ConnectionView, NewConnection},
    consent::{Callback, KeyExchangeRequest, LinkPage, LinkRequest, MadeLink},
    deletion::{Deleted, Revocation},
    error::{BrokerError, Gone},
    health::{ClientHealth, Health, HealthStatus},
    reason::RefreshReason,
    recovery::LastSeen,
    token::{IssuedToken, TokenRequest},
};
use crate::{
    audit::{Actor, StoredEvent, Trail},
    clock::Clock,
    domain::{
        caller::{Pattern, Service, StoredKey, Verb},
        freeze::{Freeze, FreezeKind},
        slug::Slug,
    },
    failpoint::Failpoints,
    provider::{Outbound, client::Client},
    seal::Keyring,
    spool::Spool,
    store::{Store, StoreError},
};

/// The parts that a broker is assembled from.
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
    /// The database as this replica last saw it.
    pub watermark: LastSeen,
    /// Where audit records go.
    pub trail: Trail,
    /// The time that the store keeps them.
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

/// The broker: one per process, shared by the listeners and the background.
#[derive(Debug)]
pub struct Broker {
    store: Store,
    process: Arc<Process>,
    access: Arc<Access>,
    audit: Arc<AuditLog>,
    sync: Sync,
    health: HealthReporter,
    tokens: TokenReader,
    flights: Arc<SingleFlight>,
    connections: Arc<Connections>,
    deletions: Arc<Deletions>,
    consents: Consents,
}

impl Broker {
    /// Puts the broker together and fills its cache from the store.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, StoreError> {
        let broker = Arc::new(assemble::broker(parts));
        broker.sync().await?;
        Ok(broker)
    }

    /// Brings the cache up to date with the store: what other replicas and commands have changed.
    ///
    /// # Errors
    ///
    /// When the store cannot be read; what is held stays.
    pub async fn sync(&self) -> Result<(), StoreError> {
        self.sync.run().await
    }

    /// Compares the database with the one that this replica last saw, and quarantines all that it
    /// would refresh if it is another one or older.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn check_database(&self) -> Result<(), StoreError> {
        self.sync.recovery.check_database().await
    }

    /// Startup recovery: replays spooled grants and expires this replica's leases. Called before
    /// anything is refreshed.
    ///
    /// # Errors
    ///
    /// When the spool cannot be read, a grant in it needs a key that is missing
    /// ([`BrokerError::Misconfigured`]), or the database does not answer; nothing is lost then.
    pub async fn recover(&self) -> Result<(), BrokerError> {
        self.sync.recovery.recover().await
    }

    /// From now on no refresh is begun; those that wait for their turn end, and what was sent is
    /// seen through.
    pub fn close(&self) {
        self.process.draining.cancel();
        self.process.tasks.close();
    }

    /// The tasks that shutdown has to wait for.
    pub fn tasks(&self) -> &TaskTracker {
        &self.process.tasks
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

/// Callers, their keys, and what is frozen.
impl Broker {
    /// The caller whose key this is.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Unauthorized`] when no live key fits; nothing tells which part is wrong.
    /// [`BrokerError::Unavailable`] when the store has confirmed no key for so long that any of them
    /// may have been deleted.
    pub fn authenticate(&self, shown: &SecretString) -> Result<Caller, BrokerError> {
        self.access.authenticate(shown)
    }

    /// True if any operator exists; until then operators' routes do not.
    pub fn has_operators(&self) -> bool {
        self.access.has_operators()
    }

    /// Makes an operator and their first key.
    pub async fn create_operator(&self, name: Slug) -> Result<SecretString, BrokerError> {
        self.access.create_operator(name).await
    }

    /// Makes a service and its first key, which is shown once.
    pub async fn create_service(
        &self,
        by: &Actor,
        name: Slug,
        connections: Vec<Pattern>,
        verbs: BTreeSet<Verb>,
        expires_at: Option<Timestamp>,
    ) -> Result<(Service, SecretString, StoredKey), BrokerError> {
        self.access.create_service(by, name, connections, verbs, expires_at).await
    }

    /// Makes another key for a service, so that the first can be replaced without a gap.
    pub async fn add_service_key(
        &self,
        by: &Actor,
        name: &Slug,
        expires_at: Option<Timestamp>,
    ) -> Result<(SecretString, StoredKey), BrokerError> {
        self.access.add_service_key(by, name, expires_at).await
    }

    /// Every service with its keys.
    pub async fn services(&self) -> Result<Vec<(Service, Vec<StoredKey>)>, BrokerError> {
        self.access.services().await
    }

    /// One service with its keys.
    pub async fn service(&self, name: &Slug) -> Result<(Service, Vec<StoredKey>), BrokerError> {
        self.access.service(name).await
    }

    /// Deletes a service with all its keys, and withdraws the links that it made.
    pub async fn delete_service(&self, by: &Actor, name: &Slug) -> Result<(), BrokerError> {
        self.access.delete_service(by, name).await
    }

    /// Ends one key of a service.
    pub async fn delete_service_key(
        &self,
        by: &Actor,
        name: &Slug,
        id: &str,
    ) -> Result<(), BrokerError> {
        self.access.delete_service_key(by, name, id).await
    }

    /// Freezes a thing: from now on nothing of it is served. Returns the freeze that stands and
    /// whether it is a new one.
    pub async fn freeze(
        &self,
        kind: FreezeKind,
        name: &Slug,
        reason: &str,
        operator: &Slug,
        by: &Actor,
    ) -> Result<(Freeze, bool), BrokerError> {
        self.access.freeze(kind, name, reason, operator, by).await
    }

    /// Ends a freeze: the thing is served again.
    pub async fn unfreeze(
        &self,
        kind: FreezeKind,
        name: &Slug,
        by: &Actor,
    ) -> Result<(), BrokerError> {
        self.access.unfreeze(kind, name, by).await
    }

    /// Everything that is frozen, by kind and name.
    pub async fn freezes(&self) -> Result<Vec<Freeze>, BrokerError> {
        self.access.list_freezes().await
    }
}

/// Tokens and connections.
impl Broker {
    /// The fresh token of a connection.
    ///
    /// # Errors
    ///
    /// Only when there is no live token, or one must not be served; a failing provider, database
    /// or refresh withholds no live token. [`BrokerError::Unaudited`] when nobody accepts the record
    /// of it.
    pub async fn token(
        &self,
        service: &Service,
        name: &str,
        request: TokenRequest,
    ) -> Result<IssuedToken, BrokerError> {
        self.tokens.token(service, name, request).await
    }

    /// A service reports that the API refused a token: at most one refresh is forced, and an older
    /// fingerprint changes nothing.
    pub async fn token_rejected(
        &self,
        service: &Service,
        name: &str,
        fingerprint: &str,
        request: TokenRequest,
    ) -> Result<IssuedToken, BrokerError> {
        self.tokens.token_rejected(service, name, fingerprint, request).await
    }

    /// Makes a connection. One that obtains its tokens by client credentials has its first token
    /// when this returns, or says in `last_error` why not.
    pub async fn create_connection(
        &self,
        by: &Actor,
        new: NewConnection,
    ) -> Result<ConnectionView, BrokerError> {
        self.connections.create(by, new).await
    }

    /// The connections that a caller may see, by name.
    pub fn views(&self, caller: &Caller) -> Vec<ConnectionView> {
        self.connections.list(caller)
    }

    /// One connection, if the caller may see it.
    pub async fn view_for(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<ConnectionView, BrokerError> {
        self.connections.view_for(caller, name).await
    }

    /// Refreshes a connection now, whatever its schedule or backoff says.
    pub async fn refresh_now(&self, by: &Actor, name: &str) -> Result<ConnectionView, BrokerError> {
        self.connections.refresh_now(by, name).await
    }

    /// Deletes a connection: from now on nothing of it is served.
    pub async fn delete_connection(&self, by: &Actor, name: &str) -> Result<Deleted, BrokerError> {
        self.deletions.delete(by, name).await
    }
}

/// Consents.
impl Broker {
    /// Makes a consent link, and its connection if that does not exist.
    pub async fn make_link(
        &self,
        caller: &Caller,
        peer: Option<IpAddr>,
        request: LinkRequest,
    ) -> Result<MadeLink, BrokerError> {
        self.consents.links.make(caller, peer, request).await
    }

    /// The page behind a link, for this browser. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Gone`] when the link has ended or belongs to another browser.
    pub async fn link_page(
        &self,
        secret: &SecretString,
        browser: Option<&SecretString>,
    ) -> Result<LinkPage, BrokerError> {
        self.consents.links.page(secret, browser).await
    }

    /// A person pressed the button: binds the link to their browser and returns where to go.
    pub async fn begin_consent(
        &self,
        secret: &SecretString,
        browser: &SecretString,
        peer: Option<IpAddr>,
    ) -> Result<Url, BrokerError> {
        self.consents.flow.begin(secret, browser, peer).await
    }

    /// The provider sent the browser back. Returns the URL of the page that says how it went.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Invalid`] when the callback does not belong to a consent that this browser
    /// has under way; nothing is sent to the provider then.
    pub async fn finish_consent(&self, callback: Callback) -> Result<SecretString, BrokerError> {
        self.consents.flow.finish(callback).await
    }

    /// Records that a browser was refused for the form of its request alone.
    pub fn note_refused_request(&self, peer: Option<IpAddr>, why: &'static str) {
        self.audit.record_anonymous_refusal(&Actor::browser(peer), why);
    }

    /// Accepts the account that consented, named by the provider's id of it.
    ///
    /// # Errors
    ///
    /// When nothing waits, or another account consented: then its tokens are discarded.
    pub async fn confirm(
        &self,
        caller: &Caller,
        peer: Option<IpAddr>,
        name: &str,
        account: Option<&str>,
    ) -> Result<ConnectionView, BrokerError> {
        self.consents.confirmations.confirm(caller, peer, name, account).await
    }

    /// Makes a connection by exchanging an API key. It is live once the code has arrived and the
    /// account is the one of `account_host`.
    pub async fn connect_with_api_key(
        &self,
        by: &Actor,
        new: NewConnection,
        request: KeyExchangeRequest,
    ) -> Result<ConnectionView, BrokerError> {
        self.consents.api_keys.connect(by, new, request).await
    }

    /// A code arrived from an API-key exchange. It is exchanged after the answer, because the
    /// provider waits for 3 s at the most and does not send it again.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Invalid`] when no exchange is pending for this client and account host.
    pub async fn finish_key_exchange(
        &self,
        client: &Slug,
        params: &BTreeMap<String, String>,
        peer: Option<IpAddr>,
    ) -> Result<(), BrokerError> {
        self.consents.api_keys.finish(client, params, peer).await
    }
}

/// Health and the audit trail.
impl Broker {
    /// Looks at everything at once.
    pub async fn health(&self) -> Health {
        self.health.report().await
    }

    /// True if the broker can take requests: its cache is confirmed, or not long unconfirmed.
    pub fn is_ready(&self) -> bool {
        self.health.is_ready()
    }

    /// The events after a place, in their order, `limit` at the most.
    pub async fn events(&self, after: i64, limit: u32) -> Result<Vec<StoredEvent>, BrokerError> {
        self.audit.events(after, limit).await
    }

    /// Records the start, and whether the clients and the addresses of their providers are those of
    /// this replica's start before.
    pub async fn note_start(&self) {
        self.audit.record_start().await;
    }

    /// Brings the last records to the disk, and to the store if that takes them at once.
    pub async fn close_trail(&self) {
        self.audit.close().await;
    }
}

/// The steps of the background.
impl Broker {
    /// Starts the refresh of up to `limit` connections that are due at each provider, and leaves them
    /// to run. Returns how many there were.
    pub async fn start_due(&self, limit: u32) -> Result<usize, BrokerError> {
        Ok(self.flights.start_due(limit).await?.len())
    }

    /// As [`Broker::start_due`], and waits for them: for tests.
    pub async fn refresh_due(&self, limit: u32) -> Result<usize, BrokerError> {
        let started = self.flights.start_due(limit).await?;
        // The outcome is recorded and logged where it happened.
        Ok(join_all(started).await.len())
    }

    /// Starts up to `limit` revocations that are due at each provider, and leaves them to run.
    pub async fn start_revocations(&self, limit: u32) -> Result<(), BrokerError> {
        self.deletions.start_revocations(limit).await
    }

    /// As [`Broker::start_revocations`], and waits for them: for tests. Returns how many there were.
    pub async fn revoke_due(&self, limit: u32) -> Result<usize, BrokerError> {
        self.deletions.revoke_due(limit).await
    }

    /// Forgets what has ended: links, consents, unconfirmed grants, key exchanges, keys, old events,
    /// and the files of grants that were stored a while ago.
    pub async fn purge(&self) -> Result<(), StoreError> {
        self.deletions.purge().await
    }

    /// Ships what lies in the audit files to the store. Returns how many records it were.
    ///
    /// # Errors
    ///
    /// When the files or the store fail: the rest stays in the files. That is logged when it begins.
    pub async fn ship_events(&self) -> Result<usize, ShipError> {
        self.audit.ship().await
    }
}
