//! From nothing to a fresh token, for every provider and grant, on both engines.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Kind, Simulated, SimulatorSettings};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

/// The provider's own account call: who takes the token, and under which member the id stands.
fn account_call(which: Simulated) -> (&'static str, &'static str) {
    match which {
        Simulated::Admitad => ("/me/", "/id"),
        Simulated::Amocrm | Simulated::Kommo => ("/api/v4/account", "/id"),
        Simulated::Avito => ("/core/v1/accounts/self", "/id"),
        Simulated::Divar => ("/v1/open-platform/users", "/user_id"),
    }
}

/// Fetches the connection's token, uses it at the provider, and returns the broker's answer.
async fn works(broker: &TestBroker, connection: &str, which: Simulated) -> Value {
    let answer = broker.token(connection).await;
    assert_eq!(answer.status, StatusCode::OK, "{connection}: {answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    let token = answer.json();
    let (path, id) = account_call(which);
    let used = broker.use_token(&token, path).await;
    assert_eq!(used.status, StatusCode::OK, "{connection}: {used:?}");
    let said = used.json();
    let said = said.pointer(id).unwrap();
    let said = said.as_str().map_or_else(|| said.to_string(), str::to_owned);
    assert_eq!(token["account"], said, "{connection}");
    assert_eq!(token["provider"], which.as_str());
    token
}

#[apply(on_both_engines!)]
async fn client_credentials_are_live_at_once(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in [Simulated::Avito, Simulated::Admitad] {
        let name = format!("{which}-own");
        let made = broker.create(&name, which.as_str()).await;
        assert_eq!(made["state"], "active", "{made}");
        let token = works(&broker, &name, which).await;
        assert_eq!((&token["generation"], &token["stale"]), (&json!(1), &json!(false)));
        assert!(token["expires_in"].as_u64().unwrap() > 86_000, "{token}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_consent_makes_every_provider_live(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        let link = broker
            .link(&name, which.as_str(), json!({ "expected_account": broker.account(which) }))
            .await;
        let before = broker.token(&name).await;
        assert_eq!(before.status, StatusCode::CONFLICT, "{before:?}");
        assert_eq!(before.json()["code"], "not_connected");

        let page = Person::new(&broker).consent(&link, "allow").await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.text.contains("Connected"), "{}", page.text);
        works(&broker, &name, which).await;

        assert_eq!(broker.presented(which, Kind::Code), (1, 1), "{which}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_due_token_is_refreshed_for_every_provider(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let mut connections = vec![
        ("avito-own".to_owned(), Simulated::Avito),
        ("admitad-own".to_owned(), Simulated::Admitad),
    ];
    for (name, which) in &connections {
        broker.create(name, which.as_str()).await;
    }
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        broker.connect(&name, which).await;
        connections.push((name, which));
    }
    assert_eq!(broker.refresh_due().await, 0);
    for generation in 2..=4 {
        // Past every token's refresh instant, before any ends.
        broker.advance(Duration::from_secs(3_200)).await;
        assert_eq!(broker.refresh_due().await, 1, "Divar's token is due after 48 minutes");
        let token = works(&broker, "divar-shop", Simulated::Divar).await;
        assert_eq!(token["generation"], generation);
    }
    // Past the end of every token: whoever is due is refreshed before anybody reads.
    broker.advance(Duration::from_hours(24 * 8)).await;
    assert_eq!(broker.refresh_due().await, connections.len());
    for (name, which) in &connections {
        let token = works(&broker, name, *which).await;
        assert!(token["generation"].as_i64().unwrap() > 1, "{token}");
        assert_eq!(token["stale"], false, "{token}");
    }
    assert_eq!(broker.refresh_due().await, 0);
    for which in Simulated::ALL {
        let (_, most) = broker.presented(which, Kind::Refresh);
        assert_eq!(most, 1, "{which}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_short_lived_token_is_refreshed_by_its_readers(database: TestDatabase) {
    let mut simulated = SimulatorSettings::default();
    simulated.avito.access_life = 30;
    let broker = TestBroker::start_with(database, simulated, "").await;
    broker.create("avito-own", "avito").await;
    let first = works(&broker, "avito-own", Simulated::Avito).await;
    broker.advance(Duration::from_secs(5)).await;
    assert_eq!(broker.refresh_due().await, 0, "a short life is never scheduled");
    assert_eq!(works(&broker, "avito-own", Simulated::Avito).await["generation"], 1);
    // Nothing reads for a while; the next reader waits for a fresh one.
    broker.advance(Duration::from_mins(5)).await;
    let second = works(&broker, "avito-own", Simulated::Avito).await;
    assert_eq!(second["generation"], 2);
    assert_ne!(first["access_token"], second["access_token"]);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn many_readers_of_an_ended_token_share_one_refresh(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    broker.advance(Duration::from_hours(48)).await;
    let reads = (0..50).map(|_| broker.token("amocrm-shop"));
    for answer in futures_util::future::join_all(reads).await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.json()["generation"], 2);
    }
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (1, 1));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_restart_serves_what_was_stored(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    let before = broker.token("divar-shop").await.json();
    broker.restart(|_| {}).await;
    let after = broker.token("divar-shop").await.json();
    assert_eq!(before["access_token"], after["access_token"]);
    assert_eq!(before["headers"], after["headers"]);
    broker.advance(Duration::from_secs(3_200)).await;
    assert_eq!(broker.refresh_due().await, 1);
    assert_eq!(broker.token("divar-shop").await.json()["generation"], 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_api_key_becomes_a_connection(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let ask = |key: &str, host: &str| {
        json!({
            "name": "amocrm-old", "client": "amocrm",
            "api_key_exchange": {
                "account_host": host, "login": "demo@example.com", "api_key": key,
            },
        })
    };
    // A code that nobody asked for changes nothing and reaches no provider.
    let stray = format!(
        "{}/callback/amocrm?code=x&referer=demo.amocrm.localhost&from_exchange=1",
        broker.public_url
    );
    let refused = Person::new(&broker).get(&stray).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(broker.simulator(Simulated::Amocrm).oracle().requests.len(), 0);

    let foreign = ask("simulated-api-key", "demo.amocrm.localhost.evil.example");
    let refused = broker.operator(Method::POST, "/v1/connections", Some(foreign)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");

    let wrong = ask("wrong", "demo.amocrm.localhost");
    let refused = broker.operator(Method::POST, "/v1/connections", Some(wrong)).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");

    let right = ask("simulated-api-key", "demo.amocrm.localhost");
    let made = broker.operator(Method::POST, "/v1/connections", Some(right)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    // The code arrives and is exchanged after that answer.
    broker.until_active("amocrm-old").await;
    works(&broker, "amocrm-old", Simulated::Amocrm).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refused_refresh_asks_for_a_new_consent(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    // Three months without use: amoCRM has forgotten the refresh token.
    broker.advance(Duration::from_hours(24 * 100)).await;
    let refused = broker.token("amocrm-shop").await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    assert_eq!(refused.json()["code"], "consent_required");
    let view = broker.view("amocrm-shop").await;
    assert_eq!(view["state"], "needs_consent", "{view}");
    // It is never presented again.
    assert_eq!(broker.refresh_due().await, 0);
    broker.token("amocrm-shop").await;
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (1, 1));
    // Consent in place: the same account needs no confirmation.
    let page = broker.consent("amocrm-shop", "amocrm", json!({})).await;
    assert!(page.text.contains("Connected"), "{}", page.text);
    works(&broker, "amocrm-shop", Simulated::Amocrm).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_rejected_token_is_replaced_once(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let first = broker.token("avito-shop").await.json();
    let report = |fingerprint: &Value| {
        let path = "/v1/connections/avito-shop/token/rejected";
        let body = json!({ "fingerprint": fingerprint });
        broker.ask(&broker.service_key, Method::POST, path, Some(body))
    };
    let reports = (0..20).map(|_| report(&first["fingerprint"]));
    for answer in futures_util::future::join_all(reports).await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    let second = broker.token("avito-shop").await.json();
    assert_eq!(second["generation"], 2);
    // The old fingerprint again, and the new one within the same minute: nothing more.
    assert_eq!(report(&first["fingerprint"]).await.json()["generation"], 2);
    assert_eq!(report(&second["fingerprint"]).await.json()["generation"], 2);
    broker.advance(Duration::from_secs(61)).await;
    assert_eq!(report(&second["fingerprint"]).await.json()["generation"], 3);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_token_that_is_always_rejected_is_not_replaced_for_ever(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let path = "/v1/connections/amocrm-shop/token/rejected";
    let minutes = async |minutes: usize| {
        for _ in 0..minutes * 3 {
            broker.advance(Duration::from_secs(20)).await;
            let newest = broker.token("amocrm-shop").await.json();
            let body = json!({ "fingerprint": newest["fingerprint"] });
            let answer = broker.ask(&broker.service_key, Method::POST, path, Some(body)).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        }
    };
    minutes(59).await;
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (20, 1));
    let view = broker.view("amocrm-shop").await;
    assert_eq!((&view["state"], &view["reason"]), (&json!("suspect"), &json!("rejected")));
    let health = broker.health().await;
    assert_eq!(health["status"], "degraded", "{health}");
    // Its next refresh is due as ever, and ends the doubt.
    minutes(5).await;
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh).0, 20);
    broker.advance(Duration::from_hours(20)).await;
    assert_eq!(broker.refresh_due().await, 1);
    assert_eq!(broker.view("amocrm-shop").await["state"], "active");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_deleted_connection_is_forgotten(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let deleted = broker.delete("avito-own").await;
    assert_eq!(deleted.status, StatusCode::OK, "{deleted:?}");
    assert_eq!(deleted.json()["revocation"], "none");
    let gone = broker.token("avito-own").await;
    assert_eq!((gone.status, &gone.json()["code"]), (StatusCode::GONE, &json!("revoked")));
    // Whoever may not use it does not learn that it was there.
    let other = broker.service("other", json!(["divar-*"]), json!(["token"])).await;
    let path = "/v1/connections/avito-own/token";
    assert_eq!(broker.ask(&other, Method::GET, path, None).await.status, StatusCode::NOT_FOUND);
    let again = broker.delete("avito-own").await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    // The name is free again, for a connection of its own.
    let made = broker.create("avito-own", "avito").await;
    assert_eq!(made["generation"], 1);
    broker.stop().await;
}
