//! The whole broker in the test's own process, with simulated providers and a clock to move.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{Client, Method, StatusCode, header};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tempfile::TempDir;
use token_broker::{
    app::{App, Listeners},
    broker::Broker,
    clock::Clock,
    config::Config,
    failpoint::Failpoints,
    seal::Keyring,
    simulator::{Endpoint, Kind, Simulated, Simulator, SimulatorSettings, Simulators},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    database::TestDatabase,
    http::client,
    process::{Ended, Program},
};

/// A running broker; its background refresher is stepped by hand, its clock moved by hand.
pub(crate) struct TestBroker {
    running: Running,
    pub(crate) clock: Clock,
    pub(crate) public_url: String,
    pub(crate) internal_url: String,
    pub(crate) operator_key: String,
    /// May fetch the token of every connection, and nothing else.
    pub(crate) service_key: String,
    pub(crate) simulators: Simulators,
    pub(crate) http: Client,
    database: TestDatabase,
    settings: toml::Table,
    manner: Manner,
    state_dir: TempDir,
}

/// How a broker is run, besides its settings.
#[derive(Clone, Default)]
pub(crate) struct Manner {
    /// Where its refreshes are held.
    pub(crate) failpoints: Failpoints,
    /// Whether it refreshes by itself.
    pub(crate) background: bool,
}

/// The part that ends and starts anew.
struct Running {
    broker: Arc<Broker>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    async fn start(
        settings: &toml::Table,
        listeners: Listeners,
        clock: Clock,
        manner: Manner,
    ) -> Self {
        let app = Box::pin(App::start(load(settings), listeners, clock, manner.failpoints))
            .await
            .unwrap();
        let broker = Arc::clone(app.broker());
        let shutdown = app.shutdown();
        let tasks = TaskTracker::new();
        if manner.background {
            tasks.spawn(app.run());
        } else {
            tasks.spawn(app.run_without_background());
        }
        tasks.close();
        Self { broker, shutdown, tasks }
    }

    async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }
}

fn load(settings: &toml::Table) -> Config {
    Config::load_over(None, HashMap::new(), settings).unwrap()
}

async fn bind(public: &str, internal: &str) -> Listeners {
    Listeners::bind(public.parse().unwrap(), internal.parse().unwrap()).await.unwrap()
}

/// One more process on the same database and with the same providers, as far as they can tell.
pub(crate) struct Replica {
    running: Running,
    pub(crate) internal_url: String,
    service_key: String,
    http: Client,
    _state_dir: TempDir,
}

impl Replica {
    /// The use cases, without a socket between.
    pub(crate) fn broker(&self) -> &Arc<Broker> {
        &self.running.broker
    }

    /// Fetches a token with the service's key.
    pub(crate) async fn token(&self, connection: &str) -> Answer {
        self.token_for(connection, &self.service_key).await
    }

    /// Fetches a token with this key.
    pub(crate) async fn token_for(&self, connection: &str, key: &str) -> Answer {
        let url = format!("{}/v1/connections/{connection}/token", self.internal_url);
        read(self.http.get(url).bearer_auth(key).send().await.unwrap()).await
    }

    /// One step of the background refresher.
    pub(crate) async fn refresh_due(&self) -> usize {
        self.broker().sync().await.unwrap();
        self.broker().refresh_due(100).await.unwrap()
    }

    /// Ends it as a signal would, and waits for it.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl TestBroker {
    /// A broker with the simulators' defaults.
    pub(crate) async fn start(database: TestDatabase) -> Self {
        Self::start_with(database, SimulatorSettings::default(), "").await
    }

    /// A broker with simulators of one's own and further settings, as TOML.
    pub(crate) async fn start_with(
        database: TestDatabase,
        simulated: SimulatorSettings,
        settings: &str,
    ) -> Self {
        Self::start_so(Manner::default(), database, simulated, settings).await
    }

    /// As [`TestBroker::start_with`], run in this manner.
    pub(crate) async fn start_so(
        manner: Manner,
        database: TestDatabase,
        mut simulated: SimulatorSettings,
        settings: &str,
    ) -> Self {
        let clock = database.clock.clone();
        let listeners = bind("127.0.0.1:0", "127.0.0.1:0").await;
        let public_url = format!("http://{}", listeners.public.local_addr().unwrap());
        let internal_url = format!("http://{}", listeners.internal.local_addr().unwrap());
        simulated.register_callbacks(&public_url);
        let simulators = Simulators::start(simulated, clock.clone()).await.unwrap();
        let state_dir = tempfile::tempdir().unwrap();
        let mut settings: toml::Table = settings.parse().unwrap();
        merge(&mut settings, simulators.configuration());
        settings.insert("public_url".into(), public_url.clone().into());
        settings.insert("internal_url".into(), internal_url.clone().into());
        settings.insert("state_dir".into(), state_dir.path().to_str().unwrap().into());
        #[expect(clippy::disallowed_methods, reason = "the URL of a test database is no secret")]
        let url = database.url.expose_secret();
        settings.insert("database".into(), toml::toml! { url = url }.into());
        let key_file = load(&settings).key_file;
        Keyring::generate().write_new(&key_file).unwrap();
        let running = Running::start(&settings, listeners, clock.clone(), manner.clone()).await;
        let operator_key = running.broker.create_operator("tester".parse().unwrap()).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test shows the key to the broker")]
        let operator_key = operator_key.expose_secret().to_owned();
        let http = client();
        let mut this = Self {
            running,
            clock,
            public_url,
            internal_url,
            operator_key,
            service_key: String::new(),
            simulators,
            http,
            database,
            settings,
            manner,
            state_dir,
        };
        this.service_key = this.service("reader", json!(["*"]), json!(["token"])).await;
        this
    }

    /// The use cases, without a socket between.
    pub(crate) fn broker(&self) -> &Arc<Broker> {
        &self.running.broker
    }

    /// Ends the broker as a signal would and starts it again on the same database and addresses,
    /// with its settings changed.
    pub(crate) async fn restart(&mut self, change: impl FnOnce(&mut toml::Table)) {
        self.running.stop().await;
        change(&mut self.settings);
        let listeners = bind(&self.public_url[7..], &self.internal_url[7..]).await;
        let (clock, manner) = (self.clock.clone(), self.manner.clone());
        self.running = Running::start(&self.settings, listeners, clock, manner).await;
    }

    /// Ends the broker as a signal would; [`TestBroker::restart`] starts it again.
    pub(crate) async fn halt(&self) {
        self.running.stop().await;
    }

    /// Changes the settings for the next start and the next command.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut toml::Table)) {
        change(&mut self.settings);
    }

    /// Runs the real binary on this broker's database and state directory.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Ended {
        let config = self.state("broker.toml");
        std::fs::write(&config, self.settings.to_string()).unwrap();
        let arguments = [&["--config", config.to_str().unwrap()], arguments].concat();
        Program::run(&arguments, &[]).await
    }

    /// A file in the state directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.state_dir.path().join(name)
    }

    /// Starts another replica, with a state directory and listeners of its own. It shares the clock.
    pub(crate) async fn replica(&self) -> Replica {
        self.replica_with_keys(&load(&self.settings).key_file).await
    }

    /// As [`TestBroker::replica`], with a key file of its own.
    pub(crate) async fn replica_with_keys(&self, key_file: &Path) -> Replica {
        let listeners = bind("127.0.0.1:0", "127.0.0.1:0").await;
        let internal_url = format!("http://{}", listeners.internal.local_addr().unwrap());
        let state_dir = tempfile::tempdir().unwrap();
        let key_file = key_file.display().to_string();
        let mut settings = self.settings.clone();
        settings.insert("internal_url".into(), internal_url.clone().into());
        settings.insert("state_dir".into(), state_dir.path().to_str().unwrap().into());
        settings.insert("sealing".into(), toml::toml! { key_file = key_file }.into());
        let (clock, manner) = (self.clock.clone(), Manner::default());
        let running = Running::start(&settings, listeners, clock, manner).await;
        let (service_key, http) = (self.service_key.clone(), self.http.clone());
        Replica { running, internal_url, service_key, http, _state_dir: state_dir }
    }

    /// Makes a service and returns its key.
    pub(crate) async fn service(&self, name: &str, connections: Value, verbs: Value) -> String {
        let body = json!({ "name": name, "connections": connections, "verbs": verbs });
        let answer = self.operator(Method::POST, "/v1/services", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    /// A request to the internal listener.
    pub(crate) async fn ask(
        &self,
        key: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.internal_url));
        if !key.is_empty() {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        read(request.send().await.unwrap()).await
    }

    pub(crate) async fn operator(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask(&self.operator_key, method, path, body).await
    }

    /// Fetches a token with the service's key.
    pub(crate) async fn token(&self, connection: &str) -> Answer {
        let path = format!("/v1/connections/{connection}/token");
        self.ask(&self.service_key, Method::GET, &path, None).await
    }

    /// What the connection looks like to an operator.
    pub(crate) async fn view(&self, connection: &str) -> Value {
        let answer =
            self.operator(Method::GET, &format!("/v1/connections/{connection}"), None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    }

    /// Makes a connection by client credentials.
    pub(crate) async fn create(&self, name: &str, client: &str) -> Value {
        let body = json!({ "name": name, "client": client, "grant_type": "client_credentials" });
        let answer = self.operator(Method::POST, "/v1/connections", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()
    }

    /// Makes a consent link; `more` is merged into the request.
    pub(crate) async fn link(&self, name: &str, client: &str, more: Value) -> String {
        let mut body = json!({ "connection": name, "client": client });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = self.operator(Method::POST, "/v1/consent-links", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["url"].as_str().unwrap().to_owned()
    }

    /// Makes a connection whose simulated account consents and is expected.
    pub(crate) async fn connect(&self, name: &str, which: Simulated) {
        let expected = json!({ "expected_account": self.account(which) });
        let link = self.link(name, which.as_str(), expected).await;
        let mut person = Person::new(self);
        let page = person.consent(&link, "allow").await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        assert_eq!(self.view(name).await["state"], "active");
    }

    pub(crate) fn simulator(&self, which: Simulated) -> &Simulator {
        self.simulators.of(which)
    }

    /// The account that consents at a simulator unless a person chooses another.
    pub(crate) fn account(&self, which: Simulated) -> String {
        self.simulators.applications()[which.as_str()].account.clone()
    }

    /// How often codes and tokens of a kind were presented to a simulator, and the most that any
    /// one of them was.
    pub(crate) fn presented(&self, which: Simulated, kind: Kind) -> (u64, u64) {
        let oracle = self.simulator(which).oracle();
        let times = oracle.known.iter().filter(|known| known.kind == kind);
        let times = times.map(|known| known.presented.values().sum::<u64>());
        times.fold((0, 0), |(all, most), times| (all + times, most.max(times)))
    }

    /// Moves the clock of the broker, its database and the simulators; the broker's memory is
    /// brought up to date, as the background would have done meanwhile.
    pub(crate) async fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.broker().sync().await.unwrap();
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

    /// How many requests of each kind have reached each provider, whatever they held.
    pub(crate) fn requests(&self) -> BTreeMap<Simulated, BTreeMap<Endpoint, u64>> {
        Simulated::ALL.map(|which| (which, self.simulator(which).oracle().requests)).into()
    }

    /// Whether a received grant lies in escrow because the connection holds another.
    pub(crate) async fn has_escrow(&self, connection: &str) -> bool {
        let store = self.broker().store();
        let id = store.record(connection).await.unwrap().unwrap().connection.id;
        store.escrowed(id).await.unwrap().is_some()
    }

    /// Runs a statement on PostgreSQL and holds its locks until the connection is dropped.
    pub(crate) async fn hold(&self, sql: &'static str) -> PgConnection {
        self.database.hold(sql).await
    }

    /// Waits until nothing is under way in the background.
    pub(crate) async fn idle(&self) {
        let tasks = self.broker().tasks();
        tasks.close();
        tasks.wait().await;
        tasks.reopen();
    }

    /// Asks until the connection is live, for what happens after an answer was given.
    pub(crate) async fn until_active(&self, connection: &str) {
        let active = async { while self.view(connection).await["state"] != "active" {} };
        let active = tokio::time::timeout(Duration::from_secs(30), active).await;
        assert!(active.is_ok(), "{}", self.view(connection).await);
    }

    /// One step of the background refresher.
    pub(crate) async fn refresh_due(&self) -> usize {
        self.broker().sync().await.unwrap();
        self.broker().refresh_due(100).await.unwrap()
    }

    /// Ends the broker as a signal would, and waits for it.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
        self.simulators.shutdown().await;
    }

    /// Uses a token as a service does: with the headers and the base URL that came with it.
    pub(crate) async fn use_token(&self, token: &Value, path: &str) -> Answer {
        // Our test client resolves no *.localhost: the address is 127.0.0.1, the host stays.
        let url: url::Url =
            format!("{}{path}", token["api_base_url"].as_str().unwrap()).parse().unwrap();
        let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let at = format!("http://127.0.0.1:{}{}", url.port().unwrap(), url.path());
        let mut request = self.http.get(at).header(header::HOST, host);
        for (name, value) in token["headers"].as_object().unwrap() {
            request = request.header(name, value.as_str().unwrap());
        }
        read(request.send().await.unwrap()).await
    }
}

/// A person with a browser: cookies by host, redirects followed one by one. A clone is another tab.
#[derive(Clone)]
pub(crate) struct Person {
    http: Client,
    cookies: BTreeMap<String, String>,
}

impl Person {
    /// A person with a browser of their own.
    pub(crate) fn alone() -> Self {
        Self { http: client(), cookies: BTreeMap::new() }
    }

    pub(crate) fn new(broker: &TestBroker) -> Self {
        Self { http: broker.http.clone(), cookies: BTreeMap::new() }
    }

    pub(crate) async fn get(&mut self, url: &str) -> Answer {
        self.send(Method::GET, url, &[], None).await
    }

    /// Presses the button of a page of this URL.
    pub(crate) async fn press(&mut self, url: &str) -> Answer {
        let origin = url::Url::parse(url).unwrap().origin().ascii_serialization();
        self.send(
            Method::POST,
            url,
            &[("origin", &origin), ("sec-fetch-site", "same-origin")],
            None,
        )
        .await
    }

    /// From the link to the provider's consent page; returns that page's URL.
    pub(crate) async fn start(&mut self, link: &str) -> String {
        let page = self.get(link).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        let pressed = self.press(link).await;
        assert_eq!(pressed.status, StatusCode::SEE_OTHER, "{pressed:?}");
        pressed.header("location").to_owned()
    }

    /// Decides at the provider; returns the callback's URL.
    pub(crate) async fn decide(&mut self, provider: &str, decision: &str) -> String {
        let page = self.get(provider).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        let form = [("decision", decision)];
        let decided = self.send(Method::POST, provider, &[], Some(&form)).await;
        assert!(decided.status.is_redirection(), "{decided:?}");
        decided.header("location").to_owned()
    }

    /// The whole way; returns the page at its end.
    pub(crate) async fn consent(&mut self, link: &str, decision: &str) -> Answer {
        let provider = self.start(link).await;
        let callback = self.decide(&provider, decision).await;
        let back = self.get(&callback).await;
        assert_eq!(back.status, StatusCode::SEE_OTHER, "{back:?}");
        let location = back.header("location").to_owned();
        self.get(&location).await
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        form: Option<&[(&str, &str)]>,
    ) -> Answer {
        let host = url::Url::parse(url).unwrap().host_str().unwrap().to_owned();
        let mut request = self.http.request(method, url);
        if let Some(cookie) = self.cookies.get(&host) {
            request = request.header(header::COOKIE, cookie);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(form) = form {
            request = request.form(form);
        }
        let answer = read(request.send().await.unwrap()).await;
        if let Some(set) = answer.headers.get(header::SET_COOKIE) {
            let cookie = set.to_str().unwrap().split(';').next().unwrap().to_owned();
            self.cookies.insert(host, cookie);
        }
        answer
    }
}

async fn read(response: reqwest::Response) -> Answer {
    Answer {
        status: response.status(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
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
