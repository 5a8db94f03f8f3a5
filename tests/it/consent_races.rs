//! Consents for one connection that cross each other, or its deletion.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{PgConnection, Row as _};
use token_broker::simulator::{Fault, Simulated};

use crate::{
    custom_provider,
    support::{
        api::Answer,
        broker::TestBroker,
        database::{TestDatabase, apply, on_both_engines},
        person::Person,
    },
};

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
    while broker.posts(which) == before {
        tokio::task::yield_now().await;
    }
}

async fn confirm(broker: &TestBroker, name: &str, account: &str) {
    let confirmed = broker.confirm(name, account).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{confirmed:?}");
}

#[apply(on_both_engines!)]
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
        let before = broker.posts(Simulated::Avito);
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

#[apply(on_both_engines!)]
async fn a_page_shows_no_other_persons_account(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let first = broker.account(Simulated::Avito);
    let live = broker.link("live", "avito", json!({ "self": true })).await;
    let waits = broker.link("waits", "avito", json!({})).await;
    let mut person = Person::new(&broker);
    for (link, shown) in [(&live, "Connected"), (&waits, "Waiting for confirmation")] {
        let page = consent_as(&mut person, link, &first).await;
        assert!(page.text.contains(shown) && page.text.contains(&first), "{}", page.text);
    }
    for (name, link) in [("live", &live), ("waits", &waits)] {
        let other = broker.link(name, "avito", json!({})).await;
        let mut somebody = Person::new(&broker);
        for shown in ["Waiting for confirmation", "Connected"] {
            let page = match shown {
                "Connected" => {
                    confirm(&broker, name, SECOND).await;
                    somebody.get(&other).await
                }
                _ => consent_as(&mut somebody, &other, SECOND).await,
            };
            assert!(page.text.contains(shown) && page.text.contains(SECOND), "{}", page.text);
            let page = person.get(link).await;
            assert!(!page.text.contains(SECOND), "{name}: {}", page.text);
            // Until somebody confirms the other, the live account is the first.
            let kept = (name, shown) == ("live", "Waiting for confirmation");
            assert_eq!(page.status == StatusCode::OK, kept, "{name}: {}", page.text);
            assert_eq!(page.text.contains("already used"), !kept, "{name}: {}", page.text);
        }
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_attempt_that_fails_last_says_nothing_of_a_link_that_is_spent(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let first = broker.account(Simulated::Avito);
    let link = broker.link("avito-shop", "avito", json!({ "expected_account": first })).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let wrong = allowed(&mut person, &provider, SECOND).await;
    let mut tab = person.clone();
    let provider = tab.start(&link).await;
    let right = allowed(&mut tab, &provider, &first).await;
    broker.simulator(Simulated::Avito).fault(&Fault::Late, 1);
    let meanwhile = async {
        asked(&broker, Simulated::Avito, 0).await;
        let page = back(&mut tab, &right).await;
        broker.simulator(Simulated::Avito).clear_faults();
        page
    };
    let (late, page) = tokio::join!(back(&mut person, &wrong), meanwhile);
    for page in [page, late, person.get(&link).await] {
        assert!(page.text.contains("Connected") && page.text.contains(&first), "{}", page.text);
    }
    assert_eq!(broker.view("avito-shop").await["generation"], 1);
    broker.stop().await;
}

async fn delete(broker: &TestBroker, name: &str) -> String {
    broker.delete(name).await.json()["revocation"].as_str().unwrap_or_default().to_owned()
}

#[apply(on_both_engines!)]
async fn what_a_consent_under_way_brings_to_a_deleted_connection_is_revoked(
    database: TestDatabase,
) {
    let (broker, _folder) = custom_provider::start(database).await;
    let divar = broker.simulator(Simulated::Divar);
    let living = || divar.oracle().known.iter().filter(|known| known.alive).count();
    // What comes would go live, would wait, or meets a grant that is to be revoked as well.
    for (own_browser, held) in [(true, false), (false, false), (true, true)] {
        if held {
            broker.connect_any("acme-one", "divar").await;
        }
        let link = broker.link("acme-one", "divar", json!({ "self": own_browser })).await;
        let mut person = Person::new(&broker);
        let provider = person.start(&link).await;
        let callback = person.decide(&provider, "allow").await;
        divar.fault(&Fault::Late, 1);
        let before = broker.posts(Simulated::Divar);
        let meanwhile = async {
            asked(&broker, Simulated::Divar, before).await;
            assert_eq!(delete(&broker, "acme-one").await, "revoking");
            assert_eq!(broker.broker().revoke_due(100).await.unwrap(), 0, "not before it ends");
            divar.clear_faults();
        };
        let (page, ()) = tokio::join!(back(&mut person, &callback), meanwhile);
        assert_eq!(page.status, StatusCode::GONE, "{page:?}");
        assert_eq!(broker.view("acme-one").await["state"], "revoking");
        assert!(living() > 0, "a grant was born");
        for _ in 0..=usize::from(held) {
            broker.broker().revoke_due(100).await.unwrap();
        }
        assert_eq!(living(), 0);
        let gone = broker.operator(Method::GET, "/v1/connections/acme-one", None).await;
        assert_eq!(gone.status, StatusCode::NOT_FOUND, "{gone:?}");
    }
    // What ended without a grant is no reason to wait.
    let link = broker.link("acme-one", "divar", json!({})).await;
    Person::new(&broker).consent(&link, "deny").await;
    assert_eq!(delete(&broker, "acme-one").await, "none");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn where_nothing_can_be_revoked_a_consent_under_way_is_a_persons_task(
    database: TestDatabase,
) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({ "self": true })).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    broker.simulator(Simulated::Avito).fault(&Fault::Late, 1);
    let meanwhile = async {
        asked(&broker, Simulated::Avito, 0).await;
        assert_eq!(delete(&broker, "avito-shop").await, "manual");
        broker.simulator(Simulated::Avito).clear_faults();
    };
    tokio::join!(back(&mut person, &callback), meanwhile);
    let view = broker.view("avito-shop").await;
    assert_eq!(
        (&view["state"], &view["reason"], &view["generation"]),
        (&json!("revoked"), &json!("remove_at_provider"), &json!(0))
    );
    assert_eq!(broker.token("avito-shop").await.json()["code"], "revoked");
    assert_eq!(delete(&broker, "avito-shop").await, "acknowledged");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_api_key_exchange_under_way_is_a_persons_task(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.simulator(Simulated::Amocrm).fault(&Fault::Late, 1);
    let exchange = json!({
        "account_host": "demo.amocrm.localhost", "login": "demo@example.com",
        "api_key": "simulated-api-key",
    });
    let body = json!({ "name": "amocrm-shop", "client": "amocrm", "api_key_exchange": exchange });
    let begun = broker.operator(Method::POST, "/v1/connections", Some(body)).await;
    assert_eq!(begun.status, StatusCode::CREATED, "{begun:?}");
    asked(&broker, Simulated::Amocrm, 0).await;
    assert_eq!(delete(&broker, "amocrm-shop").await, "manual");
    broker.simulator(Simulated::Amocrm).clear_faults();
    broker.idle().await;
    assert_eq!(broker.view("amocrm-shop").await["state"], "revoked");
    assert_eq!(delete(&broker, "amocrm-shop").await, "acknowledged");
    broker.stop().await;
}

/// Waits until a session waits for what this one holds.
async fn waited_for(held: &mut PgConnection) {
    let sql = "SELECT count(*) FROM pg_stat_activity
        WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))";
    while sqlx::raw_sql(sql).fetch_one(&mut *held).await.unwrap().get::<i64, _>(0) == 0 {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_looked_at_is_discarded_on_postgres() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    broker.consent("avito-shop", "avito", json!({})).await;
    let mut held = broker.hold("SELECT 1 FROM connections FOR UPDATE").await;
    let body = Some(json!({ "account": SECOND }));
    let path = "/v1/connections/avito-shop/confirm";
    let another_consent = async {
        waited_for(&mut held).await;
        let sql =
            "UPDATE pending_grants SET account_id = '10000002', received_at = received_at + 1;
            COMMIT";
        sqlx::raw_sql(sql).execute(&mut held).await.unwrap();
    };
    let (refused, ()) =
        tokio::join!(broker.operator(Method::POST, path, body.clone()), another_consent);
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    broker.broker().sync().await.unwrap();
    assert_eq!(broker.view("avito-shop").await["pending_account"]["id"], SECOND);
    broker.stop().await;
}
