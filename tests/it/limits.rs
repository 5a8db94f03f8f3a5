//! What no caller may go beyond, and what is refused before it does harm.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, on_both_engines},
};

on_both_engines! {
    a_service_that_may_not_confirm_chooses_no_account,
}

async fn a_service_that_may_not_confirm_chooses_no_account(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.link("with", "amocrm", json!({ "expected_account": "1" })).await;
    broker.link("without", "amocrm", json!({})).await;
    let asker = broker.service("asker", json!(["*"]), json!(["consent"])).await;
    let confirmer = broker.service("confirmer", json!(["*"]), json!(["consent", "confirm"])).await;
    let ask = async |key: &str, name: &str, expected: Value| {
        let body = json!({ "connection": name, "client": "amocrm", "expected_account": expected });
        broker.ask(key, Method::POST, "/v1/consent-links", Some(body)).await
    };
    let (yes, no) = (StatusCode::CREATED, StatusCode::FORBIDDEN);
    for (key, name, expected, status, words) in [
        // What the operator expects may be repeated or left out, and not replaced.
        (&asker, "with", json!(null), yes, ""),
        (&asker, "with", json!("1"), yes, ""),
        (&asker, "with", json!("2"), no, "only an operator may override"),
        (&confirmer, "with", json!("2"), no, "only an operator may override"),
        // Where nobody expects an account yet, to name one is to confirm it.
        (&asker, "without", json!(null), yes, ""),
        (&asker, "without", json!("2"), no, "the key needs the verb `confirm`"),
        (&confirmer, "without", json!("2"), yes, ""),
        (&asker, "new", json!("2"), no, "the key needs the verb `confirm`"),
        (&confirmer, "new", json!("2"), yes, ""),
        (&broker.operator_key, "with", json!("3"), yes, ""),
    ] {
        let answer = ask(key, name, expected).await;
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        assert!(answer.text.contains(words), "{name}: {answer:?}");
    }
    // What was refused has made nothing.
    let refused = ask(&asker, "newer", json!("2")).await;
    assert_eq!(refused.status, no);
    let view = broker.operator(Method::GET, "/v1/connections/newer", None).await;
    assert_eq!(view.status, StatusCode::NOT_FOUND);
    broker.stop().await;
}
