//! What every answer of the public listener carries, and the cookie that binds a browser.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::domain::consent::{KEY_EXCHANGE_LIFE, KeyExchange};

use crate::{
    callbacks::{param, random_looking},
    support::{
        api::Answer,
        broker::TestBroker,
        database::{TestDatabase, apply, on_both_engines},
        person::Person,
    },
};

/// Asserts what every public answer carries.
fn is_guarded(what: &str, answer: &Answer) {
    for (header, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        assert_eq!(answer.header(header), value, "{what}: {header}");
        assert_eq!(answer.headers.get_all(header).iter().count(), 1, "{what}: {header}");
    }
    // A page with a form says where its POST comes from, to our own origin only.
    let form = answer.text.contains("<form") || what.starts_with("HEAD ask");
    let referrer = if form { "same-origin" } else { "no-referrer" };
    assert_eq!(answer.header("referrer-policy"), referrer, "{what}");
    let policy = answer.header("content-security-policy");
    let policy: BTreeSet<_> = policy.split(';').map(str::trim).collect();
    for directive in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(directive), "{what}: {policy:?}");
    }
    for directive in &policy {
        let allowed = directive.ends_with("'none'") || directive.starts_with("style-src 'sha256-");
        assert!(allowed && !directive.contains("unsafe"), "{what}: {directive}");
    }
    for header in ["server", "x-powered-by", "access-control-allow-origin", "refresh"] {
        assert!(answer.headers.get(header).is_none(), "{what}: {header}");
    }
    // Nothing is loaded and nothing is run.
    let text = answer.text.to_lowercase();
    for markup in
        ["<script", "<img", "<iframe", "<link", "<meta http-equiv", " src=", "@import", "url("]
    {
        assert!(!text.contains(markup), "{what}: {markup} in {text}");
    }
}

#[apply(on_both_engines!)]
async fn every_public_answer_carries_the_headers(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    let public = broker.public_url.clone();
    let mut answers = Vec::new();

    // One journey to its end.
    let link = broker.link("avito-shop", "avito", json!({ "self": true })).await;
    let mut person = Person::new(&broker);
    answers.push(("ask", StatusCode::OK, person.get(&link).await));
    answers.push(("HEAD ask", StatusCode::OK, person.send(Method::HEAD, &link, &[], None).await));
    let pressed = person.press(&link).await;
    let provider = pressed.header("location").to_owned();
    answers.push(("press", StatusCode::SEE_OTHER, pressed));
    let denied = person.decide(&provider, "deny").await;
    answers.push(("denied", StatusCode::SEE_OTHER, person.get(&denied).await));
    answers.push(("declined", StatusCode::OK, person.get(&link).await));
    let provider = person.start(&link).await;
    answers.push(("other browser", StatusCode::GONE, Person::new(&broker).get(&link).await));
    let callback = person.decide(&provider, "allow").await;
    answers.push(("callback", StatusCode::SEE_OTHER, person.get(&callback).await));
    answers.push(("connected", StatusCode::OK, person.get(&link).await));
    answers.push(("again", StatusCode::BAD_REQUEST, person.get(&callback).await));
    answers.push(("used", StatusCode::GONE, person.press(&link).await));
    let link = broker.link("divar-shop", "divar", json!({})).await;
    answers.push(("waiting", StatusCode::OK, person.consent(&link, "allow").await));
    let link = broker.link("avito-wrong", "avito", json!({ "expected_account": "1" })).await;
    answers.push(("wrong account", StatusCode::OK, person.consent(&link, "allow").await));

    // What is refused.
    let ended = format!("{public}/connect/{}", random_looking(1));
    answers.push(("ended", StatusCode::GONE, person.get(&ended).await));
    answers.push(("no secret", StatusCode::GONE, person.get(&format!("{public}/connect/x")).await));
    let foreign = [("origin", "https://evil.example")];
    let foreign = Person::new(&broker).send(Method::POST, &link, &foreign, None).await;
    answers.push(("foreign press", StatusCode::FORBIDDEN, foreign));
    answers.push(("nothing", StatusCode::NOT_FOUND, person.get(&format!("{public}/x")).await));
    answers.push(("root", StatusCode::NOT_FOUND, person.get(&public).await));
    let delete = person.send(Method::DELETE, &link, &[], None).await;
    answers.push(("delete", StatusCode::METHOD_NOT_ALLOWED, delete));
    let head = person.send(Method::HEAD, &callback, &[], None).await;
    answers.push(("HEAD callback", StatusCode::METHOD_NOT_ALLOWED, head));
    let junk = format!("{public}/callback/avito?from_exchange=1&code=x");
    answers.push(("junk exchange", StatusCode::BAD_REQUEST, person.get(&junk).await));
    answers.push(("exchange", StatusCode::OK, exchanged(&broker).await));
    let live = person.get(&format!("{public}/health/live")).await;
    answers.push(("liveness", StatusCode::NO_CONTENT, live));
    let options = person.send(Method::OPTIONS, &link, &[], None).await;
    answers.push(("OPTIONS", StatusCode::METHOD_NOT_ALLOWED, options));
    let full = broker.link("avito-full", "avito", json!({})).await;
    let mut eager = Person::new(&broker);
    for _ in 0..5 {
        eager.start(&full).await;
    }
    answers.push(("too many", StatusCode::TOO_MANY_REQUESTS, eager.press(&full).await));

    // What we cannot do at the moment.
    let other = broker.link("admitad-shop", "admitad", json!({})).await;
    broker
        .restart(|settings| {
            settings["clients"].as_table_mut().unwrap().remove("admitad");
        })
        .await;
    answers.push(("no client", StatusCode::BAD_GATEWAY, person.get(&other).await));
    broker.broker().store().close().await;
    answers.push(("no database", StatusCode::SERVICE_UNAVAILABLE, person.get(&full).await));
    for (what, status, answer) in &answers {
        assert_eq!(answer.status, *status, "{what}: {answer:?}");
        is_guarded(what, answer);
    }
    let set: Vec<_> = answers
        .iter()
        .filter(|(_, _, answer)| answer.headers.contains_key("set-cookie"))
        .map(|(what, ..)| *what)
        .collect();
    assert_eq!(set, ["press"], "no other answer sets a cookie");
    broker.stop().await;
}

/// The answer to a code that an exchange of amoCRM's waits for.
async fn exchanged(broker: &TestBroker) -> Answer {
    broker.link("amocrm-old", "amocrm", json!({})).await;
    let store = broker.broker().store();
    let now = broker.clock.now();
    let pending = KeyExchange {
        id: uuid::Uuid::now_v7(),
        connection: store.record("amocrm-old").await.unwrap().unwrap().connection.id,
        client: "amocrm".parse().unwrap(),
        account_host: "demo.amocrm.localhost".to_owned(),
        requested_at: now,
        expires_at: now + KEY_EXCHANGE_LIFE,
    };
    store.insert_exchange(&pending).await.unwrap();
    let query = "code=x&referer=demo.amocrm.localhost&from_exchange=1";
    Person::alone().get(&format!("{}/callback/amocrm?{query}", broker.public_url)).await
}

/// What a browser is told about the cookie, by name: value apart, in no order.
fn cookie(answer: &Answer) -> (String, String, BTreeSet<String>) {
    let set: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    let [set] = set.as_slice() else { panic!("{answer:?}") };
    let mut parts = set.to_str().unwrap().split("; ");
    let (name, value) = parts.next().unwrap().split_once('=').unwrap();
    (name.to_owned(), value.to_owned(), parts.map(str::to_owned).collect())
}

#[apply(on_both_engines!)]
async fn over_https_the_cookie_belongs_to_this_host_alone(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    let here = broker.public_url.clone();
    broker
        .restart(|settings| {
            settings.insert("public_url".into(), "https://broker.example".into());
        })
        .await;
    let link = broker.link("divar-shop", "divar", json!({})).await;
    let link = link.replace("https://broker.example", &here);
    assert!(link.starts_with(&here), "{link}");
    let at_home = ("origin", "https://broker.example");

    // A cookie of the plain name is somebody else's: of another port, or set from a subdomain.
    let plain = ("cookie", format!("token-broker={}", random_looking(1)));
    let plain = (plain.0, plain.1.as_str());
    let pressed = Person::new(&broker).send(Method::POST, &link, &[at_home, plain], None).await;
    assert_eq!(pressed.status, StatusCode::SEE_OTHER, "{pressed:?}");
    let (name, value, attributes) = cookie(&pressed);
    assert_eq!(name, "__Host-token-broker");
    assert_ne!(value, random_looking(1));
    assert_eq!(
        attributes,
        ["HttpOnly", "SameSite=Lax", "Secure", "Path=/"].map(str::to_owned).into(),
        "no Domain, no life beyond the browser's"
    );
    let callback = param(pressed.header("location"), "redirect_uri");
    assert_eq!(callback, "https://broker.example/callback/divar");

    // The binding counts under its own name, and under no other.
    for (sent, status) in [
        (format!("__Host-token-broker={value}"), StatusCode::OK),
        (format!("token-broker={value}"), StatusCode::GONE),
        (format!("__host-token-broker={value}"), StatusCode::GONE),
        (
            format!("token-broker={value}; __Host-token-broker={}", random_looking(2)),
            StatusCode::GONE,
        ),
        (String::new(), StatusCode::GONE),
    ] {
        let headers = [("cookie", sent.as_str())];
        let page = Person::new(&broker).send(Method::GET, &link, &headers, None).await;
        assert_eq!(page.status, status, "{sent}");
    }
    // Who holds it already is given no second one.
    let held = ("cookie", format!("__Host-token-broker={value}"));
    let again = [at_home, (held.0, held.1.as_str())];
    let pressed = Person::new(&broker).send(Method::POST, &link, &again, None).await;
    assert_eq!(pressed.status, StatusCode::SEE_OTHER);
    assert!(pressed.headers.get("set-cookie").is_none());
    // The page is posted from the configured origin, whatever the address of the socket.
    for origin in [here.as_str(), "http://broker.example", "https://broker.example:8443", "null"] {
        let elsewhere = [("origin", origin)];
        let refused = Person::new(&broker).send(Method::POST, &link, &elsewhere, None).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{origin}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_binding_that_is_none_is_replaced(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let long = random_looking(1) + "x";
    let marked = random_looking(1).replace('1', "%2e");
    for bad in ["", "x", "undefined", &long, &marked, &random_looking(1).replace('1', "é")] {
        let link = broker.link("avito-shop", "avito", json!({})).await;
        let pressed = {
            let header = format!("token-broker={bad}");
            let ours = [("origin", broker.public_url.as_str()), ("cookie", header.as_str())];
            Person::new(&broker).send(Method::POST, &link, &ours, None).await
        };
        assert_eq!(pressed.status, StatusCode::SEE_OTHER, "{bad}");
        let (name, value, attributes) = cookie(&pressed);
        assert_eq!((name.as_str(), value.len()), ("token-broker", 43), "{bad}");
        assert_eq!(attributes, ["HttpOnly", "SameSite=Lax", "Path=/"].map(str::to_owned).into());
    }
    broker.stop().await;
}
