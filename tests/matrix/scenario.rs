//! Connections at a provider that rotates refresh tokens in one way, and what becomes of them when
//! replicas die: the real binary, with a provider and a database that outlive it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Deref,
    time::Duration,
};

use reqwest::Method;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::Value;
use token_broker::domain::grant::SealedGrant;
use token_broker::{
    domain::connection::ConnectionId,
    seal::Keyring,
    simulator::{Kind, Known, Oracle, Simulated, Simulator, SimulatorSettings},
    spool::{Entry, Spool},
};
use tokio::time::{Instant, interval};

use crate::{
    rotation_class::Class,
    support::{
        database::TestDatabase, deployment::Deployment, replica_process::ReplicaProcess,
        wait::PATIENCE,
    },
};

/// A deployment at whose provider refresh tokens rotate in one way, and its connections.
pub(crate) struct Scenario {
    deployment: Deployment,
    /// The authorisation behind each connection, as the oracle counts them.
    pub(crate) chains: BTreeMap<String, usize>,
    keyring: Keyring,
}

impl Deref for Scenario {
    type Target = Deployment;

    fn deref(&self) -> &Deployment {
        &self.deployment
    }
}

/// A connection as an operator sees it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) generation: i64,
}

impl View {
    /// True if a person must consent again.
    pub(crate) fn is_lost(&self) -> bool {
        self.state == "needs_consent"
    }
}

/// The state of a connection that a dead process left behind.
pub(crate) struct Held {
    /// Every refresh token in the database and in the spool.
    pub(crate) refresh_tokens: Vec<String>,
    /// The connection as it was before the refresh that was under way, if one was.
    pub(crate) under_way: Option<View>,
}

/// Connections that have come to rest after a fault, and how long each of them took.
pub(crate) type Settled = BTreeMap<String, (View, Duration)>;

impl Scenario {
    /// Starts a replica with so many connections at a provider of this class.
    pub(crate) async fn start(
        database: TestDatabase,
        class: Class,
        connections: usize,
        token_timeout: Duration,
    ) -> (Self, ReplicaProcess) {
        let mut simulated = SimulatorSettings::default();
        class.simulate(&mut simulated.avito);
        let settings = class.settings(token_timeout);
        let (deployment, replica) =
            Deployment::new(database, simulated, &settings).await.process().await;
        let keyring = Keyring::read(&deployment.key_file()).unwrap();
        let mut scenario = Self { deployment, chains: BTreeMap::new(), keyring };
        for number in 1..=connections {
            scenario.connect_chain(&replica, &format!("shop-{number}")).await;
        }
        (scenario, replica)
    }

    pub(crate) fn provider(&self) -> &Simulator {
        self.simulator(Simulated::Avito)
    }

    pub(crate) fn oracle(&self) -> Oracle {
        self.provider().oracle()
    }

    /// Makes a connection, or gives one that is lost the consent of a person again.
    async fn connect_chain(&mut self, replica: &ReplicaProcess, name: &str) {
        replica.connect_any(name, "avito").await;
        let token = replica.token(name).await.json();
        let chain = self.behind(&token).expect("a new connection has a live token").chain;
        self.chains.insert(name.to_owned(), chain);
    }

    /// Gives a person's consent again to all that were lost.
    pub(crate) async fn reconnect(&mut self, replica: &ReplicaProcess, lost: &BTreeSet<String>) {
        for name in lost {
            self.connect_chain(replica, name).await;
        }
    }

    /// The access token of an answer, as the provider knows it.
    pub(crate) fn behind(&self, token: &Value) -> Option<Known> {
        self.oracle().of(token["access_token"].as_str()?).cloned()
    }

    /// Every connection as it stands.
    pub(crate) async fn views(&self, replica: &ReplicaProcess) -> BTreeMap<String, View> {
        let listed = replica.operator(Method::GET, "/v1/connections", None).await.json();
        let views: Vec<View> = serde_json::from_value(listed["connections"].clone()).unwrap();
        views.into_iter().map(|view| (view.name.clone(), view)).collect()
    }

    /// Waits until every connection holds a newer grant than `before`, or is given up.
    pub(crate) async fn settled(
        &self,
        replica: &ReplicaProcess,
        before: &BTreeMap<String, View>,
        since: Instant,
    ) -> Settled {
        let mut settled = Settled::new();
        let mut looks = interval(Duration::from_millis(20));
        while settled.len() < before.len() {
            looks.tick().await;
            let views = self.views(replica).await;
            assert!(since.elapsed() < PATIENCE, "{} of {views:#?}", settled.len());
            for (name, before) in before {
                let view = &views[name];
                let renewed = view.state == "active" && view.generation > before.generation;
                if renewed || view.is_lost() {
                    let now = || (view.clone(), since.elapsed());
                    settled.entry(name.clone()).or_insert_with(now);
                }
            }
        }
        settled
    }

    /// The state of every connection that a dead replica left behind.
    pub(crate) async fn held(&self, replica: &ReplicaProcess) -> BTreeMap<String, Held> {
        let spooled = spooled(replica);
        let mut all = BTreeMap::new();
        for name in self.chains.keys() {
            let record = self.database.store.record(name).await.unwrap().unwrap();
            let id = record.connection.id;
            let spooled = spooled.iter().filter(|entry| entry.connection == id);
            let grants = spooled.clone().map(|entry| &entry.grant).chain(&record.grant);
            let refresh_tokens = grants.filter_map(|grant| self.refresh_token(id, grant)).collect();
            let from = spooled.map(|entry| entry.grant.generation() - 1).next();
            let from = from.or(record.claimed_at.map(|_| record.generation()));
            let under_way = from.map(|generation| View {
                name: name.clone(),
                state: record.connection.state.to_string(),
                reason: None,
                generation,
            });
            all.insert(name.clone(), Held { refresh_tokens, under_way });
        }
        all
    }

    #[expect(clippy::disallowed_methods, reason = "the test asks the provider's oracle about it")]
    fn refresh_token(&self, id: ConnectionId, grant: &SealedGrant) -> Option<String> {
        let id = id.to_string();
        let sealed = grant.refresh.as_ref()?;
        Some(self.keyring.open(grant.slot.refresh(&id), sealed).unwrap().expose_secret().to_owned())
    }

    /// Asserts that every connection serves a token that lives, and holds the refresh token that came with
    /// it, or with a later one, and lives, too, unless it is lost.
    pub(crate) async fn assert_usable(&self, replica: &ReplicaProcess, lost: &BTreeSet<String>) {
        for name in self.chains.keys().filter(|name| !lost.contains(*name)) {
            let token = replica.token(name).await.json();
            let access = self.behind(&token).unwrap_or_else(|| panic!("{name}: {token}"));
            let live = self.oracle();
            let live = &live.live_refresh_tokens()[&self.chains[name]];
            let held = live.iter().any(|refresh| refresh.generation >= access.generation);
            assert!(access.alive && held, "{name} holds what is over: {access:?}, {live:?}");
        }
    }

    /// Asserts that every connection serves a token where one that it had `before` lives for a while yet. One
    /// that was issued since may never have arrived.
    pub(crate) async fn assert_served(&self, replica: &ReplicaProcess, before: &Oracle) {
        for (name, chain) in &self.chains {
            let oracle = self.oracle();
            let soon = oracle.now + Duration::from_secs(3);
            let had = oracle.known.iter().filter(|known| known.id <= before.known.len());
            let mut accesses = had.filter(|known| known.kind == Kind::Access);
            if accesses.any(|known| known.chain == *chain && known.ends_at > soon) {
                let token = replica.token(name).await.json();
                let access = self.behind(&token).unwrap_or_else(|| panic!("{name}: {token}"));
                assert!(access.alive, "{name}: {access:?}");
            }
        }
    }
}

/// The grants in the spool of a replica. They are read from a copy, and stay as they are.
fn spooled(replica: &ReplicaProcess) -> Vec<Entry> {
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("spool");
    fs::create_dir(&to).unwrap();
    for file in fs::read_dir(replica.state("spool")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let entries = Spool::open(copy.path()).unwrap().entries().unwrap();
    entries.into_iter().map(|(entry, _)| entry).collect()
}
