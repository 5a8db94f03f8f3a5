//! Consents that go right, and every way in which they may not.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Fault, Simulated, SimulatorSettings};

use crate::support::{
    api::Answer,
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

/// How many codes and tokens the provider was shown.
fn presented(broker: &TestBroker, which: Simulated) -> u64 {
    let oracle = broker.simulator(which).oracle();
    oracle.known.iter().flat_map(|known| known.presented.values()).sum()
}

fn title(answer: &Answer) -> &str {
    let rest = answer.text.split("<title>").nth(1).unwrap_or_default();
    rest.split(" ·").next().unwrap_or_default()
}

#[apply(on_both_engines!)]
async fn looking_at_a_link_changes_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    for _ in 0..5 {
        let page = Person::new(&broker).get(&link).await;
        assert_eq!(page.status, StatusCode::OK);
        assert_eq!(title(&page), "Connect Avito");
        assert!(page.headers.get("set-cookie").is_none());
        for (header, value) in [
            ("cache-control", "no-store"),
            ("referrer-policy", "same-origin"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(page.header(header), value, "{header}");
        }
        let policy = page.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        // Chromium applies it to the redirect that follows the POST.
        assert!(!policy.contains("form-action"), "{policy}");
    }
    let head = Person::new(&broker).send(Method::HEAD, &link, &[], None).await;
    assert_eq!(head.status, StatusCode::OK);
    // The link still works for a person.
    Person::new(&broker).start(&link).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_link_belongs_to_the_first_browser(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let mut first = Person::new(&broker);
    first.start(&link).await;
    let mut second = Person::new(&broker);
    assert_eq!(second.get(&link).await.status, StatusCode::GONE);
    assert_eq!(second.press(&link).await.status, StatusCode::GONE);
    // The first may press again.
    assert_eq!(first.get(&link).await.status, StatusCode::OK);
    assert_eq!(first.press(&link).await.status, StatusCode::SEE_OTHER);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_denial_leads_back_to_the_page(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        let expected = json!({ "expected_account": broker.account(which) });
        let link = broker.link(&name, which.as_str(), expected).await;
        let mut person = Person::new(&broker);
        let page = person.consent(&link, "deny").await;
        assert_eq!(page.status, StatusCode::OK, "{which}");
        assert!(page.text.contains("Access was declined"), "{which}: {}", page.text);
        assert_eq!(broker.view(&name).await["state"], "pending_consent");
        // A change of mind, in the same browser.
        let page = person.consent(&link, "allow").await;
        assert!(page.text.contains("Connected"), "{which}: {}", page.text);
        assert_eq!(broker.view(&name).await["state"], "active");
        // The link is spent.
        assert_eq!(person.press(&link).await.status, StatusCode::GONE);
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_callback_counts_once_and_only_where_it_was_begun(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;

    // Another browser, with a cookie of its own or none, leaves the attempt in place.
    let mut other = Person::new(&broker);
    assert_eq!(other.get(&callback).await.status, StatusCode::BAD_REQUEST);
    let elsewhere = broker.link("avito-else", "avito", json!({})).await;
    other.start(&elsewhere).await;
    assert_eq!(other.get(&callback).await.status, StatusCode::BAD_REQUEST);
    // Another client's path does not take it either.
    let crossed = callback.replace("/callback/avito", "/callback/divar");
    assert_eq!(person.get(&crossed).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(presented(&broker, Simulated::Avito), 0);

    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(person.get(&callback).await.status);
    }
    assert_eq!(answers[0], StatusCode::SEE_OTHER);
    assert!(answers[1..].iter().all(|status| *status == StatusCode::BAD_REQUEST), "{answers:?}");
    // The code and the account call's access token, once each.
    assert_eq!(presented(&broker, Simulated::Avito), 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_consent_and_a_link_end(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    broker.advance(Duration::from_secs(10 * 60 + 1)).await;
    assert_eq!(person.get(&callback).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(presented(&broker, Simulated::Avito), 0);
    broker.advance(Duration::from_hours(24)).await;
    let page = person.get(&link).await;
    assert_eq!((page.status, title(&page)), (StatusCode::GONE, "This link has ended"));
    assert_eq!(person.press(&link).await.status, StatusCode::GONE);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_callback_that_is_not_ours_is_refused_before_any_call(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    let state = callback.split("state=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let other = if state.starts_with('A') { 'B' } else { 'A' };
    let changed = format!("{other}{}", &state[1..]);
    for state in [
        String::new(),
        "state=".to_owned(),
        "state=undefined".to_owned(),
        "state[]=x".to_owned(),
        format!("state={changed}"),
        format!("state={state}&state={state}"),
        format!("state={state}%20"),
        format!("state={state}%00"),
        format!("state={}", state.to_lowercase()),
        format!("state={}", &state[..42]),
        format!("state={state}x"),
        format!("state={}", "x".repeat(6_000)),
        format!("state={state}&code=a&code=b"),
        format!("STATE={state}"),
    ] {
        let url = format!("{}/callback/avito?code=stolen&{state}", broker.public_url);
        let mut stranger = Person::new(&broker);
        for person in [&mut person, &mut stranger] {
            let answer = person.get(&url).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{state}");
            assert!(answer.text.contains("Nothing was changed"), "{state}");
        }
    }
    let posted = person.send(Method::POST, &callback, &[], None).await;
    assert_eq!(posted.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(presented(&broker, Simulated::Avito), 0);
    // None of it has hurt the consent under way.
    assert_eq!(person.get(&callback).await.status, StatusCode::SEE_OTHER);

    // amoCRM: the host that the code and our secret go to is the provider's or none.
    let link = broker.link("amocrm-shop", "amocrm", json!({})).await;
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    let forged = callback.replace("demo.amocrm.localhost", "demo.evil.localhost");
    assert_ne!(forged, callback);
    let back = person.get(&forged).await;
    assert_eq!(back.status, StatusCode::SEE_OTHER);
    let page = person.get(back.header("location")).await;
    assert!(page.text.contains("did not succeed"), "{}", page.text);
    assert_eq!(presented(&broker, Simulated::Amocrm), 0);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_unexpected_account_waits_for_confirmation(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let account = broker.account(Simulated::Divar);
    let page = broker.consent("divar-shop", "divar", json!({})).await;
    assert!(page.text.contains(&account), "{}", page.text);
    let view = broker.view("divar-shop").await;
    assert_eq!(view["state"], "pending_confirm");
    assert_eq!(view["pending_account"]["id"], account);
    let read = broker.token("divar-shop").await;
    assert_eq!(
        (read.status, &read.json()["code"]),
        (StatusCode::CONFLICT, &json!("pending_confirm"))
    );

    let confirm = |key: String, account: Value| {
        let broker = &broker;
        async move {
            let path = "/v1/connections/divar-shop/confirm";
            broker.ask(&key, Method::POST, path, Some(json!({ "account": account }))).await
        }
    };
    let reader = broker.service_key.clone();
    assert_eq!(confirm(reader, json!(account)).await.status, StatusCode::FORBIDDEN);
    let stranger = broker.service("stranger", json!(["avito-*"]), json!(["confirm"])).await;
    assert_eq!(confirm(stranger, json!(account)).await.status, StatusCode::NOT_FOUND);

    // Leaving the account out is a slip, and discards nothing.
    let path = "/v1/connections/divar-shop/confirm";
    for body in [None, Some(json!({}))] {
        let slip = broker.operator(Method::POST, path, body).await;
        assert_eq!(slip.status, StatusCode::BAD_REQUEST, "{slip:?}");
        assert!(slip.text.contains("account"), "{slip:?}");
    }
    assert_eq!(broker.view("divar-shop").await["state"], "pending_confirm");

    // Naming another account discards what was consented.
    let operator = broker.operator_key.clone();
    assert_eq!(confirm(operator.clone(), json!("other")).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(broker.view("divar-shop").await["state"], "pending_consent");
    assert_eq!(confirm(operator, json!(account)).await.status, StatusCode::CONFLICT);

    broker.consent("divar-shop", "divar", json!({})).await;
    let confirmer = broker.service("confirmer", json!(["divar-*"]), json!(["confirm"])).await;
    let confirmed = confirm(confirmer, json!(account)).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{confirmed:?}");
    assert_eq!(confirmed.json()["state"], "active");
    assert_eq!(broker.token("divar-shop").await.status, StatusCode::OK);

    // What nobody confirms is forgotten after an hour.
    broker.consent("divar-other", "divar", json!({})).await;
    broker.advance(Duration::from_secs(3_601)).await;
    broker.broker().purge().await.unwrap();
    broker.broker().sync().await.unwrap();
    assert_eq!(broker.view("divar-other").await["state"], "pending_consent");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn the_waiting_page_tells_what_was_decided(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let account = broker.account(Simulated::Divar);
    for (said, status, shown) in [
        ("other", StatusCode::GONE, "This link was already used"),
        (account.as_str(), StatusCode::OK, "Connected"),
    ] {
        let link = broker.link("divar-shop", "divar", json!({})).await;
        let mut person = Person::new(&broker);
        let page = person.consent(&link, "allow").await;
        assert_eq!(title(&page), "Waiting for confirmation");
        broker.confirm("divar-shop", &said).await;
        let page = person.get(&link).await;
        assert_eq!((page.status, title(&page)), (status, shown));
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn the_wrong_account_changes_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let page = broker.consent("avito-shop", "avito", json!({ "expected_account": "1" })).await;
    assert!(
        page.text.contains("another account") || page.text.contains("Another account"),
        "{}",
        page.text
    );
    let view = broker.view("avito-shop").await;
    assert_eq!((&view["state"], &view["generation"]), (&json!("pending_consent"), &json!(0)));
    assert!(view["pending_account"].is_null());
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_operators_own_browser_needs_no_confirmation(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect_any("avito-shop", "avito").await;
    // It lives for ten minutes only, and no service can make one.
    let link = broker.link("avito-late", "avito", json!({ "self": true })).await;
    broker.advance(Duration::from_secs(601)).await;
    assert_eq!(Person::new(&broker).get(&link).await.status, StatusCode::GONE);
    let key = broker.service("asker", json!(["*"]), json!(["consent"])).await;
    let body = json!({ "connection": "avito-shop", "client": "avito", "self": true });
    let refused = broker.ask(&key, Method::POST, "/v1/consent-links", Some(body)).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn scopes_that_were_not_granted_wait_for_a_person(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for (name, granted, state) in [
        ("as-asked", json!(null), "active"),
        ("more", json!("messenger:read,user:read,items:info,messenger:write"), "active"),
        ("fewer", json!("user:read"), "pending_confirm"),
    ] {
        let scopes = json!(["messenger:read", "user:read"]);
        broker.simulator(Simulated::Avito).fault(&Fault::Scope { value: granted }, 1);
        broker.consent(name, "avito", json!({ "self": true, "scopes": scopes })).await;
        let view = broker.view(name).await;
        assert_eq!(view["state"], state, "{name}: {view}");
    }
    broker.broker().ship_events().await.unwrap();
    let told = "SELECT count(*) FROM events WHERE connection = 'more'
        AND detail = 'connected, not asked for: items:info messenger:write'";
    assert_eq!(broker.number(told).await, 1);
    assert_eq!(
        broker.number("SELECT count(*) FROM events WHERE detail LIKE '%not asked%'").await,
        1
    );
    // Whoever looks at it may take it as it is.
    let account = broker.account(Simulated::Avito);
    let confirmed = broker.confirm("fewer", &account).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{confirmed:?}");
    assert_eq!(broker.token("fewer").await.json()["scope"], json!(["user:read"]));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn another_account_never_replaces_the_one_that_is_live(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.consent("avito-shop", "avito", json!({ "self": true })).await;
    let before = broker.token("avito-shop").await.json();
    let second = "10000002";
    // Not for an operator's own browser, nor when it is expected by name.
    for more in [json!({ "self": true }), json!({ "expected_account": second })] {
        let link = broker.link("avito-shop", "avito", more).await;
        let mut person = Person::new(&broker);
        let provider = person.start(&link).await;
        let form = [("decision", "allow"), ("account", second)];
        let decided = person.send(Method::POST, &provider, &[], Some(&form)).await;
        let back = person.get(decided.header("location")).await;
        let page = person.get(back.header("location")).await;
        assert!(page.text.contains("confirm"), "{}", page.text);
        let view = broker.view("avito-shop").await;
        assert_eq!(
            (&view["state"], &view["account"]["id"]),
            (&json!("active"), &before["account"])
        );
        assert_eq!(view["pending_account"]["id"], second);
        assert_eq!(broker.token("avito-shop").await.json()["access_token"], before["access_token"]);
    }
    let body = json!({ "account": second });
    let path = "/v1/connections/avito-shop/confirm";
    let confirmed = broker.operator(Method::POST, path, Some(body)).await;
    assert_eq!(confirmed.status, StatusCode::OK, "{confirmed:?}");
    assert_eq!(broker.token("avito-shop").await.json()["account"], second);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn five_attempts_of_a_link_may_be_under_way(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let mut person = Person::new(&broker);
    for _ in 0..5 {
        person.start(&link).await;
    }
    assert_eq!(person.press(&link).await.status, StatusCode::TOO_MANY_REQUESTS);
    broker.advance(Duration::from_secs(601)).await;
    person.start(&link).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_press_from_another_site_is_refused(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let origin = broker.public_url.clone();
    for headers in [
        vec![],
        vec![("origin", "http://evil.example")],
        vec![("origin", "null")],
        vec![("sec-fetch-site", "cross-site")],
        vec![("sec-fetch-site", "same-site")],
        vec![("sec-fetch-site", "none")],
        vec![("sec-fetch-site", "cross-site"), ("origin", origin.as_str())],
    ] {
        let answer = Person::new(&broker).send(Method::POST, &link, &headers, None).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{headers:?}");
        assert!(answer.headers.get("set-cookie").is_none());
    }
    let by_origin = [("origin", origin.as_str())];
    let answer = Person::new(&broker).send(Method::POST, &link, &by_origin, None).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    let cookie = answer.header("set-cookie");
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax") && cookie.contains("Path=/")
    );
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn the_way_back_is_chosen_by_name(database: TestDatabase) {
    let settings = "[return_to]\nshop = \"https://shop.example/done\"\n";
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), settings).await;
    for bad in ["elsewhere", "https://evil.example", "//evil.example", "javascript:alert(1)"] {
        let body = json!({ "connection": "avito-shop", "client": "avito", "return_to": bad });
        let refused = broker.operator(Method::POST, "/v1/consent-links", Some(body)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}: {refused:?}");
    }
    let more = json!({ "return_to": "shop", "self": true });
    let page = broker.consent("avito-shop", "avito", more).await;
    assert!(page.text.contains("href=\"https://shop.example/done\""), "{}", page.text);
    broker.stop().await;
}
