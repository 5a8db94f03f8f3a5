//! Consents for one connection that cross each other, or its deletion.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Endpoint, Fault, Simulated};

use crate::support::{
    broker::{Answer, Person, TestBroker},
    database::{TestDatabase, on_both_engines},
};

on_both_engines! {
    of_two_accounts_whose_codes_cross_the_second_waits,
}

/// Another account than the one that consents at the simulator by default.
const SECOND: &str = "10000002";

/// Decides at the provider for this account; returns the callback's URL.
async fn allowed(person: &mut Person, provider: &str, account: &str) -> String {
    let form = [("decision", "allow"), ("account", account)];
    let decided = person.send(Method::POST, provider, &[], Some(&form)).await;
    decided.header("location").to_owned()
}

/// The whole way for this account; returns the page at its end.
async fn consent_as(person: &mut Person, link: &str, account: &str) -> Answer {
    let provider = person.start(link).await;
    let callback = allowed(person, &provider, account).await;
    back(person, &callback).await
}

async fn back(person: &mut Person, callback: &str) -> Answer {
    let back = person.get(callback).await;
    assert_eq!(back.status, StatusCode::SEE_OTHER, "{back:?}");
    person.get(back.header("location")).await
}

/// Waits until the provider has one more token request than before.
async fn asked(broker: &TestBroker, which: Simulated, before: u64) {
    while token_requests(broker, which) == before {
        tokio::task::yield_now().await;
    }
}

fn token_requests(broker: &TestBroker, which: Simulated) -> u64 {
    broker.requests()[&which].get(&Endpoint::Token).copied().unwrap_or_default()
}

async fn confirm(broker: &TestBroker, name: &str, account: &str) {
    let path = format!("/v1/connections/{name}/confirm");
    let confirmed = broker.operator(Method::POST, &path, Some(json!({ "account": account }))).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{confirmed:?}");
}

async fn of_two_accounts_whose_codes_cross_the_second_waits(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let first = broker.account(Simulated::Avito);
    for (name, expected) in [("expected", json!(SECOND)), ("confirmed", Value::Null)] {
        let other = broker.link(name, "avito", json!({ "expected_account": expected })).await;
        let late = broker.link(name, "avito", json!({ "expected_account": first })).await;
        let mut person = Person::new(&broker);
        let provider = person.start(&late).await;
        let callback = person.decide(&provider, "allow").await;
        broker.simulator(Simulated::Avito).fault(&Fault::Late, 1);
        let before = token_requests(&broker, Simulated::Avito);
        let meanwhile = async {
            asked(&broker, Simulated::Avito, before).await;
            consent_as(&mut Person::new(&broker), &other, SECOND).await;
            if expected.is_null() {
                confirm(&broker, name, SECOND).await;
            }
            let token = broker.token(name).await.json();
            broker.simulator(Simulated::Avito).clear_faults();
            token
        };
        let (page, token) = tokio::join!(back(&mut person, &callback), meanwhile);
        assert!(page.text.contains("Waiting for confirmation"), "{name}: {}", page.text);
        let view = broker.view(name).await;
        assert_eq!((&view["state"], &view["account"]["id"]), (&json!("active"), &json!(SECOND)));
        assert_eq!(
            (&view["pending_account"]["id"], &view["generation"]),
            (&json!(first), &json!(1))
        );
        assert_eq!(broker.token(name).await.json()["access_token"], token["access_token"]);
    }
    broker.stop().await;
}
