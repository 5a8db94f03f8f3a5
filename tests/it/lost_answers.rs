//! The provider has acted and its answer went lost: what can be saved is saved, what cannot be is
//! told by its true reason, and nothing is presented more often than the provider forgives.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use token_broker::simulator::{Fault, Kind, Simulated};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

/// Asks for a refresh whose answer is lost on its way; the provider has acted or not.
async fn lose(broker: &TestBroker, which: Simulated, name: &str, processed: bool) {
    broker.simulator(which).fault(&Fault::Drop { processed }, 1);
    let lost = broker.refresh(name).await;
    assert_eq!(lost.status, StatusCode::SERVICE_UNAVAILABLE, "{lost:?}");
    assert_eq!(broker.view(name).await["state"], "uncertain");
    assert_eq!(broker.token(name).await.status, StatusCode::OK, "the old token lives");
}

#[apply(on_both_engines!)]
async fn a_grace_lets_the_answer_be_asked_for_again(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    lose(&broker, Simulated::Divar, "divar-shop", true).await;
    broker.advance(Duration::from_secs(3)).await;
    assert_eq!(broker.refresh_due().await, 1);
    let view = broker.view("divar-shop").await;
    assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)));
    assert_eq!(broker.presented(Simulated::Divar, Kind::Refresh), (2, 2));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_token_that_works_once_is_lost_and_said_to_be(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in [Simulated::Amocrm, Simulated::Kommo, Simulated::Avito, Simulated::Admitad] {
        let name = format!("{which}-shop");
        broker.connect(&name, which).await;
        lose(&broker, which, &name, true).await;
        broker.advance(Duration::from_secs(3)).await;
        assert_eq!(broker.refresh_due().await, 1, "{which}");
        let view = broker.view(&name).await;
        assert_eq!(view["state"], "needs_consent", "{which}: {view}");
        assert_eq!(view["reason"], "lost_in_rotation", "{which}");
        // What lives is served to its end; the original presentation and one repetition were made,
        // and none follows, not even after a restart.
        assert_eq!(broker.token(&name).await.status, StatusCode::OK, "{which}");
        assert_eq!(broker.presented(which, Kind::Refresh), (2, 2), "{which}");
    }
    let mut broker = broker;
    broker.restart(|_| {}).await;
    broker.advance(Duration::from_hours(24)).await;
    assert_eq!(broker.refresh_due().await, 0);
    let ended = broker.token("amocrm-shop").await;
    assert_eq!(
        (ended.status, &ended.json()["code"]),
        (StatusCode::CONFLICT, &json!("consent_required"))
    );
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (2, 2));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_answer_that_never_left_costs_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        broker.connect(&name, which).await;
        lose(&broker, which, &name, false).await;
        broker.advance(Duration::from_secs(3)).await;
        assert_eq!(broker.refresh_due().await, 1, "{which}");
        let view = broker.view(&name).await;
        assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)), "{which}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn client_credentials_ask_anew(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in [Simulated::Admitad, Simulated::Avito] {
        let name = format!("{which}-own");
        broker.create(&name, which.as_str()).await;
        lose(&broker, which, &name, true).await;
        broker.advance(Duration::from_secs(3)).await;
        assert_eq!(broker.refresh_due().await, 1, "{which}");
        let view = broker.view(&name).await;
        assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)), "{which}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_attempt_that_died_is_taken_over_when_its_lease_ends(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let store = broker.broker().store().clone();
    let seen = store.record("amocrm-shop").await.unwrap().unwrap();
    let lease = Duration::from_mins(1);
    assert!(store.claim(&seen, "of-the-dead", None, lease).await.unwrap().held().is_some());
    broker.advance(Duration::from_secs(59)).await;
    assert_eq!(broker.refresh_due().await, 0);
    broker.advance(Duration::from_secs(2)).await;
    assert_eq!(broker.refresh_due().await, 1);
    let view = broker.view("amocrm-shop").await;
    assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)));
    broker.stop().await;
}
