//! The real binary dies in the middle of a refresh, and starts again.

use std::{fs, path::PathBuf, time::Duration};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;
use token_broker::{
    clock::Clock,
    simulator::{Fault, Kind, Simulated, Simulator, SimulatorSettings, Simulators},
};
use tokio::{join, time::timeout};

use crate::support::{
    broker::Person,
    http::client,
    process::Program,
    wait::{free_address, until},
};

/// A broker with all that it needs to die and start again, on an SQLite database of its own.
pub(crate) struct Mortal {
    home: TempDir,
    pub(crate) internal_url: String,
    simulators: Simulators,
    pub(crate) operator: String,
    pub(crate) reader: String,
    pub(crate) program: Program,
}

impl Mortal {
    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (public, internal) = (free_address(), free_address());
        let public_url = format!("http://{public}");
        let internal_url = format!("http://{internal}");
        let mut simulated = SimulatorSettings::default();
        simulated.register_callbacks(&public_url);
        let simulators = Simulators::start(simulated, Clock::system()).await.unwrap();
        let mut settings = simulators.configuration();
        let state_dir = home.path().join("state");
        for (name, value) in [
            ("public_url", public_url.as_str()),
            ("public_listen", &public),
            ("internal_url", &internal_url),
            ("internal_listen", &internal),
            ("state_dir", state_dir.to_str().unwrap()),
        ] {
            settings.insert(name.to_owned(), value.into());
        }
        fs::write(home.path().join("broker.toml"), settings.to_string()).unwrap();
        let operator = Self::run(&home, &["operators", "create", "alice"]).end().await;
        let operator = operator.stdout[0].clone();
        let mut program = Self::run(&home, &["serve"]);
        program.hear("serving").await;
        let mut this =
            Self { home, internal_url, simulators, operator, reader: String::new(), program };
        let service = json!({ "name": "reader", "connections": ["*"] });
        let (_, service) = this.post("/v1/services", service).await;
        this.reader = service["key"].as_str().unwrap().to_owned();
        this
    }

    fn run(home: &TempDir, command: &[&str]) -> Program {
        let config = home.path().join("broker.toml");
        let mut arguments = vec!["--config", config.to_str().unwrap()];
        arguments.extend(command);
        Program::start(&arguments, &[])
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.home.path().join("state").join(name)
    }

    fn simulator(&self, which: Simulated) -> &Simulator {
        self.simulators.of(which)
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.internal_url);
        let answer = client().post(url).bearer_auth(&self.operator).json(&body).send().await;
        let answer = answer.unwrap();
        let status = answer.status();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    pub(crate) async fn get(&self, path: &str, key: &str) -> Value {
        let url = format!("{}{path}", self.internal_url);
        let answer = client().get(url).bearer_auth(key).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    /// Makes a connection whose account consents in the operator's own browser.
    pub(crate) async fn connect(&self, name: &str, which: Simulated) {
        let link = json!({ "connection": name, "client": which.as_str(), "self": true });
        let (_, link) = self.post("/v1/consent-links", link).await;
        let page = Person::alone().consent(link["url"].as_str().unwrap(), "allow").await;
        assert!(page.text.contains("Connected"), "{}", page.text);
    }

    /// Waits until the connection's refresh token was presented.
    async fn presented(&self, which: Simulated) {
        let presented = || {
            let known = self.simulator(which).oracle().known;
            known.iter().any(|known| known.kind == Kind::Refresh && !known.presented.is_empty())
        };
        until("the refresh token is presented", async || presented()).await;
    }

    /// Whether a grant lies in the spool; a file that is only reserved begins with a zero.
    fn spooled(&self) -> bool {
        let files = fs::read_dir(self.state("spool")).into_iter().flatten().flatten();
        files
            .map(|file| fs::read(file.path()))
            .any(|read| read.is_ok_and(|bytes| bytes.first().is_some_and(|byte| *byte != 0)))
    }

    /// Kills the process as it stands.
    pub(crate) async fn kill(&mut self) {
        self.program.signal("KILL");
        self.program.wait().await;
    }

    pub(crate) fn start_again(&mut self) {
        self.program = Self::run(&self.home, &["serve"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_was_received_survives_the_death_of_the_process() {
    let mut broker = Mortal::start().await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    // The answer waits until the database has been taken away.
    broker.simulator(Simulated::Amocrm).fault(&Fault::Late, 1);
    let path = "/v1/connections/amocrm-shop/refresh";
    let url = format!("{}{path}", broker.internal_url);
    let request = client().post(url).bearer_auth(&broker.operator).send();
    let death = async {
        broker.presented(Simulated::Amocrm).await;
        let database = format!("sqlite:{}", broker.state("token-broker.sqlite").display());
        let mut holder = SqliteConnection::connect(&database).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
        broker.simulator(Simulated::Amocrm).clear_faults();
        until("the grant is on the disk", async || broker.spooled()).await;
        broker.kill().await;
        sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
        holder.close().await.unwrap();
    };
    let (answer, ()) = join!(request, death);
    assert!(answer.is_err(), "the process died before it could answer");

    broker.start_again();
    broker.program.hear("stored a grant that a crash had left").await;
    broker.program.hear("serving").await;
    let token = broker.get("/v1/connections/amocrm-shop/token", &broker.reader).await;
    assert_eq!(token["generation"], 2, "{token}");
    let oracle = broker.simulator(Simulated::Amocrm).oracle();
    assert!(oracle.of(token["access_token"].as_str().unwrap()).unwrap().alive);
    // The refresh token that came with it is the live one, and the old one stays unused.
    let (status, view) = broker.post(path, json!({})).await;
    assert_eq!((status, &view["generation"]), (StatusCode::OK, &json!(3)), "{view}");
    let oracle = broker.simulator(Simulated::Amocrm).oracle();
    for known in oracle.known.iter().filter(|known| known.kind == Kind::Refresh) {
        assert!(known.presented.values().sum::<u64>() <= 1, "{known:?}");
    }
    assert_eq!(fs::read_dir(broker.state("spool")).unwrap().count(), 0);
    broker.program.signal("TERM");
    assert!(broker.program.end().await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_died_with_the_process_is_asked_for_again_at_once() {
    let mut broker = Mortal::start().await;
    for (name, which) in [("divar-shop", Simulated::Divar), ("amocrm-shop", Simulated::Amocrm)] {
        broker.connect(name, which).await;
        broker.simulator(which).fault(&Fault::Late, 1);
        let url = format!("{}/v1/connections/{name}/refresh", broker.internal_url);
        let request = client().post(url).bearer_auth(&broker.operator).send();
        let death = async {
            broker.presented(which).await;
            broker.kill().await;
        };
        let (answer, ()) = join!(request, death);
        assert!(answer.is_err(), "the process died before it could answer");
        broker.start_again();
        // It knows its own attempt again and does not wait for the lease to end.
        broker.program.hear("refreshes were under way when this replica last ended").await;
        broker.program.hear("serving").await;
        let path = format!("/v1/connections/{name}");
        let settled = async {
            loop {
                let view = broker.get(&path, &broker.operator).await;
                if view["generation"] == 2 || view["state"] == "needs_consent" {
                    return view;
                }
            }
        };
        let view = timeout(Duration::from_secs(20), settled).await.expect("settled in seconds");
        match which {
            // Within its grace the provider gives another pair for the same token.
            Simulated::Divar => assert_eq!(view["state"], "active", "{view}"),
            // Nobody could have saved this one; it is known at once, for what it is.
            _ => assert_eq!(view["reason"], "lost_in_rotation", "{view}"),
        }
        let token = broker.get(&format!("{path}/token"), &broker.reader).await;
        assert!(token["access_token"].is_string(), "the old token lives: {token}");
    }
}
