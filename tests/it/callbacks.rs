//! Callbacks that nobody has begun, or not so: odd, crossed, repeated, refused. That nothing goes out is read at the simulators, which count whatever
//! arrives.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::simulator::{Endpoint, Simulated};
use url::Url;

use crate::support::{
    api::Answer,
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

/// An attempt that was decided at the provider: the URL that the browser is sent back to.
pub(crate) async fn decided(
    broker: &TestBroker,
    person: &mut Person,
    name: &str,
    client: &str,
) -> String {
    let link = broker.link(name, client, json!({ "self": true })).await;
    let provider = person.start(&link).await;
    person.decide(&provider, "allow").await
}

/// A parameter of a URL.
pub(crate) fn param(url: &str, name: &str) -> String {
    let url = Url::parse(url).unwrap();
    let found = url.query_pairs().find(|(found, _)| found == name);
    found.unwrap_or_else(|| panic!("{name} in {url}")).1.into_owned()
}

/// 43 characters of the right alphabet, as a `state` and a browser's binding are.
pub(crate) fn random_looking(number: usize) -> String {
    format!("{number:043}")
}

/// The binding of a browser.
pub(crate) fn with_cookie(value: &str) -> [(&'static str, String); 1] {
    [("cookie", format!("token-broker={value}"))]
}

/// A request from a browser that has this and no more.
pub(crate) async fn send(broker: &TestBroker, url: &str, headers: &[(&str, String)]) -> Answer {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Person::new(broker).send(Method::GET, url, &headers, None).await
}

#[apply(on_both_engines!)]
async fn an_odd_state_sends_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let mut person = Person::new(&broker);
    let expired = decided(&broker, &mut person, "avito-late", "avito").await;
    broker.advance(Duration::from_secs(10 * 60 + 1)).await;
    let consumed = decided(&broker, &mut person, "avito-done", "avito").await;
    assert_eq!(person.get(&consumed).await.status, StatusCode::SEE_OTHER);
    let callback = decided(&broker, &mut person, "avito-shop", "avito").await;
    let state = param(&callback, "state");
    let flipped: String = state
        .chars()
        .map(|c| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
        .collect();
    let mut other = Person::new(&broker);
    decided(&broker, &mut other, "avito-else", "avito").await;

    let before = broker.requests();
    for query in [
        String::new(),
        "state=".to_owned(),
        "state".to_owned(),
        "state=undefined".to_owned(),
        "state=null".to_owned(),
        format!("state[]={state}"),
        format!("state%00={state}"),
        format!("STATE={state}"),
        format!("state={state}&state={state}"),
        format!("state={}", "x".repeat(10_000)),
        format!("state={state}%00"),
        format!("state=%00{}", &state[1..]),
        format!("state={flipped}"),
        format!("state={state}%20"),
        format!("state=%20{state}"),
        format!("state={state}%0A"),
        format!("state={}", &state[..42]),
        format!("state={state}x"),
        format!("state={}", random_looking(7)),
        format!("state={}", param(&expired, "state")),
        format!("state={}", param(&consumed, "state")),
    ] {
        let url = format!("{}/callback/avito?code=stolen&{query}", broker.public_url);
        for person in [&mut person, &mut other, &mut Person::new(&broker)] {
            let answer = person.get(&url).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
            assert!(answer.text.contains("Nothing was changed"), "{query}");
            assert!(answer.headers.get("location").is_none(), "{query}");
        }
    }
    // The true state is worth nothing without its cookie, or with one of another form.
    for cookie in ["", "undefined", &random_looking(7), &flipped] {
        let answer = send(&broker, &callback, &with_cookie(cookie)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{cookie}");
    }
    assert_eq!(broker.requests(), before, "nothing was sent to any provider");
    // None of it has hurt the consent under way.
    assert_eq!(person.get(&callback).await.status, StatusCode::SEE_OTHER);
    assert_eq!(broker.view("avito-shop").await["state"], "active");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_parameter_that_comes_twice_or_in_a_body_sends_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let mut person = Person::new(&broker);
    let callback = decided(&broker, &mut person, "avito-shop", "avito").await;
    let (state, code) = (param(&callback, "state"), param(&callback, "code"));
    let before = broker.requests();
    for more in [
        format!("&code={code}"),
        "&code=b".to_owned(),
        "&c%6fde=b".to_owned(),
        "&code".to_owned(),
        format!("&state={state}"),
        "&state=".to_owned(),
        "&iss=a&iss=b".to_owned(),
        "&error=a&error=a".to_owned(),
        "&x&x".to_owned(),
    ] {
        let answer = person.get(&format!("{callback}{more}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{more}");
    }
    // Neither a form, nor what comes after `#`, nor another method finishes anything.
    let bare = callback.split('?').next().unwrap();
    let form = [("state", state.as_str()), ("code", code.as_str())];
    for (method, url, status) in [
        (Method::POST, bare, StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, callback.as_str(), StatusCode::METHOD_NOT_ALLOWED),
        (Method::PUT, callback.as_str(), StatusCode::METHOD_NOT_ALLOWED),
        (Method::HEAD, callback.as_str(), StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, bare, StatusCode::BAD_REQUEST),
    ] {
        let form = (method == Method::POST).then_some(form.as_slice());
        let answer = person.send(method.clone(), url, &[], form).await;
        assert_eq!(answer.status, status, "{method}");
    }
    let fragment = callback.replace('?', "#");
    assert_eq!(person.get(&fragment).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(broker.requests(), before, "nothing was sent to any provider");
    assert_eq!(person.get(&callback).await.status, StatusCode::SEE_OTHER);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_callback_of_one_provider_is_none_of_another(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let mut person = Person::new(&broker);
    let avito = decided(&broker, &mut person, "avito-shop", "avito").await;
    let divar = decided(&broker, &mut person, "divar-shop", "divar").await;
    let before = broker.requests();
    for crossed in [
        avito.replace("/callback/avito", "/callback/divar"),
        divar.replace("/callback/divar", "/callback/avito"),
        avito.replace("/callback/avito", "/callback/AVITO"),
        avito.replace("/callback/avito", "/callback/avito%00"),
        avito.replace("/callback/avito", "/callback/nobody"),
        // The state of one with the code of the other, at the path of the code.
        divar.replace(&param(&divar, "state"), &param(&avito, "state")),
        avito.replace(&param(&avito, "state"), &param(&divar, "state")),
    ] {
        assert_eq!(person.get(&crossed).await.status, StatusCode::BAD_REQUEST, "{crossed}");
    }
    assert_eq!(broker.requests(), before, "nothing was sent to any provider");

    // A code that was slipped in goes to the provider where the consent was begun, which does not
    // know it, and to no other.
    let injected = avito.replace(&param(&avito, "code"), &param(&divar, "code"));
    let back = person.get(&injected).await;
    assert_eq!(back.status, StatusCode::SEE_OTHER);
    let page = person.get(back.header("location")).await;
    assert!(page.text.contains("did not succeed"), "{}", page.text);
    let mut after = before;
    *after.entry(Simulated::Avito).or_default().entry(Endpoint::Token).or_default() += 1;
    assert_eq!(broker.requests(), after);
    assert_eq!(broker.view("avito-shop").await["state"], "pending_consent");
    assert_eq!(person.get(&divar).await.status, StatusCode::SEE_OTHER);
    assert_eq!(broker.view("divar-shop").await["state"], "active");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn of_fifty_identical_callbacks_one_counts(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let mut person = Person::new(&broker);
    let callback = decided(&broker, &mut person, "avito-shop", "avito").await;
    let mut expected = broker.requests();
    let tabs = (0..50).map(|_| {
        let (mut tab, callback) = (person.clone(), &callback);
        async move { tab.get(callback).await.status }
    });
    let mut counted = BTreeMap::<_, u32>::new();
    for status in join_all(tabs).await {
        *counted.entry(status).or_default() += 1;
    }
    assert_eq!(
        counted,
        BTreeMap::from([(StatusCode::SEE_OTHER, 1), (StatusCode::BAD_REQUEST, 49)])
    );
    for endpoint in [Endpoint::Token, Endpoint::Account] {
        *expected.entry(Simulated::Avito).or_default().entry(endpoint).or_default() += 1;
    }
    assert_eq!(broker.requests(), expected, "one exchange, one look at the account");
    assert_eq!(broker.view("avito-shop").await["generation"], 1);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refused_consent_leaves_the_live_grant_alone(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        broker.connect(&name, which).await;
        let token = broker.token(&name).await.json();
        let view = broker.view(&name).await;
        let expected = json!({ "expected_account": broker.account(which) });
        let link = broker.link(&name, which.as_str(), expected).await;
        let mut person = Person::new(&broker);
        let page = person.consent(&link, "deny").await;
        assert!(page.text.contains("Access was declined"), "{which}: {}", page.text);
        for said in [
            "error=access_denied",
            "error=server_error",
            "error=temporarily_unavailable&error_description=try%20later",
            "error=invalid_scope&error_uri=https://evil.example",
            "error=",
            "error=access_denied&code=stolen",
            "code=",
            "x=1",
        ] {
            let provider = person.start(&link).await;
            let before = broker.requests();
            let state = param(&provider, "state");
            let url = format!("{}/callback/{which}?{said}&state={state}", broker.public_url);
            assert_eq!(person.get(&url).await.status, StatusCode::SEE_OTHER, "{which} {said}");
            assert_eq!(broker.requests(), before, "{which} {said}: nothing was sent");
            let page = person.get(&link).await;
            assert!(page.text.contains("Nothing was changed"), "{which} {said}: {}", page.text);
        }
        let after = broker.token(&name).await;
        assert_eq!(after.status, StatusCode::OK, "{which}: {after:?}");
        assert_eq!(after.json()["access_token"], token["access_token"], "{which}");
        assert_eq!(after.json()["generation"], 1, "{which}");
        assert_eq!(broker.view(&name).await, view, "{which}");
    }
    broker.stop().await;
}
