//! Isolation: a connection that fails does not disturb the others.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use token_broker::{
    domain::consent::{KEY_EXCHANGE_LIFE, KeyExchange},
    simulator::{Endpoint, Fault, Kind, Simulated},
};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

#[apply(on_both_engines!)]
async fn connections_that_cannot_be_refreshed_do_not_stand_in_the_way(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    for number in 0..10 {
        broker.create(&format!("avito-{number}"), "avito").await;
    }
    broker.create("admitad-own", "admitad").await;
    broker
        .restart(|settings| {
            settings["clients"].as_table_mut().unwrap().remove("avito");
        })
        .await;
    // The tokens of the ten end first, so they are the most urgent.
    broker.advance(Duration::from_hours(24 * 8)).await;
    broker.broker().refresh_due(10).await.unwrap();
    broker.broker().refresh_due(10).await.unwrap();
    assert_eq!(broker.view("admitad-own").await["generation"], 2);
    // They are looked at again later, in case the client has come back.
    broker
        .restart(|settings| {
            settings["clients"].as_table_mut().unwrap().insert(
                "avito".to_owned(),
                toml::toml! {
                    provider = "avito"
                    client_id = "simulated-avito-client"
                    client_secret = "simulated-avito-secret"
                }
                .into(),
            );
        })
        .await;
    broker.advance(Duration::from_secs(61)).await;
    broker.refresh_due().await;
    assert_eq!(broker.token("avito-3").await.json()["generation"], 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_slow_provider_holds_up_nobody_else(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("admitad-own", "admitad").await;
    broker.create("avito-own", "avito").await;
    broker.advance(Duration::from_hours(24 * 8)).await;
    broker.simulator(Simulated::Admitad).fault(&Fault::Late, 1);
    assert_eq!(broker.broker().start_due(10).await.unwrap(), 2);
    let fresh = broker.token("avito-own").await;
    assert_eq!(fresh.json()["generation"], 2, "{fresh:?}");
    broker.broker().sync().await.unwrap();
    assert_eq!(broker.view("admitad-own").await["generation"], 1, "it is still under way");
    broker.simulator(Simulated::Admitad).clear_faults();
    assert_eq!(broker.token("admitad-own").await.json()["generation"], 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_stored_token_that_does_not_open_is_not_served(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    // Somebody who can write the database puts one connection's token in another's place.
    broker
        .execute(
            "UPDATE grants SET access = (SELECT access FROM grants WHERE connection_id =
                (SELECT id FROM connections WHERE name = 'divar-shop'))
             WHERE connection_id = (SELECT id FROM connections WHERE name = 'avito-shop');
             UPDATE connections SET changed_at = changed_at + 1",
        )
        .await;
    broker.broker().sync().await.unwrap();
    let refused = broker.token("avito-shop").await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR, "{refused:?}");
    assert_eq!(refused.json()["code"], "integrity_error");
    assert_eq!(broker.token("divar-shop").await.status, StatusCode::OK);
    assert_eq!(broker.view("avito-shop").await["state"], "integrity_error");
    let health = broker.health().await;
    assert_eq!(health["status"], "degraded", "{health}");
    // It is marked once, not at every look.
    let store = broker.broker().store().clone();
    let marked = store.record("avito-shop").await.unwrap().unwrap().changed_at;
    broker.broker().sync().await.unwrap();
    assert_eq!(store.record("avito-shop").await.unwrap().unwrap().changed_at, marked);
    // A new consent heals it.
    let page = broker.consent("avito-shop", "avito", json!({})).await;
    assert!(page.text.contains("Connected"), "{}", page.text);
    assert_eq!(broker.token("avito-shop").await.status, StatusCode::OK);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_consent_during_a_refresh_wins(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    broker.simulator(Simulated::Avito).fault(&Fault::Late, 1);
    let consent = async {
        broker.until_presented(Simulated::Avito).await;
        let page = Person::new(&broker).consent(&link, "allow").await;
        broker.simulator(Simulated::Avito).clear_faults();
        page
    };
    let (refreshed, page) = tokio::join!(broker.refresh("avito-shop"), consent);
    assert!(page.text.contains("Connected"), "{}", page.text);
    assert_eq!(refreshed.status, StatusCode::OK, "{refreshed:?}");
    // The grant of the consent stands; the other one is kept aside, not thrown away.
    let token = broker.token("avito-shop").await.json();
    assert_eq!(token["generation"], 2);
    assert!(broker.has_fallback("avito-shop").await);
    let mended = broker.refresh("avito-shop").await;
    assert_eq!(mended.status, StatusCode::OK, "{mended:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_late_grant_of_nobody_knows_whom_is_dropped(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let avito = broker.simulator(Simulated::Avito);
    // Nobody can ask whose these tokens are: they are none of the provider's.
    let consent = async |access: &str| {
        let text = format!(r#"{{"access_token":"{access}","refresh_token":"{{refresh_token}}"}}"#);
        avito.fault(&Fault::Body { text }, 1);
        broker.connect_any("avito-shop", "avito").await;
    };
    consent("at-1").await;
    assert!(broker.view("avito-shop").await["account"].is_null());
    avito.fault(&Fault::Late, 1);
    let meanwhile = async {
        broker.until_presented(Simulated::Avito).await;
        consent("at-2").await;
        avito.clear_faults();
    };
    let (refreshed, ()) = tokio::join!(broker.refresh("avito-shop"), meanwhile);
    assert_eq!(refreshed.status, StatusCode::OK, "{refreshed:?}");
    broker.idle().await;
    let token = broker.token("avito-shop").await.json();
    assert_eq!((&token["access_token"], &token["generation"]), (&json!("at-2"), &json!(2)));
    assert!(!broker.has_fallback("avito-shop").await, "it may be another account's");
    let known = avito.oracle().known;
    let late = known.iter().filter(|known| known.kind == Kind::Refresh).nth(1).unwrap();
    assert!(broker.contents().await.contains(&late.fingerprint), "it is not buried");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refused_refresh_token_is_not_presented_again_by_a_client_that_asks_for_itself(
    database: TestDatabase,
) {
    let broker = TestBroker::start(database).await;
    broker.create("admitad-own", "admitad").await;
    let admitad = broker.simulator(Simulated::Admitad);
    // The answer to the first is lost, so the second is refused; asking anew fails as well.
    for fault in [
        Fault::Drop { processed: true },
        Fault::Slow { milliseconds: 0 },
        Fault::ServerError { processed: false },
    ] {
        admitad.fault(&fault, 1);
    }
    for _ in 0..2 {
        let failed = broker.refresh("admitad-own").await;
        assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE, "{failed:?}");
    }
    assert_eq!(broker.presented(Simulated::Admitad, Kind::Refresh), (2, 2));
    let mended = broker.refresh("admitad-own").await;
    assert_eq!(mended.status, StatusCode::OK, "{mended:?}");
    assert_eq!(broker.presented(Simulated::Admitad, Kind::Refresh), (2, 2));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_cannot_be_asked_anew_leaves_no_claim_behind(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.create("admitad-own", "admitad").await;
    // The profile asks for a value by now that the connection lacks.
    broker
        .restart(|settings| {
            let admitad = settings["providers"]["profiles"]["admitad"].as_table_mut().unwrap();
            admitad.extend(toml::toml! {
                vars = { region = { allow = ["eu"] } }
                grants = { client_credentials = { params = { region = "{region}" } } }
            });
        })
        .await;
    broker.simulator(Simulated::Admitad).fault(&Fault::Refused, 1);
    let refused = broker.refresh("admitad-own").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    let claims = "SELECT COUNT(*) FROM grants WHERE lease_until IS NOT NULL OR attempts > 0";
    assert_eq!(broker.number(claims).await, 0);
    assert_eq!(broker.view("admitad-own").await["last_error"]["code"], "invalid_grant");
    // What was refused is not presented again, and what is left cannot be asked for.
    let misconfigured = broker.refresh("admitad-own").await;
    assert_eq!(misconfigured.status, StatusCode::BAD_GATEWAY, "{misconfigured:?}");
    assert_eq!(broker.number(claims).await, 0);
    assert_eq!(broker.presented(Simulated::Admitad, Kind::Refresh), (1, 1));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_stray_code_does_not_end_a_key_exchange(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.link("amocrm-old", "amocrm", json!({})).await;
    let store = broker.broker().store().clone();
    let now = broker.clock.now();
    let host = "demo.amocrm.localhost";
    let pending = KeyExchange {
        id: uuid::Uuid::now_v7(),
        connection: store.record("amocrm-old").await.unwrap().unwrap().connection.id,
        client: "amocrm".parse().unwrap(),
        account_host: host.to_owned(),
        requested_at: now,
        expires_at: now + KEY_EXCHANGE_LIFE,
    };
    store.insert_exchange(&pending).await.unwrap();
    let url =
        format!("{}/callback/amocrm?code=stray&referer={host}&from_exchange=1", broker.public_url);
    for _ in 0..5 {
        assert_eq!(Person::alone().get(&url).await.status, StatusCode::OK);
    }
    // Enough is enough: the provider hears no more of it, whoever counts.
    broker.restart(|_| {}).await;
    assert_eq!(Person::alone().get(&url).await.status, StatusCode::BAD_REQUEST);
    broker.idle().await;
    let requests = broker.simulator(Simulated::Amocrm).oracle().requests;
    assert_eq!(requests[&Endpoint::Token], 5);
    assert_eq!(broker.number("SELECT count(*) FROM key_exchanges").await, 1);
    broker.stop().await;
}
