//! Every way into a connection, and what shuts all of them at once.

use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::{
    domain::consent::{KEY_EXCHANGE_LIFE, KeyExchange},
    simulator::{Endpoint, Kind, Simulated},
};

use crate::support::{
    api::Answer,
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

const HOST: &str = "demo.amocrm.localhost";

async fn ask_for_link(broker: &TestBroker) -> Answer {
    let body = json!({ "connection": "amocrm-shop", "client": "amocrm" });
    broker.operator(Method::POST, "/v1/consent-links", Some(body)).await
}

async fn begin_key_exchange(broker: &TestBroker) -> Answer {
    let exchange = json!({
        "account_host": HOST, "login": "demo@example.com", "api_key": "simulated-api-key",
    });
    let body = json!({ "name": "amocrm-shop", "client": "amocrm", "api_key_exchange": exchange });
    broker.operator(Method::POST, "/v1/connections", Some(body)).await
}

/// The ways into `amocrm-shop`, each at the step where it waits.
struct Ways {
    /// A link that nobody has pressed.
    link: String,
    /// A person who has agreed at the provider, and where they are sent from there.
    person: Person,
    callback: String,
    /// Where the code of an API-key exchange is sent.
    code: String,
}

impl Ways {
    async fn prepare(broker: &TestBroker) -> Self {
        let link = broker.link("amocrm-shop", "amocrm", json!({})).await;
        let mut person = Person::new(broker);
        let begun = broker.link("amocrm-shop", "amocrm", json!({})).await;
        let provider = person.start(&begun).await;
        let callback = person.decide(&provider, "allow").await;
        let store = broker.broker().store();
        let now = broker.clock.now();
        let pending = KeyExchange {
            id: uuid::Uuid::now_v7(),
            connection: store.record("amocrm-shop").await.unwrap().unwrap().connection.id,
            client: "amocrm".parse().unwrap(),
            account_host: HOST.to_owned(),
            requested_at: now,
            expires_at: now + KEY_EXCHANGE_LIFE,
        };
        store.insert_exchange(&pending).await.unwrap();
        let public = &broker.public_url;
        let code = format!("{public}/callback/amocrm?code=x&referer={HOST}&from_exchange=1");
        Self { link, person, callback, code }
    }

    /// Tries each: it is refused with this status and code, and the provider hears of none.
    async fn are_shut(mut self, broker: &TestBroker, status: StatusCode, code: &str) {
        let heard = |broker: &TestBroker| {
            let requests = broker.simulator(Simulated::Amocrm).oracle().requests;
            [Endpoint::Token, Endpoint::ExchangeApiKey].map(|at| requests.get(&at).copied())
        };
        let before = heard(broker);
        let view = broker.view("amocrm-shop").await;
        for refused in [ask_for_link(broker).await, begin_key_exchange(broker).await] {
            let said = (refused.status, refused.json()["code"].clone());
            assert_eq!(said, (status, json!(code)), "{refused:?}");
        }
        let mut other = Person::new(broker);
        for page in [other.get(&self.link).await, other.press(&self.link).await] {
            assert_eq!(page.status, StatusCode::CONFLICT, "{page:?}");
            assert!(page.text.contains("on hold"), "{page:?}");
        }
        let back = self.person.get(&self.callback).await;
        let page = self.person.get(back.header("location")).await;
        assert!(page.text.contains("on hold"), "{page:?}");
        Person::alone().get(&self.code).await;
        broker.idle().await;
        assert_eq!(heard(broker), before, "the provider has heard of it");
        let now = broker.view("amocrm-shop").await;
        assert_eq!((&now["state"], &now["generation"]), (&view["state"], &view["generation"]));
        let under_way = broker.number("SELECT count(*) FROM code_exchanges").await;
        assert_eq!(under_way, 0, "nothing comes of what was refused");
        broker.broker().ship_events().await.unwrap();
        let events = broker.operator(Method::GET, "/v1/events?limit=1000", None).await.json();
        let told = |kind: &str| {
            let events = events["events"].as_array().unwrap().iter();
            let of_kind = events.filter(|event| event["kind"] == kind);
            of_kind.filter_map(|event| event["detail"].as_str()).collect::<Vec<_>>()
        };
        let word = if code == "conflict" { "quarantined" } else { code };
        let refused = told("consent_refused").into_iter();
        let refused = refused.filter(|detail| detail.starts_with(word)).count();
        assert!(refused >= 3, "the button, the callback and the code: {events:#?}");
        assert!(told("consent_failed").is_empty(), "{events:#?}");
    }
}

#[apply(on_both_engines!)]
async fn no_way_into_what_is_frozen_is_open(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for (kind, name) in
        [("connection", "amocrm-shop"), ("client", "amocrm"), ("provider", "amocrm")]
    {
        let ways = Ways::prepare(&broker).await;
        let body = json!({ "kind": kind, "name": name, "reason": "a leaked key" });
        broker.operator(Method::POST, "/v1/freezes", Some(body)).await;
        ways.are_shut(&broker, StatusCode::FORBIDDEN, "frozen").await;
        let path = format!("/v1/freezes/{kind}/{name}");
        broker.operator(Method::DELETE, &path, None).await;
    }
    // A name that is frozen before there is such a connection.
    broker.create("amocrm-new", "avito").await;
    let body = json!({ "kind": "connection", "name": "amocrm-new", "reason": "a leaked key" });
    broker.operator(Method::POST, "/v1/freezes", Some(body)).await;
    broker.delete("amocrm-new").await;
    let exchange = json!({ "account_host": HOST, "login": "demo@example.com", "api_key": "simulated-api-key" });
    let body = json!({ "name": "amocrm-new", "client": "amocrm", "api_key_exchange": exchange });
    let refused = broker.operator(Method::POST, "/v1/connections", Some(body)).await;
    assert_eq!(refused.json()["code"], "frozen", "{refused:?}");
    // All of it was for the freeze alone.
    assert_eq!(begin_key_exchange(&broker).await.status, StatusCode::CREATED);
    broker.until_active("amocrm-shop").await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn no_way_into_what_is_quarantined_is_open(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let ways = Ways::prepare(&broker).await;
    broker.halt().await;
    broker.execute("UPDATE identity SET deployment = 'another'").await;
    broker.restart(|_| {}).await;
    assert_eq!(broker.view("amocrm-shop").await["state"], "quarantined");
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Code), (1, 1));
    ways.are_shut(&broker, StatusCode::CONFLICT, "conflict").await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn nobody_consents_by_a_link_of_somebody_who_was_deleted(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let agency = broker.service("agency", json!(["*"]), json!(["consent"])).await;
    let made = broker.command(&["operators", "create", "alice"]).await;
    let alice = made.stdout.concat();
    broker.broker().sync().await.unwrap();
    let ask = async |key: &str| {
        let body = json!({ "connection": "amocrm-shop", "client": "amocrm" });
        let answer = broker.ask(key, Method::POST, "/v1/consent-links", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["url"].as_str().unwrap().to_owned()
    };
    let kept = ask(&broker.operator_key).await;
    for key in [&agency, &alice] {
        let link = ask(key).await;
        let mut person = Person::new(&broker);
        let begun = ask(key).await;
        let provider = person.start(&begun).await;
        let callback = person.decide(&provider, "allow").await;
        if key == &alice {
            let ended = broker.command(&["operators", "delete", "alice"]).await;
            assert!(ended.status.success(), "{ended:?}");
        } else {
            broker.operator(Method::DELETE, "/v1/services/agency", None).await;
            // A new one of that name has nothing of the old one.
            broker.service("agency", json!(["*"]), json!(["consent"])).await;
        }
        let mut other = Person::new(&broker);
        for page in [other.get(&link).await, other.press(&link).await, person.get(&begun).await] {
            assert_eq!(page.status, StatusCode::GONE, "{page:?}");
        }
        assert_eq!(person.get(&callback).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Code), (0, 0));
    let page = Person::new(&broker).consent(&kept, "allow").await;
    assert!(page.text.contains("confirm"), "{page:?}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_knows_a_deleted_key_still_makes_no_link_with_it() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    let agency = broker.service("agency", json!(["*"]), json!(["consent"])).await;
    let replica = broker.replica().await;
    let ask = async || {
        let url = format!("{}/v1/consent-links", replica.internal_url);
        let body = json!({ "connection": "amocrm-shop", "client": "amocrm" });
        broker.http.post(url).bearer_auth(&agency).json(&body).send().await.unwrap().status()
    };
    assert_eq!(ask().await, StatusCode::CREATED);
    broker.operator(Method::DELETE, "/v1/services/agency", None).await;
    assert_eq!(ask().await, StatusCode::UNAUTHORIZED);
    assert_eq!(broker.number("SELECT count(*) FROM consent_links").await, 0);
    replica.stop().await;
    broker.stop().await;
}
