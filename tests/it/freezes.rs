//! Freezes: what an operator stops serving, where, and for how long.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Kind, Simulated};

use crate::support::{
    api::Answer,
    broker::{Replica, TestBroker},
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
    wait,
};

async fn freeze(broker: &TestBroker, kind: &str, name: &str) -> Answer {
    let body = json!({ "kind": kind, "name": name, "reason": "a leaked key" });
    broker.operator(Method::POST, "/v1/freezes", Some(body)).await
}

async fn unfreeze(broker: &TestBroker, kind: &str, name: &str) -> Answer {
    broker.operator(Method::DELETE, &format!("/v1/freezes/{kind}/{name}"), None).await
}

/// Status and code of the three ways to a token, for the service `reader`.
async fn three_ways(broker: &TestBroker, connection: &str) -> [(StatusCode, Value); 3] {
    let token = broker.token(connection).await;
    let path = format!("/v1/connections/{connection}/token/rejected");
    let body = json!({ "fingerprint": "0000000000000000" });
    let rejected = broker.ask(&broker.service_key, Method::POST, &path, Some(body)).await;
    let form = [("grant_type", "client_credentials"), ("scope", connection)];
    let oauth = broker
        .http
        .post(format!("{}/oauth2/token", broker.internal_url))
        .basic_auth("reader", Some(&broker.service_key))
        .form(&form)
        .send()
        .await
        .unwrap();
    let status = oauth.status();
    let oauth: Value = oauth.json().await.unwrap();
    [
        (token.status, token.json()["code"].clone()),
        (rejected.status, rejected.json()["code"].clone()),
        (status, oauth["error"].clone()),
    ]
}

async fn is_served(broker: &TestBroker, connection: &str) -> bool {
    let ways = three_ways(broker, connection).await;
    if ways.iter().all(|(status, _)| *status == StatusCode::OK) {
        return true;
    }
    let frozen = |code: &str| (StatusCode::FORBIDDEN, json!(code));
    assert_eq!(ways, [frozen("frozen"), frozen("frozen"), frozen("access_denied")]);
    false
}

#[apply(on_both_engines!)]
async fn what_is_frozen_is_not_served_until_it_is_unfrozen(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    broker.create("admitad-own", "admitad").await;
    for (kind, name) in [
        ("provider", "avito"),
        ("client", "avito"),
        ("connection", "avito-own"),
        ("service", "reader"),
    ] {
        assert!(is_served(&broker, "avito-own").await, "before {kind}");
        let made = freeze(&broker, kind, name).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
        assert_eq!(
            (&made.json()["by"], &made.json()["reason"]),
            (&json!("tester"), &json!("a leaked key"))
        );
        assert!(!is_served(&broker, "avito-own").await, "a live token, under {kind}");
        let told = broker.token("avito-own").await.text;
        assert!(told.contains(kind) && !told.contains("leaked"), "{told}");
        assert_eq!(is_served(&broker, "admitad-own").await, kind != "service");
        let view = broker.view("avito-own").await;
        assert_eq!(
            (&view["frozen"], &view["state"]),
            (&json!(kind != "service"), &json!("active"))
        );
        let health = broker.ask("", Method::GET, "/health", None).await;
        assert_eq!(
            (&health.json()["freezes"], &health.json()["status"]),
            (&json!(1), &json!("degraded"))
        );
        assert!(
            !health.text.contains("leaked") && !health.text.contains("avito-own"),
            "{health:?}"
        );

        // Once more changes nothing: who was first, and why, stays on record.
        let body = json!({ "kind": kind, "name": name, "reason": "another reason" });
        let again = broker.operator(Method::POST, "/v1/freezes", Some(body)).await;
        assert_eq!((again.status, again.json()), (StatusCode::OK, made.json()));
        let listed = broker.operator(Method::GET, "/v1/freezes", None).await.json();
        assert_eq!(listed, json!({ "freezes": [made.json()] }));
        let ended = unfreeze(&broker, kind, name).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT, "{ended:?}");
        assert_eq!(unfreeze(&broker, kind, name).await.status, StatusCode::NOT_FOUND);
    }
    assert!(is_served(&broker, "avito-own").await);
    let health = broker.health().await;
    assert_eq!((&health["freezes"], &health["status"]), (&json!(0), &json!("ok")));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_frozen_connection_is_refreshed_all_the_same(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    freeze(&broker, "provider", "amocrm").await;
    broker.advance(Duration::from_hours(24)).await;
    // Who may not have the token does not start its refresh either.
    assert!(!is_served(&broker, "amocrm-shop").await);
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (0, 0));
    assert_eq!(broker.refresh_due().await, 1);
    assert!(!is_served(&broker, "amocrm-shop").await);
    unfreeze(&broker, "provider", "amocrm").await;
    assert_eq!(broker.token("amocrm-shop").await.json()["generation"], 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_is_not_yours_looks_like_not_there_when_frozen(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let other = broker.service("other", json!(["divar-*"]), json!(["token"])).await;
    let ask = async |name: &str| {
        let path = format!("/v1/connections/{name}/token");
        let answer = broker.ask(&other, Method::GET, &path, None).await;
        (answer.status, answer.text.replace(name, "NAME"))
    };
    let not_there = ask("avito-two").await;
    assert_eq!(not_there.0, StatusCode::NOT_FOUND);
    for (kind, name) in [("connection", "avito-own"), ("provider", "avito"), ("service", "other")] {
        freeze(&broker, kind, name).await;
        assert_eq!(ask("avito-own").await, not_there, "under {kind}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_client_that_is_not_yours_looks_like_not_there_when_frozen(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.link("shop-old", "amocrm", json!({})).await;
    broker.restrict_client("amocrm", "crm-*").await;
    let shop = broker.service("shop", json!(["shop-*"]), json!(["consent"])).await;
    let ask = async |name: &str, client: &str| {
        let body = json!({ "connection": name, "client": client });
        let answer = broker.ask(&shop, Method::POST, "/v1/consent-links", Some(body)).await;
        (answer.status, answer.text.replace(client, "CLIENT"))
    };
    let not_there = ask("shop-new", "nowhere").await;
    assert_eq!(not_there.0, StatusCode::NOT_FOUND);
    for (kind, name) in [("client", "amocrm"), ("provider", "amocrm")] {
        freeze(&broker, kind, name).await;
        for connection in ["shop-new", "shop-old"] {
            assert_eq!(ask(connection, "amocrm").await, not_there, "{connection} under {kind}");
        }
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn freezes_are_for_operators_and_for_what_exists(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for (method, path) in [
        (Method::GET, "/v1/freezes"),
        (Method::POST, "/v1/freezes"),
        (Method::DELETE, "/v1/freezes/client/avito"),
    ] {
        let answer = broker.ask(&broker.service_key, method.clone(), path, None).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}");
        let answer = broker.ask("", method, path, None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for kind in ["provider", "client", "service", "connection"] {
        let answer = freeze(&broker, kind, "nowhere").await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (StatusCode::NOT_FOUND, &json!("not_found"))
        );
        assert_eq!(unfreeze(&broker, kind, "nowhere").await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(unfreeze(&broker, "tenant", "nowhere").await.status, StatusCode::NOT_FOUND);
    for body in [
        json!({ "kind": "tenant", "name": "avito", "reason": "x" }),
        json!({ "kind": "client", "name": "A B", "reason": "x" }),
        json!({ "kind": "client", "name": "avito", "reason": " " }),
        json!({ "kind": "client", "name": "avito", "reason": "x\ny" }),
        json!({ "kind": "client", "name": "avito", "reason": "x".repeat(501) }),
        json!({ "kind": "client", "name": "avito" }),
    ] {
        let answer = broker.operator(Method::POST, "/v1/freezes", Some(body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    }
    let listed = broker.operator(Method::GET, "/v1/freezes", None).await.json();
    assert_eq!(listed, json!({ "freezes": [] }));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn nobody_consents_by_a_link_of_what_is_frozen(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let asker = broker.service("asker", json!(["*"]), json!(["consent"])).await;
    let ask = async |body: Value| {
        let answer = broker.ask(&asker, Method::POST, "/v1/consent-links", Some(body)).await;
        (answer.status, answer.json())
    };
    let shop = json!({ "connection": "amocrm-shop", "client": "amocrm" });
    let (status, link) = ask(shop.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{link}");
    let link = link["url"].as_str().unwrap().to_owned();
    for (kind, name) in [
        ("connection", "amocrm-shop"),
        ("client", "amocrm"),
        ("provider", "amocrm"),
        ("service", "asker"),
    ] {
        freeze(&broker, kind, name).await;
        for body in [shop.clone(), json!({ "connection": "amocrm-new", "client": "amocrm" })] {
            let (status, answer) = ask(body).await;
            if kind == "connection" && status == StatusCode::CREATED {
                assert_eq!(answer["connection"], "amocrm-new", "another connection");
            } else {
                assert_eq!((status, &answer["code"]), (StatusCode::FORBIDDEN, &json!("frozen")));
            }
        }
        let mut person = Person::new(&broker);
        for page in [person.get(&link).await, person.press(&link).await] {
            assert_eq!(page.status, StatusCode::CONFLICT, "{page:?}");
            assert!(page.text.contains("on hold") && !page.text.contains("leaked"), "{page:?}");
        }
        unfreeze(&broker, kind, name).await;
    }
    // The freeze comes while the person is at the provider: the code is not exchanged.
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    freeze(&broker, "client", "amocrm").await;
    let back = person.get(&callback).await;
    let page = person.get(back.header("location")).await;
    assert!(page.text.contains("on hold"), "{page:?}");
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Code), (0, 0));
    assert_eq!(broker.view("amocrm-shop").await["state"], "pending_consent");
    // Nothing is lost: the link works when the freeze is over.
    unfreeze(&broker, "client", "amocrm").await;
    let page = person.consent(&link, "allow").await;
    assert!(page.text.contains("confirm"), "{page:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_freeze_outlives_a_restart_and_a_deletion(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    freeze(&broker, "connection", "avito-own").await;
    broker.restart(|_| {}).await;
    assert!(!is_served(&broker, "avito-own").await);
    broker.delete("avito-own").await;
    assert_eq!(broker.token("avito-own").await.status, StatusCode::GONE);
    assert_eq!(broker.create("avito-own", "avito").await["frozen"], true);
    assert!(!is_served(&broker, "avito-own").await);
    unfreeze(&broker, "connection", "avito-own").await;
    assert!(is_served(&broker, "avito-own").await);
    broker.stop().await;
}

/// Two brokers on one PostgreSQL that gives no hints; a connection that both serve.
async fn two_without_hints() -> (TestBroker, Replica) {
    let database = TestDatabase::postgres().await;
    database.execute("ALTER TABLE freezes DISABLE TRIGGER ALL").await;
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let replica = broker.replica().await;
    assert_eq!(replica.token("avito-own").await.status, StatusCode::OK);
    (broker, replica)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_knows_a_freeze_at_its_next_look() {
    let (broker, replica) = two_without_hints().await;
    for (kind, name) in [("provider", "avito"), ("service", "reader"), ("connection", "avito-own")]
    {
        freeze(&broker, kind, name).await;
        replica.broker().sync().await.unwrap();
        let refused = replica.token("avito-own").await;
        assert_eq!(refused.json()["code"], "frozen", "{refused:?}");
        unfreeze(&broker, kind, name).await;
        replica.broker().sync().await.unwrap();
        assert_eq!(replica.token("avito-own").await.status, StatusCode::OK);
    }
    replica.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_learns_of_freezes_whatever_else_it_cannot_read() {
    let (broker, replica) = two_without_hints().await;
    freeze(&broker, "client", "avito").await;
    for table in [
        "ALTER TABLE identity RENAME TO broken_1",
        "ALTER TABLE deleted_connections RENAME TO broken_2",
        "ALTER TABLE keys RENAME TO broken_3",
    ] {
        broker.execute(table).await;
        assert!(replica.broker().sync().await.is_err());
        assert_eq!(replica.token("avito-own").await.json()["code"], "frozen");
    }
    // And keeps what it knows when it cannot read them either.
    broker.execute("ALTER TABLE freezes RENAME TO broken_4").await;
    assert!(replica.broker().sync().await.is_err());
    assert_eq!(replica.token("avito-own").await.json()["code"], "frozen");
    replica.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_is_hinted_to_other_replicas() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    broker.create("avito-own", "avito").await;
    let replica = broker.replica().await;
    let story = async {
        // The look at the start may know of the first; of the others it cannot.
        for _ in 0..3 {
            freeze(&broker, "client", "avito").await;
            until(&replica, StatusCode::FORBIDDEN).await;
            unfreeze(&broker, "client", "avito").await;
            until(&replica, StatusCode::OK).await;
        }
    };
    tokio::select! {
        () = token_broker::app::background::sync_cache(replica.broker(), Duration::from_hours(1)) => {}
        () = story => {}
    }
    replica.stop().await;
    broker.stop().await;
}

async fn until(replica: &Replica, status: StatusCode) {
    let what = format!("{status} is answered");
    wait::until(&what, async || replica.token("avito-own").await.status == status).await;
}
