//! Limits of callers, requests that are refused before they do harm, and their trace in `/health`.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Fault, Simulated};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

#[apply(on_both_engines!)]
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

async fn health(broker: &TestBroker) -> Value {
    let answer = broker.ask("", Method::GET, "/health", None).await;
    assert!(!answer.text.contains("-shop"), "no names: {answer:?}");
    answer.json()
}

#[apply(on_both_engines!)]
async fn a_service_uses_only_the_clients_and_scopes_that_are_open_to_it(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.link("shop-old", "amocrm", json!({})).await;
    broker.restrict_client("amocrm", "crm-*").await;
    let verbs = json!(["consent", "confirm"]);
    let crm = broker.service("crm-web", json!(["*"]), verbs.clone()).await;
    let shop = broker.service("shop", json!(["shop-*"]), verbs).await;
    let ask = async |key: &str, name: &str, client: &str, scopes: Value| {
        let body = json!({ "connection": name, "client": client, "scopes": scopes });
        broker.ask(key, Method::POST, "/v1/consent-links", Some(body)).await
    };
    assert_eq!(ask(&crm, "crm-new", "amocrm", json!(null)).await.status, StatusCode::CREATED);
    // What is not open to it looks like what is not there.
    for (name, client) in [("shop-new", "amocrm"), ("shop-old", "amocrm"), ("shop-new", "none")] {
        let refused = ask(&shop, name, client, json!(null)).await;
        assert_eq!(refused.status, StatusCode::NOT_FOUND, "{refused:?}");
        let detail = refused.json()["detail"].clone();
        assert_eq!(detail, format!("there is no client `{client}`"), "{name}");
    }
    assert_eq!(broker.operator(Method::GET, "/v1/connections/shop-new", None).await.status, 404);
    for (scopes, status) in [
        (json!(["user:read"]), StatusCode::CREATED),
        (json!(["ratings:read"]), StatusCode::FORBIDDEN),
        (json!(["user:read", "ratings:read"]), StatusCode::FORBIDDEN),
    ] {
        let answer = ask(&shop, "shop-avito", "avito", scopes).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    // An operator may ask for anything.
    broker.link("shop-avito", "avito", json!({ "scopes": ["ratings:read"] })).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn health_is_not_ok_while_nothing_can_be_served(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    broker.simulator(Simulated::Divar).fault(&Fault::Contended, 2);
    let end: jiff::Timestamp =
        broker.view("divar-shop").await["expires_at"].as_str().unwrap().parse().unwrap();
    let to_end = Duration::try_from(end.duration_since(broker.clock.now())).unwrap();
    broker.advance(to_end.saturating_sub(Duration::from_mins(2))).await;
    broker.refresh_due().await;
    let failing = health(&broker).await;
    assert_eq!(failing["refresher"]["lag_seconds"], 0, "its token lives: {failing}");

    broker.advance(Duration::from_mins(32)).await;
    broker.refresh_due().await;
    assert_eq!(broker.view("divar-shop").await["state"], "backing_off");
    let down = health(&broker).await;
    assert_eq!(down["status"], "degraded", "{down}");
    let lag = down["refresher"]["lag_seconds"].as_u64().unwrap();
    assert!((1_800..1_830).contains(&lag), "counted from the token's end: {down}");
    assert_eq!(down["refresher"]["overdue"], 1);
    let notes = down["notes"].to_string();
    assert!(notes.contains("1 connections should serve and hold no live token"), "{notes}");
    assert!(notes.contains("1 refreshes are overdue"), "{notes}");

    broker.advance(Duration::from_mins(6)).await;
    broker.refresh_due().await;
    let up = health(&broker).await;
    assert_eq!((&up["status"], &up["refresher"]["lag_seconds"]), (&json!("ok"), &json!(0)), "{up}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn health_tells_of_our_own_misconfiguration(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let key = "client_secret";
    let mut right = None;
    let wrong = |settings: &mut toml::Table| {
        right =
            settings["clients"]["avito"].as_table_mut().unwrap().insert(key.into(), "wrong".into());
    };
    broker.restart(wrong).await;
    broker.refresh("avito-shop").await;
    let refused = health(&broker).await;
    assert_eq!(refused["status"], "degraded", "{refused}");
    let notes = refused["notes"].to_string();
    assert!(notes.contains("1 connections fail because the provider refuses our"), "{notes}");
    assert!(!notes.contains("no live token"), "{notes}");
    broker.restart(|settings| settings["clients"]["avito"][key] = right.unwrap()).await;
    let refreshed = broker.refresh("avito-shop").await;
    assert_eq!(refreshed.status, StatusCode::OK, "{refreshed:?}");
    assert_eq!(health(&broker).await["status"], "ok");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_token_that_is_fetched_on_demand_may_have_ended(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.simulator(Simulated::Avito).fault(&Fault::ExpiresIn { value: json!(60) }, 1);
    broker.create("avito-shop", "avito").await;
    broker.advance(Duration::from_hours(1)).await;
    assert_eq!(broker.refresh_due().await, 0);
    let ok = health(&broker).await;
    assert_eq!(ok["status"], "ok", "{ok}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn keys_made_at_the_same_time_are_counted_one_by_one(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.service("billing", json!(["*"]), json!(["token"])).await;
    let path = "/v1/services/billing/keys";
    let adds = (0..12).map(|_| broker.operator(Method::POST, path, None));
    let made = futures_util::future::join_all(adds).await;
    let made = made.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    assert_eq!(made, 1);
    let view = broker.operator(Method::GET, "/v1/services/billing", None).await.json();
    assert_eq!(view["keys"].as_array().unwrap().len(), 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_connection_has_few_open_links(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for _ in 0..20 {
        broker.link("avito-shop", "avito", json!({})).await;
    }
    let body = json!({ "connection": "avito-shop" });
    let refused = broker.operator(Method::POST, "/v1/consent-links", Some(body.clone())).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
    assert_eq!(refused.json()["code"], "too_many_requests");
    // Others are not concerned, and time helps.
    broker.link("avito-other", "avito", json!({})).await;
    broker.advance(Duration::from_secs(24 * 3_600 + 1)).await;
    let made = broker.operator(Method::POST, "/v1/consent-links", Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_scope_is_one_scope(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for bad in ["", "a b", "a,b", "a\r\nb", "a\u{0}"] {
        for (path, body) in [
            ("/v1/connections", json!({ "name": "x", "client": "avito", "scopes": ["ok", bad] })),
            ("/v1/consent-links", json!({ "connection": "y", "client": "avito", "scopes": [bad] })),
        ] {
            let refused = broker.operator(Method::POST, path, Some(body)).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{path} {bad:?}: {refused:?}");
            assert!(refused.json()["detail"].as_str().unwrap().contains("`scopes`"), "{bad:?}");
        }
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_row_that_makes_no_sense_is_left_out(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    broker.create("admitad-own", "admitad").await;
    broker.execute("UPDATE connections SET vars = '{' WHERE name = 'avito-own'").await;
    broker.broker().sync().await.unwrap();
    assert_eq!(broker.token("admitad-own").await.status, StatusCode::OK);
    broker.restart(|_| {}).await;
    assert_eq!(broker.token("admitad-own").await.status, StatusCode::OK);
    let refused = broker.token("avito-own").await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR, "{refused:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_caller_that_makes_no_sense_has_no_access_and_stops_nobody(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let newer = broker.service("newer", json!(["*"]), json!(["token"])).await;
    let odd = broker.service("odd", json!(["*"]), json!(["token"])).await;
    // What a newer replica may store.
    broker.execute("UPDATE services SET verbs = '[\"token\",\"rule\"]' WHERE name = 'newer'").await;
    broker.execute("UPDATE keys SET holder = 'team' WHERE owner = 'odd'").await;
    broker.broker().sync().await.unwrap();
    for _ in 0..2 {
        assert_eq!(broker.token("avito-own").await.status, StatusCode::OK);
        for key in [&newer, &odd] {
            let refused = broker.ask(key, Method::GET, "/v1/connections", None).await;
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");
        }
        let services = broker.operator(Method::GET, "/v1/services", None).await.json();
        let names = services["services"].as_array().unwrap().iter().map(|service| &service["name"]);
        assert_eq!(names.collect::<Vec<_>>(), ["odd", "reader"]);
        broker.restart(|_| {}).await;
    }
    // Its name is not free for another, and an operator can end it.
    let body = json!({ "name": "newer", "connections": ["*"], "verbs": ["token"] });
    let taken = broker.operator(Method::POST, "/v1/services", Some(body)).await;
    assert_eq!(taken.status, StatusCode::CONFLICT, "{taken:?}");
    let ended = broker.operator(Method::DELETE, "/v1/services/newer", None).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT, "{ended:?}");
    broker.stop().await;
}
