//! OAuth libraries of another language, set up as for any other server, fetch a token.

use std::process::Command;

use serde_json::Value;
use token_broker::simulator::Simulated;

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

/// Runs a script of `tests/clients` with the Python that `tests/run` prepares.
async fn run(script: &str, arguments: Vec<String>) -> Value {
    let python = std::env::var("TEST_PYTHON")
        .unwrap_or_else(|_| panic!("TEST_PYTHON is not set: start the tests with tests/run"));
    let script = format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR"));
    let run = move || Command::new(python).arg(script).args(arguments).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn fetched(broker: &TestBroker, script: &str, endpoint: String) {
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let arguments =
        vec![endpoint, "reader".to_owned(), broker.service_key.clone(), "amocrm-shop".to_owned()];
    let token = run(script, arguments).await;
    let expected = broker.token("amocrm-shop").await.json();
    assert_eq!(token["access_token"], expected["access_token"]);
    assert_eq!(token["token_type"], "Bearer");
    assert!(token["expires_in"].as_u64().unwrap() > 86_000, "{token}");
    assert_eq!(token["api_base_url"], expected["api_base_url"]);
}

#[apply(on_both_engines!)]
async fn requests_oauthlib_fetches_a_token(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let endpoint = format!("{}/oauth2/token", broker.internal_url);
    fetched(&broker, "token_with_requests_oauthlib.py", endpoint).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn authlib_fetches_a_token(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let issuer = broker.internal_url.clone();
    fetched(&broker, "token_with_authlib.py", issuer).await;
    broker.stop().await;
}
