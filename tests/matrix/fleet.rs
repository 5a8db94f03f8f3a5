//! Real processes on one database, with a provider and connections that outlive them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use token_broker::{
    clock::Clock,
    seal::Keyring,
    simulator::{Endpoint, Simulated, Simulator, SimulatorSettings, Simulators},
};

use crate::support::{
    database::TestDatabase, http::client, person::Person, process::Program, wait::free_address,
};
use crate::{checks::open, reader_load::Target};

/// The database, the providers, and the replicas that are to run between them.
pub(crate) struct Fleet {
    pub(crate) database: TestDatabase,
    pub(crate) ships: Vec<Ship>,
    simulators: Simulators,
    operator: String,
    reader: String,
    _home: TempDir,
}

/// A replica, with a state directory and addresses of its own.
pub(crate) struct Ship {
    config: PathBuf,
    pub(crate) state_dir: PathBuf,
    internal_url: String,
    pub(crate) program: Program,
}

impl Ship {
    /// Starts it and waits until it serves.
    pub(crate) async fn start(&mut self) {
        self.program = run(&self.config, &["serve"]);
        self.program.hear("serving").await;
    }

    /// How many grants lie in the spool; a file that is only reserved begins with a zero.
    pub(crate) fn spooled(&self) -> usize {
        let files = fs::read_dir(self.state_dir.join("spool")).unwrap().flatten();
        let read = files.filter_map(|file| fs::read(file.path()).ok());
        read.filter(|bytes| bytes.first().is_some_and(|byte| *byte != 0)).count()
    }

    /// How many files are in the spool.
    pub(crate) fn spool_files(&self) -> usize {
        fs::read_dir(self.state_dir.join("spool")).unwrap().count()
    }
}

/// A program that may be told to ignore that a file grows too large.
fn run(config: &Path, command: &[&str]) -> Program {
    let mut arguments = vec!["--config", config.to_str().unwrap()];
    arguments.extend(command);
    Program::start_by(&["env", "--ignore-signal=XFSZ"], &arguments, &[])
}

impl Fleet {
    /// Starts so many replicas, with this in their settings.
    pub(crate) async fn start(database: TestDatabase, replicas: usize, settings: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let public = free_address();
        let public_url = format!("http://{public}");
        let mut simulated = SimulatorSettings::default();
        simulated.register_callbacks(&public_url);
        let simulators = Simulators::start(simulated, Clock::system()).await.unwrap();
        let mut common = simulators.configuration();
        let more: toml::Table = settings.parse().unwrap();
        let pace = more["providers"]["profiles"]["avito"]["pace"].clone();
        common["providers"]["profiles"]["avito"]
            .as_table_mut()
            .unwrap()
            .insert("pace".to_owned(), pace);
        let key_file = home.path().join("sealing.keys");
        Keyring::generate().write_new(&key_file).unwrap();
        let key_file = key_file.to_str().unwrap();
        common.insert("sealing".to_owned(), toml::toml! { key_file = key_file }.into());
        let url = open(&database.url);
        common.insert("database".to_owned(), toml::toml! { url = url }.into());
        common.insert("public_url".to_owned(), public_url.into());
        let mut ships = Vec::new();
        for number in 0..replicas {
            let public = if number == 0 { public.clone() } else { free_address() };
            let folder = home.path().join(number.to_string());
            ships.push(ship(&folder, common.clone(), &public));
        }
        let operator = run(&ships[0].config, &["operators", "create", "alice"]).end().await;
        for ship in &mut ships {
            ship.start().await;
        }
        let operator = operator.stdout[0].clone();
        let mut this =
            Self { database, ships, simulators, operator, reader: String::new(), _home: home };
        let service = json!({ "name": "reader", "connections": ["*"] });
        let service = this.ask(Method::POST, "/v1/services", service).await;
        this.reader = service["key"].as_str().unwrap().to_owned();
        this
    }

    /// A request of the operator's to the first replica.
    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.ships[0].internal_url);
        let request = client().request(method, url).bearer_auth(&self.operator).json(&body);
        let text = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Makes connections whose account consents in the operator's own browser.
    pub(crate) async fn consented(&self, count: usize) -> Vec<String> {
        let names: Vec<_> = (0..count).map(|number| format!("avito-{number}")).collect();
        for name in &names {
            let link = json!({ "connection": name, "client": "avito", "self": true });
            let link = self.ask(Method::POST, "/v1/consent-links", link).await;
            let page = Person::alone().consent(link["url"].as_str().unwrap(), "allow").await;
            assert!(page.text.contains("Connected"), "{}", page.text);
        }
        names
    }

    pub(crate) fn avito(&self) -> &Simulator {
        self.simulators.of(Simulated::Avito)
    }

    /// How many token requests have arrived.
    pub(crate) fn posts(&self) -> u64 {
        self.avito().oracle().requests.get(&Endpoint::Token).copied().unwrap_or_default()
    }

    /// The replicas as services see them.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.ships.iter().map(|ship| Target::new(&ship.internal_url, &self.reader)).collect()
    }

    /// Fetches a token from the first replica.
    pub(crate) async fn token(&self, name: &str) -> StatusCode {
        let url = format!("{}/v1/connections/{name}/token", self.ships[0].internal_url);
        client().get(url).bearer_auth(&self.reader).send().await.unwrap().status()
    }

    /// How many connections hold this generation with no attempt open.
    pub(crate) async fn settled_at(&self, names: &[String], generation: i64) -> usize {
        let mut settled = 0;
        for name in names {
            let record = self.database.store.record(name).await.unwrap().unwrap();
            let open = record.claimed_at.is_some() || record.open_attempts > 0;
            settled += usize::from(!open && record.generation() == generation);
        }
        settled
    }
}

fn ship(folder: &Path, mut settings: toml::Table, public: &str) -> Ship {
    fs::create_dir(folder).unwrap();
    let internal = free_address();
    let (internal_url, state_dir) = (format!("http://{internal}"), folder.join("state"));
    for (name, value) in [
        ("public_listen", public),
        ("internal_url", &internal_url),
        ("internal_listen", &internal),
        ("state_dir", state_dir.to_str().unwrap()),
    ] {
        settings.insert(name.to_owned(), value.into());
    }
    let config = folder.join("broker.toml");
    fs::write(&config, settings.to_string()).unwrap();
    let program = run(&config, &["--version"]);
    Ship { config, state_dir, internal_url, program }
}
