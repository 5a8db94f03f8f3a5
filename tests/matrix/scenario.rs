//! What the matrix is tried on: the real binary, with a provider and a database that outlive it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use reqwest::{Client, Method, RequestBuilder};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use token_broker::{
    app::{App, Listeners},
    broker::Broker,
    clock::Clock,
    config::Config,
    connection::{ConnectionId, HeldGrant},
    failpoint::{Failpoints, Point},
    seal::{Keyring, Place},
    simulator::{Kind, Known, Oracle, Simulated, Simulator, SimulatorSettings, Simulators},
    spool::{Entry, Spool},
};
use tokio::time::{Instant, interval};

use crate::{
    rotation_class::Class,
    support::{
        database::TestDatabase,
        http::client,
        person::Person,
        process::Program,
        wait::{PATIENCE, free_address},
    },
};

/// The provider, the database, and the connections between them.
pub(crate) struct World {
    pub(crate) simulators: Simulators,
    database: TestDatabase,
    settings: toml::Table,
    operator: String,
    reader: String,
    /// The authorisation behind each connection, as the oracle counts them.
    pub(crate) chains: BTreeMap<String, usize>,
    keyring: Keyring,
    _keys: TempDir,
}

/// A `token-broker` with a state directory and addresses of its own, which it keeps when it dies.
pub(crate) struct Replica {
    home: TempDir,
    internal_url: String,
    pub(crate) program: Program,
    /// Of the process that runs: the connections of its predecessor died with that.
    http: Client,
}

/// A replica without a process of its own.
pub(crate) struct InProcess {
    pub(crate) broker: Arc<Broker>,
    _home: TempDir,
}

impl InProcess {
    /// Waits until nothing is under way.
    pub(crate) async fn end(self) {
        self.broker.tasks().close();
        self.broker.tasks().wait().await;
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
    /// Whether a person must consent again.
    pub(crate) fn is_lost(&self) -> bool {
        self.state == "needs_consent"
    }
}

/// What a dead process left of a connection.
pub(crate) struct Held {
    /// Every refresh token in the database and in the spool.
    pub(crate) refresh_tokens: Vec<String>,
    /// The connection as it was before the refresh that was under way, if one was.
    pub(crate) under_way: Option<View>,
}

/// Connections that have come to rest after a fault, and how long each of them took.
pub(crate) type Settled = BTreeMap<String, (View, Duration)>;

impl World {
    /// A world with this many connections at a provider of this class, and its first replica.
    pub(crate) async fn start(
        database: TestDatabase,
        class: Class,
        connections: usize,
        token_timeout: Duration,
    ) -> (Self, Replica) {
        let public_url = format!("http://{}", free_address());
        let mut simulated = SimulatorSettings::default();
        class.simulate(&mut simulated.avito);
        simulated.register_callbacks(&public_url);
        let clock = database.clock.clone();
        let simulators = Simulators::start(simulated, clock).await.unwrap();
        let keys = tempfile::tempdir().unwrap();
        let key_file = keys.path().join("sealing.keys");
        let keyring = Keyring::generate();
        keyring.write_new(&key_file).unwrap();
        let mut settings = simulators.configuration();
        class.describe(&mut settings, token_timeout);
        settings.insert("public_url".to_owned(), public_url.into());
        let key_file = key_file.to_str().unwrap();
        settings.insert("sealing".to_owned(), toml::toml! { key_file = key_file }.into());
        #[expect(clippy::disallowed_methods, reason = "the URL of a test database is no secret")]
        let url = database.url.expose_secret();
        settings.insert("database".to_owned(), toml::toml! { url = url }.into());
        let mut world = Self {
            simulators,
            database,
            settings,
            operator: String::new(),
            reader: String::new(),
            chains: BTreeMap::new(),
            keyring,
            _keys: keys,
        };
        let replica = world.first_replica().await;
        for number in 1..=connections {
            world.connect(&replica, &format!("shop-{number}")).await;
        }
        (world, replica)
    }

    async fn first_replica(&mut self) -> Replica {
        let public_url = self.settings["public_url"].as_str().unwrap().to_owned();
        let mut replica = self.replica_at(&public_url["http://".len()..]);
        let operator = replica.run(&["operators", "create", "alice"], None).end().await;
        operator.stdout[0].clone_into(&mut self.operator);
        replica.start(None).await;
        let service = json!({ "name": "reader", "connections": ["*"] });
        let service = self.operator(&replica, Method::POST, "/v1/services", Some(service)).await;
        service["key"].as_str().unwrap().clone_into(&mut self.reader);
        replica
    }

    /// Another replica, running.
    pub(crate) async fn replica(&self) -> Replica {
        let mut replica = self.replica_at(&free_address());
        replica.start(None).await;
        replica
    }

    /// A replica in the test's own process, with failpoints of the test's own, that serves nobody and
    /// refreshes when it is told to.
    pub(crate) async fn in_process(&self, failpoints: Failpoints) -> InProcess {
        let home = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0";
        let settings = self.settings_of(home.path(), any, any);
        let config = Config::load_over(None, HashMap::new(), &settings).unwrap();
        let listeners = Listeners::bind(any.parse().unwrap(), any.parse().unwrap()).await.unwrap();
        let app = App::start(config, listeners, self.clock().clone(), failpoints).await.unwrap();
        InProcess { broker: Arc::clone(app.broker()), _home: home }
    }

    /// The settings of a replica with this home and these addresses.
    fn settings_of(&self, home: &Path, public: &str, internal: &str) -> toml::Table {
        let mut settings = self.settings.clone();
        for (name, value) in [
            ("public_listen", public),
            ("internal_url", &format!("http://{internal}")),
            ("internal_listen", internal),
            ("state_dir", home.join("state").to_str().unwrap()),
        ] {
            settings.insert(name.to_owned(), value.into());
        }
        settings
    }

    fn replica_at(&self, public: &str) -> Replica {
        let home = tempfile::tempdir().unwrap();
        let internal = free_address();
        let internal_url = format!("http://{internal}");
        let settings = self.settings_of(home.path(), public, &internal);
        fs::write(home.path().join("broker.toml"), settings.to_string()).unwrap();
        let program = Program::start(&["--version"], &[]);
        Replica { home, internal_url, program, http: client() }
    }

    pub(crate) fn provider(&self) -> &Simulator {
        self.simulators.of(Simulated::Avito)
    }

    pub(crate) fn oracle(&self) -> Oracle {
        self.provider().oracle()
    }

    /// The clock of the provider, the database and the brokers in the test's own process.
    pub(crate) fn clock(&self) -> &Clock {
        &self.database.clock
    }

    /// A POST of the operator's. False when the replica died over it.
    pub(crate) async fn try_operator(&self, replica: &Replica, path: &str) -> bool {
        replica.request(Method::POST, path, &self.operator).send().await.is_ok()
    }

    /// A request of the operator's to a replica, and the JSON of its answer.
    pub(crate) async fn operator(
        &self,
        replica: &Replica,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Value {
        replica.ask(&self.operator, method, path, body).await
    }

    /// Makes a connection, or gives one that is lost the consent of a person again.
    pub(crate) async fn connect(&mut self, replica: &Replica, name: &str) {
        let link = json!({ "connection": name, "client": "avito", "self": true });
        let link = self.operator(replica, Method::POST, "/v1/consent-links", Some(link)).await;
        let page = Person::alone().consent(link["url"].as_str().unwrap(), "allow").await;
        assert!(page.text.contains("Connected"), "{}", page.text);
        let token = self.token(replica, name).await;
        let chain = self.behind(&token).expect("a new connection has a live token").chain;
        self.chains.insert(name.to_owned(), chain);
    }

    /// Gives a person's consent again to all that were lost.
    pub(crate) async fn reconnect(&mut self, replica: &Replica, lost: &BTreeSet<String>) {
        for name in lost {
            self.connect(replica, name).await;
        }
    }

    /// What a service gets that asks for a token.
    pub(crate) async fn token(&self, replica: &Replica, name: &str) -> Value {
        let path = format!("/v1/connections/{name}/token");
        replica.ask(&self.reader, Method::GET, &path, None).await
    }

    /// The access token of an answer, as the provider knows it.
    pub(crate) fn behind(&self, token: &Value) -> Option<Known> {
        self.oracle().of(token["access_token"].as_str()?).cloned()
    }

    /// Makes every connection due.
    pub(crate) async fn make_due(&self) {
        self.database.execute("UPDATE connections SET refresh_at = 0").await;
    }

    /// Every connection as it stands.
    pub(crate) async fn views(&self, replica: &Replica) -> BTreeMap<String, View> {
        let listed = self.operator(replica, Method::GET, "/v1/connections", None).await;
        let views: Vec<View> = serde_json::from_value(listed["connections"].clone()).unwrap();
        views.into_iter().map(|view| (view.name.clone(), view)).collect()
    }

    /// Waits until every connection holds a newer grant than `before`, or is given up.
    pub(crate) async fn settled(
        &self,
        replica: &Replica,
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

    /// What a replica that is dead left of every connection.
    pub(crate) async fn held(&self, replica: &Replica) -> BTreeMap<String, Held> {
        let spooled = replica.spooled();
        let mut all = BTreeMap::new();
        for name in self.chains.keys() {
            let record = self.database.store.record(name).await.unwrap().unwrap();
            let id = record.connection.id;
            let spooled = spooled.iter().filter(|entry| entry.connection == id);
            let grants = spooled.clone().map(|entry| &entry.grant).chain(&record.grant);
            let refresh_tokens = grants.filter_map(|grant| self.refresh_token(id, grant)).collect();
            let from = spooled.map(|entry| entry.grant.generation - 1).next();
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
    fn refresh_token(&self, id: ConnectionId, grant: &HeldGrant) -> Option<String> {
        let id = id.to_string();
        let place = Place { record: &id, field: "refresh", generation: grant.generation };
        let sealed = grant.refresh.as_ref()?;
        Some(self.keyring.open(place, sealed).unwrap().expose_secret().to_owned())
    }

    /// That every connection serves a token that lives, and holds the refresh token that came with
    /// it, or with a later one, and lives, too, unless it is lost.
    pub(crate) async fn assert_usable(&self, replica: &Replica, lost: &BTreeSet<String>) {
        for name in self.chains.keys().filter(|name| !lost.contains(*name)) {
            let token = self.token(replica, name).await;
            let access = self.behind(&token).unwrap_or_else(|| panic!("{name}: {token}"));
            let live = self.oracle();
            let live = &live.live_refresh_tokens()[&self.chains[name]];
            let held = live.iter().any(|refresh| refresh.generation >= access.generation);
            assert!(access.alive && held, "{name} holds what is over: {access:?}, {live:?}");
        }
    }

    /// That every connection serves a token where one that it had `before` lives for a while yet. One
    /// that was issued since may never have arrived.
    pub(crate) async fn assert_served(&self, replica: &Replica, before: &Oracle) {
        for (name, chain) in &self.chains {
            let oracle = self.oracle();
            let soon = oracle.now + Duration::from_secs(3);
            let had = oracle.known.iter().filter(|known| known.id <= before.known.len());
            let mut accesses = had.filter(|known| known.kind == Kind::Access);
            if accesses.any(|known| known.chain == *chain && known.ends_at > soon) {
                let token = self.token(replica, name).await;
                let access = self.behind(&token).unwrap_or_else(|| panic!("{name}: {token}"));
                assert!(access.alive, "{name}: {access:?}");
            }
        }
    }
}

impl Replica {
    /// Starts it; it holds every refresh at this point.
    pub(crate) fn start_held(&mut self, at: Option<Point>) {
        self.program = self.run(&["serve"], at);
        self.http = client();
    }

    /// Starts it and waits until it serves.
    pub(crate) async fn start(&mut self, hold: Option<Point>) {
        self.start_held(hold);
        self.program.hear("serving").await;
    }

    /// Kills it as it stands.
    pub(crate) async fn kill(&mut self) {
        self.program.signal("KILL");
        self.program.wait().await;
    }

    /// Ends it in order.
    pub(crate) async fn stop(&mut self) {
        self.program.signal("TERM");
        self.program.wait().await;
    }

    /// What lies in the spool; it is read from a copy, and stays as it is.
    fn spooled(&self) -> Vec<Entry> {
        let copy = tempfile::tempdir().unwrap();
        let to = copy.path().join("spool");
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(self.home.path().join("state/spool")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
        let entries = Spool::open(copy.path()).unwrap().entries().unwrap();
        entries.into_iter().map(|(entry, _)| entry).collect()
    }

    fn run(&self, command: &[&str], hold: Option<Point>) -> Program {
        let config = self.home.path().join("broker.toml");
        let mut arguments = vec!["--config", config.to_str().unwrap()];
        arguments.extend(command);
        let hold = hold.map(|point| ("TOKEN_BROKER_HOLD", point.as_str()));
        Program::start(&arguments, hold.as_slice())
    }

    async fn ask(&self, key: &str, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.request(method, path, key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&answer).unwrap_or_default()
    }

    fn request(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.internal_url)).bearer_auth(key)
    }
}
