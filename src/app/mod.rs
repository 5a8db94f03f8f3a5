//! Wiring: from checked settings to a running broker, and back down in order.
//!
//! May use: every room but `cli`. Used by the commands, and by tests that run a broker in process.

pub mod background;
mod error;
mod sealing;
pub mod state_dir;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

pub use self::{
    error::StartError,
    sealing::{key_problem, read_keyring},
};
use self::{sealing::open_keyring, state_dir::StateDir};
use crate::{
    audit::Trail,
    broker::{Broker, BrokerError, LastSeen, Parts},
    clock::Clock,
    config::{Config, Database},
    domain::slug::Slug,
    failpoint::Failpoints,
    http::{
        self,
        server::{self, Limits},
    },
    provider::{Network, Outbound, TrustAnchors, client::Client},
    spool::Spool,
    store::{DEPLOYMENT, SchemaStatus, Store, StoreError},
};

/// The longest chain of provider calls under way at shutdown: a code, the refresh token that was
/// all that came of it, and the account call.
const LONGEST_CHAIN: u32 = 3;

/// Extra time for work under way at shutdown, beyond its calls.
const COMMIT_GRACE: Duration = Duration::from_secs(10);

/// The two sockets, bound before anything else happens: a taken port must change nothing.
#[derive(Debug)]
pub struct Listeners {
    /// For browsers and providers.
    pub public: TcpListener,
    /// For services, operators and ops.
    pub internal: TcpListener,
}

impl Listeners {
    /// Binds both.
    pub async fn bind(public: SocketAddr, internal: SocketAddr) -> Result<Self, StartError> {
        Ok(Self {
            public: bind("public_listen", public).await?,
            internal: bind("internal_listen", internal).await?,
        })
    }
}

async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| {
        let problem = match error.kind() {
            io::ErrorKind::AddrInUse => "is in use by another process".to_owned(),
            _ => format!("cannot be bound: {error}"),
        };
        StartError::Unavailable(format!("setting `{setting}`: {address} {problem}"))
    })
}

/// Connects to the database and brings its schema up to date.
pub async fn open_store(config: &Config, clock: Clock) -> Result<Store, StartError> {
    let store = connect_store(config, clock).await?;
    migrate(&store).await?;
    Ok(store)
}

/// True if there was something to do.
async fn migrate(store: &Store) -> Result<bool, StartError> {
    let behind = store.schema_status().await? != SchemaStatus::Current;
    if behind {
        store.migrate().await?;
    }
    Ok(behind)
}

/// Connects to the database as it is.
pub async fn connect_store(config: &Config, clock: Clock) -> Result<Store, StartError> {
    let url = match &config.database {
        Database::Embedded(path) => SecretString::from(format!("sqlite:{}", path.display())),
        Database::Server(url) => url.clone(),
    };
    Store::connect(&url, clock).await.map_err(|error| match (error, &config.database) {
        (StoreError::InvalidUrl, _) => StartError::Settings(
            "setting `database.url`: expected postgres://USER:PASSWORD@HOST/NAME".to_owned(),
        ),
        (error @ StoreError::Unreachable(_), Database::Server(_)) => {
            StartError::Unavailable(format!("{error}; see the setting `database.url`"))
        }
        (error, Database::Embedded(path)) => {
            StartError::Unavailable(format!("{}: {error}", path.display()))
        }
        (error, Database::Server(_)) => error.into(),
    })
}

/// Refuses the database of another installation, because a refresh from a copy takes the tokens
/// from the original. A database without a name takes ours.
pub async fn check_deployment(config: &Config, store: &Store) -> Result<(), StartError> {
    let Some(ours) = &config.deployment else { return Ok(()) };
    let named = store.put_meta_if_absent(DEPLOYMENT, ours.as_str()).await?;
    same_deployment(ours, &named)
}

/// As [`check_deployment`], but a database without a name stays without.
pub async fn compare_deployment(config: &Config, store: &Store) -> Result<(), StartError> {
    let Some(ours) = &config.deployment else { return Ok(()) };
    let named = store.meta(DEPLOYMENT).await?;
    named.map_or(Ok(()), |named| same_deployment(ours, &named))
}

fn same_deployment(ours: &Slug, named: &str) -> Result<(), StartError> {
    if named == ours.as_str() {
        return Ok(());
    }
    Err(StartError::Settings(format!(
        "setting `deployment`: the database belongs to `{named}`, not to `{ours}`; if it is a copy of \
         your own, `token-broker release --adopt` quarantines all of it and makes it `{ours}`'s"
    )))
}

/// The titles of the providers that are reached on loopback only: simulators, most likely.
fn loopback_titles(clients: &BTreeMap<Slug, Arc<Client>>) -> BTreeSet<String> {
    let profiles = clients.values().map(|client| &client.profile);
    let loopback = profiles.filter(|profile| matches!(profile.network, Network::Loopback));
    loopback.map(|profile| profile.title.clone()).collect()
}

/// A broker that is ready to serve.
#[derive(Debug)]
pub struct App {
    broker: Arc<Broker>,
    state: http::AppState,
    listeners: Listeners,
    shutdown: CancellationToken,
    drain: Duration,
    limits: Limits,
    _state_dir: StateDir,
}

/// A part of the broker ended by itself. The log has the cause.
#[derive(Debug, thiserror::Error)]
#[error("a part of the broker ended by itself; the log has more")]
pub struct Crashed;

impl App {
    /// Starts everything but the serving.
    pub async fn start(
        config: Config,
        listeners: Listeners,
        clock: Clock,
        failpoints: Failpoints,
    ) -> Result<Self, StartError> {
        let state_dir = StateDir::open(&config)?;
        let store = connect_store(&config, clock.clone()).await?;
        let keyring = open_keyring(&config, &store).await?;
        check_deployment(&config, &store).await?;
        let outbound = Outbound::new(clock.clone(), failpoints.clone())
            .map_err(|error| StartError::Unavailable(format!("TLS cannot be set up: {error}")))?;
        if outbound.trust_anchors() == TrustAnchors::BuiltIn {
            tracing::info!("this machine has no list of certificates: the built-in one is used");
        }
        if let Database::Embedded(path) = &config.database {
            tracing::info!("database: SQLite in {} (one process only)", path.display());
        }
        if config.public_url.scheme() == "http" {
            tracing::info!("public_url is plain http: for trying things out on this machine only");
        }
        let spool = Spool::open(&config.state_dir).map_err(|error| {
            let path = config.state_dir.display();
            StartError::Settings(format!("setting `state_dir`: {path}/spool: {error}"))
        })?;
        let trail = Trail::open(&config.state_dir, clock.clone()).map_err(|error| {
            let path = config.state_dir.display();
            StartError::Settings(format!("setting `state_dir`: {path}/audit: {error}"))
        })?;
        let watermark = LastSeen::read(&config.state_dir).map_err(|error| {
            let path = config.state_dir.display();
            StartError::Settings(format!(
                "setting `state_dir`: {path}/watermark cannot be read: {error}; without it a \
                 restored database would go unnoticed, so put it back or, if you know that the \
                 database is the newest, remove it"
            ))
        })?;
        let loopback = loopback_titles(&config.clients);
        let longest = config.clients.values().map(|client| client.profile.token.timeout).max();
        let drain = longest.unwrap_or_default() * LONGEST_CHAIN + COMMIT_GRACE;
        let broker = Broker::start(Parts {
            store,
            keyring,
            outbound,
            spool,
            replica: state_dir.replica.clone(),
            watermark,
            trail,
            keep_events: config.keep_events,
            clock: clock.clone(),
            clients: config.clients,
            public_url: config.public_url.clone(),
            return_to: config.return_to,
            failpoints,
        })
        .await?;
        broker.recover().await.map_err(|error| match error {
            BrokerError::Misconfigured(problem) => StartError::Settings(problem),
            error => StartError::Unavailable(error.to_string()),
        })?;
        broker.note_start().await;
        for title in loopback {
            tracing::info!("{title} is reached on this machine: a simulator, most likely");
        }
        let shutdown = CancellationToken::new();
        let state = http::AppState {
            broker: Arc::clone(&broker),
            public_url: config.public_url,
            internal_url: config.internal_url,
            draining: shutdown.clone(),
            clock,
        };
        let limits = Limits::within_system();
        Ok(Self { broker, state, listeners, shutdown, drain, limits, _state_dir: state_dir })
    }

    /// The broker, for commands that live in the same process.
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Cancelling it ends [`App::run`].
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Serves and refreshes until [`App::shutdown`] is cancelled. Then begins nothing more,
    /// finishes the work under way, and closes the database.
    ///
    /// # Errors
    ///
    /// [`Crashed`] when a part of the broker ended by itself; the rest is ended in order then.
    pub async fn run(self) -> Result<(), Crashed> {
        let mut parts = JoinSet::new();
        parts.spawn(background::run(Arc::clone(&self.broker), self.shutdown.clone()));
        self.run_beside(parts).await
    }

    /// As [`App::run`], but without the background loops: for tests that step them.
    pub async fn run_without_background(self) -> Result<(), Crashed> {
        self.run_beside(JoinSet::new()).await
    }

    async fn run_beside(self, mut parts: JoinSet<()>) -> Result<(), Crashed> {
        let Self { broker, state, listeners, shutdown, drain, limits, _state_dir } = self;
        let public = http::public_router(state.clone());
        let internal = http::internal_router(state);
        parts.spawn(server::serve(listeners.public, public, shutdown.clone(), limits));
        parts.spawn(server::serve(listeners.internal, internal, shutdown.clone(), limits));
        let crashed = tokio::select! {
            // The parts end as well on shutdown: that is no crash.
            biased;
            () = shutdown.cancelled() => false,
            _ = parts.join_next() => true,
        };
        shutdown.cancel();
        tracing::info!("ending: finishing what is under way");
        broker.close();
        let ended = async { while parts.join_next().await.is_some() {} };
        let ((), drained) = tokio::join!(ended, timeout(drain, broker.tasks().wait()));
        if drained.is_err() {
            tracing::error!("refreshes or consents were still under way at the end of the drain");
        }
        if let Err(error) = broker.check_database().await {
            tracing::warn!(%error, "the watermark stays a moment behind the database");
        }
        broker.close_trail().await;
        broker.store().close().await;
        if crashed { Err(Crashed) } else { Ok(()) }
    }
}
