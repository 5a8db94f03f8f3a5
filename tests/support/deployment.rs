//! A deployment of the broker: a database, simulated providers, and the settings of its replicas.
//!
//! Its first replica runs in the test's own process ([`Deployment::in_process`]) or is a process of
//! the real binary ([`Deployment::process`]). Further replicas of either kind are started beside it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use reqwest::StatusCode;
use secrecy::ExposeSecret as _;
use serde_json::json;
use sqlx::PgConnection;
use tempfile::TempDir;
use token_broker::{
    app::Listeners,
    clock::Clock,
    config::Config,
    seal::Keyring,
    simulator::{Endpoint, Kind, Simulated, Simulator, SimulatorSettings, Simulators},
};

use super::{
    api::Api,
    broker::{Replica, RunOptions, Running, TestBroker},
    database::TestDatabase,
    process::{ExitedProcess, Program},
    replica_process::ReplicaProcess,
    wait::until,
};

/// The parts that replicas share. Requests go to the first replica.
pub(crate) struct Deployment {
    pub(crate) database: TestDatabase,
    /// Shared by the simulators, the database and the replicas in the test's process.
    pub(crate) clock: Clock,
    pub(crate) simulators: Simulators,
    /// The settings of the first replica. Others differ in their addresses and state directories.
    pub(crate) settings: toml::Table,
    pub(crate) public_url: String,
    pub(crate) api: Api,
    home: TempDir,
    replicas: AtomicUsize,
    /// Bound until the first replica starts, so that nobody else takes its addresses.
    reserved: Option<Listeners>,
}

impl Deref for Deployment {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Deployment {
    /// A deployment of which nothing runs yet, with these simulators and further settings as TOML.
    pub(crate) async fn new(
        database: TestDatabase,
        mut simulated: SimulatorSettings,
        settings: &str,
    ) -> Self {
        let clock = database.clock.clone();
        let listeners = bind("127.0.0.1:0", "127.0.0.1:0").await;
        let public_url = format!("http://{}", listeners.public.local_addr().unwrap());
        simulated.register_callbacks(&public_url);
        let simulators = Simulators::start(simulated, clock.clone()).await.unwrap();
        let mut settings: toml::Table = settings.parse().unwrap();
        merge(&mut settings, simulators.configuration());
        settings.insert("public_url".into(), public_url.clone().into());
        let url = database.plain_url();
        settings.insert("database".into(), toml::toml! { url = url }.into());
        let home = tempfile::tempdir().unwrap();
        let api = Api::new(place(&mut settings, &home.path().join("first"), &listeners));
        Keyring::generate().write_new(&load(&settings).key_file).unwrap();
        let (reserved, replicas) = (Some(listeners), AtomicUsize::new(1));
        Self { database, clock, simulators, settings, public_url, api, home, replicas, reserved }
    }

    /// Starts the first replica in the test's process.
    pub(crate) async fn in_process(mut self, options: RunOptions) -> TestBroker {
        let listeners = self.reserved.take().unwrap();
        let running = Running::start(&self.settings, listeners, self.clock.clone(), &options).await;
        let operator = running.broker.create_operator("tester".parse().unwrap()).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test shows the key to the broker")]
        let operator = operator.expose_secret().to_owned();
        self.make_keys(operator).await;
        TestBroker { deployment: self, running, options }
    }

    /// Starts the first replica as a process.
    pub(crate) async fn process(mut self) -> (Self, ReplicaProcess) {
        let operator = self.command(&["operators", "create", "tester"]).await;
        self.release_addresses();
        let mut process = ReplicaProcess::start(self.api.clone(), &self.settings).await;
        self.make_keys(operator.stdout[0].clone()).await;
        process.api = self.api.clone();
        (self, process)
    }

    /// A deployment with the simulators' defaults and further settings, whose first replica is a
    /// process.
    pub(crate) async fn start_process(
        database: TestDatabase,
        settings: &str,
    ) -> (Self, ReplicaProcess) {
        Self::new(database, SimulatorSettings::default(), settings).await.process().await
    }

    /// Leaves the addresses of the first replica to the process that listens there next.
    pub(crate) fn release_addresses(&mut self) {
        self.reserved = None;
    }

    async fn make_keys(&mut self, operator: String) {
        self.api.operator_key = operator;
        self.api.service_key = self.api.service("reader", json!(["*"]), json!(["token"])).await;
    }

    /// Starts another replica in the test's process. It shares the clock.
    pub(crate) async fn replica(&self) -> Replica {
        self.replica_with_keys(&self.key_file()).await
    }

    /// As [`Deployment::replica`], with a key file of its own.
    pub(crate) async fn replica_with_keys(&self, key_file: &Path) -> Replica {
        self.replica_with(key_file, RunOptions::default()).await
    }

    /// As [`Deployment::replica`], with a key file of its own and with options.
    pub(crate) async fn replica_with(&self, key_file: &Path, options: RunOptions) -> Replica {
        let (listeners, settings, api) = self.another(key_file).await;
        let running = Running::start(&settings, listeners, self.clock.clone(), &options).await;
        Replica { running, api }
    }

    /// Starts another replica as a process.
    pub(crate) async fn replica_process(&self) -> ReplicaProcess {
        let (listeners, settings, api) = self.another(&self.key_file()).await;
        drop(listeners);
        ReplicaProcess::start(api, &settings).await
    }

    /// Addresses, settings and API of another replica.
    async fn another(&self, key_file: &Path) -> (Listeners, toml::Table, Api) {
        let listeners = bind("127.0.0.1:0", "127.0.0.1:0").await;
        let number = self.replicas.fetch_add(1, Ordering::Relaxed);
        let mut settings = self.settings.clone();
        let key_file = key_file.to_str().unwrap();
        settings.insert("sealing".into(), toml::toml! { key_file = key_file }.into());
        let folder = self.home.path().join(number.to_string());
        let api = self.api.at(place(&mut settings, &folder, &listeners));
        (listeners, settings, api)
    }

    /// Runs a command of the real binary with the settings of the first replica.
    pub(crate) async fn command(&self, arguments: &[&str]) -> ExitedProcess {
        let config = self.config();
        Program::run(&[&["--config", config.to_str().unwrap()], arguments].concat(), &[]).await
    }

    /// The file with the settings of the first replica, written anew.
    pub(crate) fn config(&self) -> PathBuf {
        write_config(&self.settings)
    }

    /// The settings of the first replica, read.
    pub(crate) fn load(&self) -> Config {
        load(&self.settings)
    }

    /// A file in the state directory of the first replica.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.load().state_dir.join(name)
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.load().key_file
    }

    /// The number of files in the spool of the first replica.
    pub(crate) fn spool_files(&self) -> usize {
        fs::read_dir(self.state("spool")).unwrap().count()
    }

    pub(crate) fn simulator(&self, which: Simulated) -> &Simulator {
        self.simulators.of(which)
    }

    /// The account that consents at a simulator unless a person chooses another.
    pub(crate) fn account(&self, which: Simulated) -> String {
        self.simulators.applications()[which.as_str()].account.clone()
    }

    /// Makes a connection whose simulated account consents and is expected.
    pub(crate) async fn connect(&self, name: &str, which: Simulated) {
        let expected = json!({ "expected_account": self.account(which) });
        let page = self.consent(name, which.as_str(), expected).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        assert_eq!(self.view(name).await["state"], "active");
    }

    /// Connections of accounts that consented at Avito, whose refresh tokens work once.
    pub(crate) async fn consented(&self, count: usize) -> Vec<String> {
        let names: Vec<_> = (0..count).map(|number| format!("avito-{number}")).collect();
        for name in &names {
            self.connect(name, Simulated::Avito).await;
        }
        names
    }

    /// The number of times that codes or tokens of a kind were presented to a simulator: of all of
    /// them, and of the one that was presented most often.
    pub(crate) fn presented(&self, which: Simulated, kind: Kind) -> (u64, u64) {
        let oracle = self.simulator(which).oracle();
        let times = oracle.known.iter().filter(|known| known.kind == kind);
        let times = times.map(|known| known.presented.values().sum::<u64>());
        times.fold((0, 0), |(all, most), times| (all + times, most.max(times)))
    }

    /// Waits until a refresh token was presented to a simulator.
    pub(crate) async fn until_presented(&self, which: Simulated) {
        let presented = async || self.presented(which, Kind::Refresh).0 > 0;
        until("a refresh token is presented", presented).await;
    }

    /// The number of requests that have reached each provider, by endpoint.
    pub(crate) fn requests(&self) -> BTreeMap<Simulated, BTreeMap<Endpoint, u64>> {
        Simulated::ALL.map(|which| (which, self.simulator(which).oracle().requests)).into()
    }

    /// The number of token requests that have reached a provider.
    pub(crate) fn posts(&self, which: Simulated) -> u64 {
        let requests = self.simulator(which).oracle().requests;
        requests.get(&Endpoint::Token).copied().unwrap_or_default()
    }

    /// Makes every connection due.
    pub(crate) async fn make_due(&self) {
        self.execute("UPDATE connections SET refresh_at = created_at").await;
    }

    /// Runs a statement behind the broker's back.
    pub(crate) async fn execute(&self, sql: &'static str) {
        self.database.execute(sql).await;
    }

    /// All that the database holds, as far as anybody with access to it could read.
    pub(crate) async fn contents(&self) -> String {
        self.database.contents().await
    }

    /// The number that a query finds, read behind the broker's back.
    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        self.database.number(sql).await
    }

    /// Runs a statement on PostgreSQL and holds its locks until the connection is dropped.
    pub(crate) async fn hold(&self, sql: &'static str) -> PgConnection {
        self.database.hold(sql).await
    }
}

/// Gives a replica a folder and its addresses; returns the URL of its internal listener.
fn place(settings: &mut toml::Table, folder: &Path, listeners: &Listeners) -> String {
    let state_dir = folder.join("state");
    fs::create_dir_all(&state_dir).unwrap();
    let internal = listeners.internal.local_addr().unwrap().to_string();
    let internal_url = format!("http://{internal}");
    for (name, value) in [
        ("public_listen", listeners.public.local_addr().unwrap().to_string()),
        ("internal_listen", internal),
        ("internal_url", internal_url.clone()),
        ("state_dir", state_dir.display().to_string()),
    ] {
        settings.insert(name.into(), value.into());
    }
    internal_url
}

/// Writes the settings of a replica beside its state directory.
pub(super) fn write_config(settings: &toml::Table) -> PathBuf {
    let config = load(settings).state_dir.with_file_name("broker.toml");
    fs::write(&config, settings.to_string()).unwrap();
    config
}

pub(super) fn load(settings: &toml::Table) -> Config {
    Config::load_over(None, HashMap::new(), settings).unwrap()
}

pub(super) async fn bind(public: &str, internal: &str) -> Listeners {
    Listeners::bind(public.parse().unwrap(), internal.parse().unwrap()).await.unwrap()
}

/// Puts the tables of `from` into those of `into`.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
