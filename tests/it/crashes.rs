//! The real binary dies between the provider's answer and the commit: the grant is on the disk and
//! is stored at the next start.

use std::{fs, net::TcpListener, path::Path, time::Duration};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};
use token_broker::{
    clock::Clock,
    simulator::{Fault, Kind, Simulated, SimulatorSettings, Simulators},
};
use tokio::{join, time::timeout};

use crate::support::{broker::Person, http::client, process::Program};

/// An address that nobody listens at; a restart needs the same one.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// The first byte of the one file in the spool: zero while it is only reserved.
fn spooled(state_dir: &Path) -> bool {
    let files = fs::read_dir(state_dir.join("spool")).into_iter().flatten().flatten();
    files
        .map(|file| fs::read(file.path()))
        .any(|read| read.is_ok_and(|bytes| bytes.first().is_some_and(|byte| *byte != 0)))
}

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let wait = async {
        while !happened() {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(Duration::from_secs(30), wait).await.is_ok(), "{what}");
}

async fn post(url: &str, key: &str, body: Value) -> (StatusCode, Value) {
    let answer = client().post(url).bearer_auth(key).json(&body).send().await.unwrap();
    let status = answer.status();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_was_received_survives_the_death_of_the_process() {
    let home = tempfile::tempdir().unwrap();
    let state_dir = home.path().join("state");
    let (public, internal) = (free_address(), free_address());
    let (public_url, internal_url) = (format!("http://{public}"), format!("http://{internal}"));
    let mut simulated = SimulatorSettings::default();
    simulated.register_callbacks(&public_url);
    let simulators = Simulators::start(simulated, Clock::system()).await.unwrap();
    let mut settings = simulators.configuration();
    for (name, value) in [
        ("public_url", public_url.as_str()),
        ("public_listen", &public),
        ("internal_url", &internal_url),
        ("internal_listen", &internal),
        ("state_dir", state_dir.to_str().unwrap()),
    ] {
        settings.insert(name.to_owned(), value.into());
    }
    let config = home.path().join("broker.toml");
    fs::write(&config, settings.to_string()).unwrap();
    let arguments = |command: &[&'static str]| {
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(command);
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |command: &[&'static str]| {
        let all = arguments(command);
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        Program::start(&all, &[])
    };
    let operator = run(&["operators", "create", "alice"]).end().await.stdout[0].clone();

    let mut broker = run(&["serve"]);
    broker.hear("serving").await;
    let service = json!({ "name": "reader", "connections": ["*"] });
    let (_, service) = post(&format!("{internal_url}/v1/services"), &operator, service).await;
    let key = service["key"].as_str().unwrap();
    let link = json!({ "connection": "amocrm-shop", "client": "amocrm", "self": true });
    let (_, link) = post(&format!("{internal_url}/v1/consent-links"), &operator, link).await;
    let page = Person::alone().consent(link["url"].as_str().unwrap(), "allow").await;
    assert!(page.text.contains("Connected"), "{}", page.text);

    // The answer is slow enough for the database to be taken away before it arrives.
    let amocrm = simulators.of(Simulated::Amocrm);
    amocrm.fault(&Fault::Slow { milliseconds: 1_000 }, 1);
    let refresh = format!("{internal_url}/v1/connections/amocrm-shop/refresh");
    let request = client().post(&refresh).bearer_auth(&operator).send();
    let presented = || {
        let known = amocrm.oracle().known;
        known.iter().any(|known| known.kind == Kind::Refresh && !known.presented.is_empty())
    };
    let death = async {
        until("the refresh token is presented", presented).await;
        let database = format!("sqlite:{}", state_dir.join("token-broker.sqlite").display());
        let mut holder = SqliteConnection::connect(&database).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
        until("the grant is on the disk", || spooled(&state_dir)).await;
        broker.signal("KILL");
        let ended = broker.end().await;
        assert!(!ended.status.success());
        sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
        holder.close().await.unwrap();
    };
    let (answer, ()) = join!(request, death);
    assert!(answer.is_err(), "the process died before it could answer");

    let mut broker = run(&["serve"]);
    broker.hear("stored a grant that a crash had left").await;
    broker.hear("serving").await;
    let url = format!("{internal_url}/v1/connections/amocrm-shop/token");
    let token = client().get(url).bearer_auth(key).send().await.unwrap();
    assert_eq!(token.status(), StatusCode::OK);
    let token: Value = serde_json::from_str(&token.text().await.unwrap()).unwrap();
    assert_eq!(token["generation"], 2);
    assert!(amocrm.oracle().of(token["access_token"].as_str().unwrap()).unwrap().alive);
    // The refresh token that came with it is the live one, and the old one stays unused.
    let (status, view) = post(&refresh, &operator, json!({})).await;
    assert_eq!((status, &view["generation"]), (StatusCode::OK, &json!(3)), "{view}");
    for known in amocrm.oracle().known.iter().filter(|known| known.kind == Kind::Refresh) {
        assert!(known.presented.values().sum::<u64>() <= 1, "{known:?}");
    }
    assert_eq!(fs::read_dir(state_dir.join("spool")).unwrap().count(), 0);
    broker.signal("TERM");
    assert!(broker.end().await.status.success());
}
