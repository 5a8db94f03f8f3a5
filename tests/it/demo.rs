//! The real binary's `demo`, as a newcomer and as a script meets it.

use std::{collections::BTreeSet, fs};

use reqwest::header;
use serde_json::Value;

use crate::support::{http::client, person::Person, process::Program};

/// The account call of a provider's API.
fn account_call(provider: &str) -> &'static str {
    match provider {
        "admitad" => "/me/",
        "avito" => "/core/v1/accounts/self",
        "divar" => "/v1/open-platform/users",
        _ => "/api/v4/account",
    }
}

/// Fetches the token of a connection and uses it as the answer says.
async fn use_token(ready: &Value, name: &str, provider: &str) {
    let url = format!("{}/v1/connections/{name}/token", ready["internal_url"].as_str().unwrap());
    let key = ready["service_key"].as_str().unwrap();
    let answer = client().get(url).bearer_auth(key).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{name}");
    let token: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(token["provider"], provider);
    let base: url::Url = token["api_base_url"].as_str().unwrap().parse().unwrap();
    let host = format!("{}:{}", base.host_str().unwrap(), base.port().unwrap());
    let at = format!("http://127.0.0.1:{}{}", base.port().unwrap(), account_call(provider));
    let mut request = client().get(&at).header(header::HOST, host);
    for (header, value) in token["headers"].as_object().unwrap() {
        request = request.header(header, value.as_str().unwrap());
    }
    assert_eq!(request.send().await.unwrap().status(), 200, "{name} at {at}");
}

async fn every_connection_is_live(variables: &[(&str, &str)], arguments: &[&str]) {
    let mut program = Program::start(arguments, variables);
    let ready = program.json().await;
    let members: BTreeSet<_> = ready.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "connections",
        "consent_links",
        "internal_url",
        "operator_key",
        "public_url",
        "service_key",
        "simulators",
    ];
    assert_eq!(members, BTreeSet::from(expected));
    let mut providers = BTreeSet::new();
    for connection in ready["connections"].as_array().unwrap() {
        assert_eq!(connection["state"], "active", "{connection}");
        let provider = connection["provider"].as_str().unwrap();
        use_token(&ready, connection["name"].as_str().unwrap(), provider).await;
        providers.insert(provider);
    }
    let all = BTreeSet::from(["admitad", "amocrm", "avito", "divar", "kommo"]);
    assert_eq!(providers, all);
    let simulators = ready["simulators"].as_object().unwrap();
    assert_eq!(simulators.keys().map(String::as_str).collect::<BTreeSet<_>>(), all);
    for base in simulators.values() {
        let oracle = format!("{}/_simulator/oracle", base.as_str().unwrap());
        assert_eq!(client().get(oracle).send().await.unwrap().status(), 200);
    }
    let home = program.home().to_owned();
    program.signal("INT");
    let ended = program.end().await;
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stderr, Vec::<String>::new());
    drop(home);
}

#[tokio::test]
async fn with_its_buttons_pressed_every_connection_is_live() {
    every_connection_is_live(&[], &["demo", "--json", "--auto-consent"]).await;
}

#[tokio::test]
async fn it_runs_on_postgres_too() {
    let database = crate::support::database::TestDatabase::postgres().await;
    let url = database.plain_url();
    let arguments = ["demo", "--json", "--auto-consent", "--database-url", url];
    every_connection_is_live(&[], &arguments).await;
}

#[tokio::test]
async fn it_prints_lines_to_copy_and_leaves_nothing_behind() {
    let mut program = Program::start(&["demo"], &[]);
    let mut said = Vec::new();
    loop {
        let line = program.line().await;
        let last = line.contains("/v1/connections'") || line.ends_with("/v1/connections");
        said.push(line);
        if last {
            break;
        }
    }
    let text = said.join("\n");
    let curl = said.iter().find(|line| line.contains("avito-own/token")).expect("a curl line");
    let words: Vec<_> = curl.split_whitespace().collect();
    assert_eq!(words[..3], ["curl", "-s", "-H"], "{curl}");
    let key = curl.split("Bearer ").nth(1).unwrap().split('\'').next().unwrap();
    let answer = client().get(*words.last().unwrap()).bearer_auth(key).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{text}");
    for connection in ["admitad-web", "amocrm-shop", "avito-shop", "divar-shop", "kommo-shop"] {
        let line = said.iter().find(|line| line.trim_start().starts_with(connection));
        let link = line.unwrap_or_else(|| panic!("no link for {connection} in:\n{text}"));
        let link = link.split_whitespace().last().unwrap();
        assert_eq!(client().get(link).send().await.unwrap().status(), 200, "{link}");
    }
    let home = program.home().to_owned();
    assert!(fs::read_dir(&home).unwrap().next().is_some(), "its database lies here meanwhile");
    program.signal("TERM");
    // The home outlives the program only as long as it is held: look before it goes.
    let left = program.left_behind().await;
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn it_keeps_its_database_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let arguments = ["demo", "--json", "--keep", kept.to_str().unwrap()];
    let mut program = Program::start(&arguments, &[]);
    let ready = program.json().await;
    let waiting = ready["connections"].as_array().unwrap();
    assert!(waiting.iter().any(|connection| connection["state"] == "pending_consent"));
    program.signal("TERM");
    assert!(program.end().await.status.success());
    assert!(kept.join("token-broker.sqlite").exists() && kept.join("sealing.keys").exists());
    let again = Program::run(&arguments, &[]).await;
    assert_eq!(again.status.code(), Some(64), "{again:?}");
    assert_eq!(again.stderr.len(), 1, "{again:?}");
}

#[tokio::test]
async fn the_commands_talk_to_it() {
    let mut program = Program::start(&["demo", "--json"], &[]);
    let ready = program.json().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let operator = file("operator.key", ready["operator_key"].as_str().unwrap());
    let service = file("service.key", ready["service_key"].as_str().unwrap());
    let api_key = file("api.key", "simulated-api-key\n");
    let url = ready["internal_url"].as_str().unwrap();
    let run = async |key: &str, arguments: &[&str]| {
        let variables = [("TOKEN_BROKER_URL", url), ("TOKEN_BROKER_KEY_FILE", key)];
        let ended = Program::run(arguments, &variables).await;
        assert!(ended.status.success(), "{arguments:?}: {ended:?}");
        ended.stdout.join("\n")
    };

    let link = run(&operator, &["connect", "divar", "--connection", "divar-two", "--self"]).await;
    let page = Person::alone().consent(&link, "allow").await;
    assert!(page.text.contains("Connected"), "{}", page.text);
    let token = run(&service, &["token", "divar-two"]).await;
    assert!(token.starts_with("ory_at_"), "{token}");

    let exchange = [
        "connect",
        "amocrm",
        "--connection",
        "amocrm-old",
        "--api-key-file",
        &api_key,
        "--login",
        "demo@example.com",
        "--account-host",
        "demo.amocrm.localhost",
    ];
    let said = run(&operator, &exchange).await;
    assert!(said.starts_with("amocrm-old: the provider accepted the API key"), "{said}");
    let live = async {
        while !run(&operator, &["connections"])
            .await
            .lines()
            .any(|line| line.starts_with("amocrm-old ") && line.contains(" active "))
        {}
    };
    let live = tokio::time::timeout(std::time::Duration::from_secs(30), live).await;
    assert!(live.is_ok(), "the code arrives and is exchanged");
    let answer = run(&service, &["token", "amocrm-old", "--json"]).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["account"], "20000001");
}
