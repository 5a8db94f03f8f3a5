//! What one provider issued never reaches another: not its code, and not its tokens.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Endpoint, Simulated, SimulatorSettings};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

/// Changes the token endpoint of Divar's profile: another text for the same place.
fn moved(settings: &mut toml::Table) {
    let url = &mut settings["providers"]["profiles"]["divar"]["token"]["url"];
    *url = url.as_str().unwrap().replace("localhost", "LOCALHOST").into();
}

#[apply(on_both_engines!)]
async fn a_callback_of_another_issuer_is_refused_before_any_call(database: TestDatabase) {
    const ISSUER: &str = "https://login.divar.example";
    let overlay = format!("[providers.profiles.divar.authorize]\nissuer = \"{ISSUER}\"\n");
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), &overlay).await;
    let link = broker.link("divar-shop", "divar", json!({ "self": true })).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    let before = broker.simulator(Simulated::Divar).oracle().requests;
    for wrong in [
        String::new(),
        "&iss=".to_owned(),
        "&iss=https%3A%2F%2Flogin.avito.example".to_owned(),
        format!("&iss={ISSUER}/"),
        format!("&iss={}", ISSUER.to_uppercase()),
        format!("&iss={ISSUER}&iss={ISSUER}"),
    ] {
        let refused = person.get(&format!("{callback}{wrong}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    assert_eq!(broker.simulator(Simulated::Divar).oracle().requests, before);
    // None of that has used up the attempt.
    let back = person.get(&format!("{callback}&iss={ISSUER}")).await;
    let page = person.get(back.header("location")).await;
    assert!(page.text.contains("Connected"), "{}", page.text);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn no_callback_chooses_where_the_code_and_the_secret_go(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let port = broker.simulator(Simulated::Amocrm).port();
    let suffix = ".amocrm.localhost";
    let mut forged: Vec<_> =
        ["", ".", "/", "@", "#", "?", "\\", "%23", "%2f", "%00", "\r\n", " ", "。"]
            .iter()
            .flat_map(|odd| {
                [
                    format!("evil.localhost{odd}demo{suffix}"),
                    format!("demo{suffix}{odd}.evil.localhost"),
                ]
            })
            .collect();
    forged.extend(
        [
            "localhost",
            "127.0.0.1",
            "[::1]",
            "2130706433",
            "demo.evil.localhost",
            "amocrm.localhost",
        ]
        .map(str::to_owned),
    );
    forged.extend([
        format!("a.b{suffix}"),
        format!("demo{suffix}:{port}"),
        format!("demo{suffix}."),
    ]);
    forged.extend([format!("xn--80ak6aa92e{suffix}"), format!("{}{suffix}", "a".repeat(300))]);
    let mut person = Person::new(&broker);
    let link = broker.link("amocrm-shop", "amocrm", json!({ "self": true })).await;
    let before = |endpoint| {
        let requests = broker.simulator(Simulated::Amocrm).oracle().requests;
        requests.get(&endpoint).copied().unwrap_or_default()
    };
    for host in &forged {
        let provider = person.start(&link).await;
        let callback = person.decide(&provider, "allow").await;
        let callback = from_host(&callback, host);
        let back = person.get(&callback).await;
        let page = person.get(back.header("location")).await;
        assert!(page.text.contains("did not succeed"), "{host:?}: {}", page.text);
        for endpoint in [Endpoint::Token, Endpoint::Account, Endpoint::Elsewhere] {
            assert_eq!(before(endpoint), 0, "{host:?}");
        }
    }
    let page = person.consent(&link, "allow").await;
    assert!(page.text.contains("Connected"), "{}", page.text);

    // Another good label gets nothing either: not where the connection has one, and not where the
    // account is expected by one.
    let token = broker.token("amocrm-shop").await.json();
    let sent = || [Endpoint::Token, Endpoint::Account, Endpoint::Elsewhere].map(before);
    let before_all = sent();
    let flowers = format!("flowers{suffix}");
    for (name, expected, host) in [
        ("amocrm-shop", Value::Null, flowers.clone()),
        ("amocrm-shop", json!(broker.account(Simulated::Amocrm)), flowers.clone()),
        ("amocrm-shop", json!("flowers"), format!("demo{suffix}")),
        ("amocrm-new", json!("flowers"), format!("demo{suffix}")),
    ] {
        let link = broker.link(name, "amocrm", json!({ "expected_account": expected })).await;
        let provider = person.start(&link).await;
        let callback = from_host(&person.decide(&provider, "allow").await, &host);
        let back = person.get(&callback).await;
        let page = person.get(back.header("location")).await;
        let shown = if expected.is_null() { "did not succeed" } else { "nother account" };
        assert!(page.text.contains(shown), "{name} {expected}: {}", page.text);
        assert_eq!(sent(), before_all, "{name} {expected}");
    }
    assert_eq!(broker.token("amocrm-shop").await.json()["access_token"], token["access_token"]);
    // Whoever expects a renamed account by its new subdomain says where it is now.
    let link = broker.link("amocrm-shop", "amocrm", json!({ "expected_account": "flowers" })).await;
    let provider = person.start(&link).await;
    let callback = from_host(&person.decide(&provider, "allow").await, &flowers);
    let back = person.get(&callback).await;
    let page = person.get(back.header("location")).await;
    assert!(page.text.contains("did not succeed"), "nobody answers there: {}", page.text);
    broker.stop().await;
}

/// The callback, with another account host.
fn from_host(callback: &str, host: &str) -> String {
    let mut callback: url::Url = callback.parse().unwrap();
    let said = callback.query_pairs().into_owned();
    let said: Vec<_> = said
        .map(
            |(name, value)| if name == "referer" { (name, host.to_owned()) } else { (name, value) },
        )
        .collect();
    callback.query_pairs_mut().clear().extend_pairs(said);
    callback.into()
}

#[apply(on_both_engines!)]
async fn a_profile_that_changes_while_a_person_consents_gets_no_code(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    let link = broker.link("divar-shop", "divar", json!({ "self": true })).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    broker.restart(moved).await;
    let before = broker.posts(Simulated::Divar);
    let back = person.get(&callback).await;
    let page = person.get(back.header("location")).await;
    assert!(page.text.contains("did not succeed"), "{}", page.text);
    assert_eq!(broker.posts(Simulated::Divar), before);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_changed_token_endpoint_gets_no_tokens_until_an_operator_says_so(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    broker.create("avito-own", "avito").await;
    broker.restart(moved).await;
    let before = broker.posts(Simulated::Divar);
    broker.make_due().await;
    assert_eq!(broker.refresh_due().await, 2);
    let token = broker.token("divar-shop").await;
    assert_eq!(token.status, StatusCode::OK, "{token:?}");
    let path = "/v1/connections/divar-shop/token/rejected";
    let body = json!({ "fingerprint": token.json()["fingerprint"] });
    broker.ask(&broker.service_key, Method::POST, path, Some(body)).await;
    assert_eq!(broker.posts(Simulated::Divar), before, "nothing is sent to the new address");
    let view = broker.view("divar-shop").await;
    assert_eq!(view["state"], "blocked_config", "{view}");
    assert_eq!(view["reason"], "token_url_changed", "{view}");
    assert_eq!(broker.view("avito-own").await["generation"], 2, "others go on");
    // An operator accepts it by asking for the refresh.
    let accepted = broker.refresh("divar-shop").await;
    assert_eq!(accepted.status, StatusCode::OK, "{accepted:?}");
    assert_eq!(accepted.json()["state"], "active");
    broker.make_due().await;
    broker.refresh_due().await;
    assert_eq!(broker.view("divar-shop").await["generation"], 3);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_grant_that_waits_stays_with_the_endpoint_that_issued_it(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.consent("divar-shop", "divar", json!({})).await;
    assert_eq!(broker.view("divar-shop").await["state"], "pending_confirm");
    broker.restart(moved).await;
    let account = broker.account(Simulated::Divar);
    let confirmed = broker.confirm("divar-shop", &account).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{confirmed:?}");
    let before = broker.posts(Simulated::Divar);
    broker.make_due().await;
    broker.refresh_due().await;
    assert_eq!(broker.posts(Simulated::Divar), before);
    assert_eq!(broker.view("divar-shop").await["state"], "blocked_config");
    assert_eq!(broker.token("divar-shop").await.status, StatusCode::OK);
    broker.stop().await;
}
