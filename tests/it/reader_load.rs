//! Readers: what many of them cost, and how long one of them can be kept waiting.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Endpoint, Fault, Simulated};

use crate::support::{
    api::Answer,
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

/// What was recorded of refreshes that brought nothing.
async fn failures(broker: &TestBroker) -> Vec<Value> {
    broker.broker().ship_events().await.unwrap();
    let page = broker.operator(Method::GET, "/v1/events?after=0&limit=1000", None).await.json();
    let events = page["events"].as_array().unwrap().iter();
    let failed = events.filter(|event| event["kind"] == "refresh_failed");
    failed.map(|event| event["detail"].clone()).collect()
}

#[apply(on_both_engines!)]
async fn reads_that_no_refresh_can_help_write_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let without = Fault::Body { text: r#"{"access_token":"at-1"}"#.to_owned() };
    broker.simulator(Simulated::Avito).fault(&without, 1);
    broker.connect_any("avito-shop", "avito").await;
    broker.advance(Duration::from_hours(20)).await;
    let posts = || broker.requests()[&Simulated::Avito][&Endpoint::Token];
    let before = posts();
    let read = async || {
        let path = "/v1/connections/avito-shop/token?min_ttl=36000";
        let token = broker.ask(&broker.service_key, Method::GET, path, None).await;
        assert_eq!((token.status, &token.json()["stale"]), (StatusCode::OK, &json!(true)));
        broker.idle().await;
        broker.number("SELECT MAX(changed_at) FROM connections").await
    };
    let written = read().await;
    for _ in 0..99 {
        assert_eq!(read().await, written, "nothing is written for a reader");
    }
    assert_eq!(failures(&broker).await, ["not sent, no_refresh_token, active"]);
    let view = broker.view("avito-shop").await;
    assert_eq!(view["last_error"]["code"], "no_refresh_token", "{view}");
    // When its token ends a person is needed, and that is said once, too.
    broker.advance(Duration::from_hours(5)).await;
    for _ in 0..3 {
        assert_eq!(broker.token("avito-shop").await.json()["code"], "consent_required");
    }
    let told = ["not sent, no_refresh_token, active", "not sent, no_refresh_token, needs_consent"];
    assert_eq!(failures(&broker).await, told);
    assert_eq!(posts(), before);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_reader_does_not_hold_up_the_end(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    broker.advance(Duration::from_hours(25)).await;
    let store = broker.broker().store().clone();
    let seen = store.record("amocrm-shop").await.unwrap().unwrap();
    let claimed = store.claim(&seen, "another.1", None, Duration::from_mins(1)).await.unwrap();
    assert!(claimed.held().is_some());
    let mut reader = Box::pin(broker.token("amocrm-shop"));
    let waits = tokio::time::timeout(Duration::from_secs(1), &mut reader).await;
    assert!(waits.is_err(), "{waits:?}");
    let (token, ended) =
        tokio::join!(reader, tokio::time::timeout(Duration::from_secs(10), broker.halt()));
    assert!(ended.is_ok(), "the end waits for a reader who waits for somebody else");
    assert_eq!(token.status, StatusCode::SERVICE_UNAVAILABLE, "{token:?}");
    assert!(token.text.contains("being stopped"), "{token:?}");
}

async fn rejected(broker: &TestBroker, name: &str, fingerprint: &Value, wait: u8) -> Answer {
    let url = format!("{}/v1/connections/{name}/token/rejected", broker.internal_url);
    let report = broker.http.post(url).bearer_auth(&broker.service_key);
    let report = report.header("prefer", format!("wait={wait}"));
    let report = report.json(&json!({ "fingerprint": fingerprint }));
    Answer::read(report.send().await.unwrap()).await
}

#[apply(on_both_engines!)]
async fn a_report_is_answered_within_the_wait_that_it_asks_for(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let held = broker.token("amocrm-shop").await.json()["fingerprint"].clone();
    // The token has ended, and no other comes.
    broker.advance(Duration::from_hours(25)).await;
    broker.simulator(Simulated::Amocrm).fault(&Fault::Late, 1);
    let asked = broker.clock.stopwatch();
    let answer = rejected(&broker, "amocrm-shop", &held, 3).await;
    let waited = asked.elapsed();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert!((3_000..5_500).contains(&waited.as_millis()), "{waited:?}");
    broker.simulator(Simulated::Amocrm).clear_faults();
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn no_provider_speaks_our_words(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    broker.advance(Duration::from_hours(25)).await;
    let text = r#"{"error":"provider_misconfigured"}"#.to_owned();
    broker.simulator(Simulated::Avito).fault(&Fault::Body { text }, 3);
    for _ in 0..3 {
        let failed = broker.refresh("avito-shop").await;
        assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE, "{failed:?}");
    }
    // It is ours to mend only where we have found that out ourselves.
    let waits = broker.token("avito-shop").await;
    assert_eq!(waits.status, StatusCode::SERVICE_UNAVAILABLE, "{waits:?}");
    let health = broker.ask("", Method::GET, "/health", None).await.text;
    assert!(!health.contains("refuses our registration"), "{health}");
    broker.stop().await;
}
