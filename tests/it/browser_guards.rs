//! What a real browser does with pages that somebody attacks: scripts in texts, frames, previews,
//! leaks of addresses.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use token_broker::simulator::{Fault, Simulated, SimulatorSettings, settings::Account};
use tokio::time::timeout;
use url::Url;

use crate::{
    browser_journeys::{go_to_provider, serve, shows},
    callbacks::param,
    support::{
        broker::TestBroker,
        browser::{Browser, Scheme, Screen},
        database::{TestDatabase, apply, on_both_engines},
    },
};

/// Texts that would run, load, lead away or break out where they are not taken for text.
const HOSTILE: [&str; 6] = [
    "<script>window.ran=1;alert(1)</script><img src=x onerror=\"window.ran=1;alert(1)\">",
    "</title></style><svg onload=alert(1)><script>window.ran=1</script><!--",
    "\"'><iframe srcdoc='<script>parent.ran=1</script>'></iframe><base href=//evil.example>",
    "<a href=javascript:alert(1)>x</a><meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button>Continue</button></form><object data=//evil.example>",
    "&lt;script&gt;alert(1)&lt;/script&gt;{{7*7}}${alert(1)}<%= 1 %>\u{202e}\u{0}<style>*{display:none}",
];

/// Asserts that the page holds a text as text: nothing in it has become markup. A dialog that was
/// opened would make the questions themselves fail.
async fn is_inert(browser: &Browser, what: &str) {
    assert_eq!(browser.evaluate("document.scripts.length").await, 0, "{what}");
    let markup = "document.querySelectorAll('img, svg, iframe, object, embed, base, style ~ style, \
        meta[http-equiv], a[href], form[action], link').length";
    assert_eq!(browser.evaluate(markup).await, 0, "{what}");
    assert_eq!(browser.evaluate("typeof window.ran").await, "undefined", "{what}");
    let handlers = "[...document.querySelectorAll('*')].flatMap(node => [...node.attributes])\
        .filter(attribute => attribute.name.startsWith('on')).length";
    assert_eq!(browser.evaluate(handlers).await, 0, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_of_a_stranger_becomes_markup() {
    let mut simulated = SimulatorSettings::default();
    let accounts = (10_000_001..).zip(HOSTILE);
    simulated.avito.accounts =
        accounts.clone().map(|(id, name)| Account { id, name: name.to_owned() }).collect();
    let database = TestDatabase::sqlite().await;
    let broker = TestBroker::start_with(database, simulated, "").await;
    let browser = Browser::open(Screen::Desktop, Scheme::Light).await;
    for (id, text) in accounts {
        let name = format!("avito-{id}");
        // The account's own name, while it waits and once it is live.
        let link = broker.link(&name, "avito", json!({})).await;
        go_to_provider(&browser, &link, Simulated::Avito).await;
        browser.choose(&id.to_string()).await;
        browser.press("Allow").await;
        shows(&browser, StatusCode::OK, "Waiting for confirmation · token-broker").await;
        is_inert(&browser, text).await;
        let shown = browser.text().await;
        assert!(shown.contains(text.split(['\u{202e}', '\u{0}']).next().unwrap()), "{shown}");
        let path = format!("/v1/connections/{name}/confirm");
        let body = json!({ "account": id.to_string() });
        broker.operator(reqwest::Method::POST, &path, Some(body)).await;
        browser.reload().await;
        shows(&browser, StatusCode::OK, "Connected · token-broker").await;
        is_inert(&browser, text).await;

        // The account that is expected, before and after another one consented.
        let name = format!("expects-{id}");
        let expected: String = text.chars().filter(|c| !c.is_control()).collect();
        let link = broker.link(&name, "avito", json!({ "expected_account": expected })).await;
        browser.goto(&link).await;
        shows(&browser, StatusCode::OK, "Connect Avito · token-broker").await;
        is_inert(&browser, text).await;
        go_to_provider(&browser, &link, Simulated::Avito).await;
        browser.press("Allow").await;
        shows(&browser, StatusCode::OK, "Another account was expected · token-broker").await;
        is_inert(&browser, text).await;

        // The provider's error, with no attempt under way and as the end of one.
        let link = broker.link(&format!("fails-{id}"), "avito", json!({})).await;
        go_to_provider(&browser, &link, Simulated::Avito).await;
        let state = param(browser.url().await.as_str(), "state");
        let mut callback = Url::parse(&format!("{}/callback/avito", broker.public_url)).unwrap();
        callback.query_pairs_mut().extend_pairs([
            ("error", text),
            ("error_description", text),
            ("error_uri", "javascript:alert(1)"),
            (text, text),
        ]);
        let refused = "There is nothing to finish here · token-broker";
        browser.goto(callback.as_str()).await;
        shows(&browser, StatusCode::BAD_REQUEST, refused).await;
        is_inert(&browser, text).await;
        callback.query_pairs_mut().append_pair("state", &state);
        browser.goto(callback.as_str()).await;
        shows(&browser, StatusCode::OK, "Connect Avito · token-broker").await;
        is_inert(&browser, text).await;
        let shown = browser.text().await;
        assert!(shown.contains("The last attempt did not succeed."), "{shown}");

        // The answer of the token endpoint.
        let text = json!({ "error": text, "error_description": text, "scope": text }).to_string();
        broker.simulator(Simulated::Avito).fault(&Fault::Body { text }, 1);
        go_to_provider(&browser, &link, Simulated::Avito).await;
        browser.press("Allow").await;
        shows(&browser, StatusCode::OK, "Connect Avito · token-broker").await;
        is_inert(&browser, "the token endpoint's answer").await;
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_of_ours_shows_in_a_frame() {
    let broker = TestBroker::start(TestDatabase::sqlite().await).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let plain = serve("<p>A page that lets itself be framed</p>".to_owned()).await;
    let browser = Browser::open(Screen::Desktop, Scheme::Light).await;
    for ours in [
        link.clone(),
        format!("{}/connect/x", broker.public_url),
        format!("{}/callback/avito?code=1&state=2", broker.public_url),
        format!("{}/nothing", broker.public_url),
    ] {
        let trap = serve(format!(
            "<link rel=icon href='data:,'><iframe src='http://127.0.0.1:{plain}/'></iframe>\
             <iframe src='{ours}'></iframe>"
        ))
        .await;
        // Another site; then another origin of the broker's own site.
        for host in ["localhost", "127.0.0.1"] {
            browser.goto(&format!("http://{host}:{trap}/")).await;
            let control = browser.frame_text(0).await;
            assert_eq!(control, "A page that lets itself be framed", "{host}");
            let framed = browser.frame_text(1).await;
            for word in ["Avito", "link", "finish", "There is nothing", "Continue"] {
                assert!(!framed.contains(word), "{host} {ours}: {framed}");
            }
            let errors = browser.console_errors().await.join("\n");
            assert!(
                errors.contains("frame-ancestors") || errors.contains("X-Frame-Options"),
                "{host} {ours}: {errors}"
            );
        }
    }
    go_to_provider(&browser, &link, Simulated::Avito).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn looks_of_a_browser_do_not_start_a_link(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let preview = serve(format!(
        "<link rel=icon href='data:,'>
         <script>window.done = 0; const count = () => window.done++;</script>
         <link rel=prefetch href='{link}' onload='count()' onerror='count()'>
         <link rel=preload as=image href='{link}' onload='count()' onerror='count()'>
         <link rel=prerender href='{link}'>
         <script type=speculationrules>
           {{\"prefetch\": [{{\"source\": \"list\", \"urls\": [\"{link}\"]}}],
            \"prerender\": [{{\"source\": \"list\", \"urls\": [\"{link}\"]}}]}}
         </script>
         <img src='{link}' onload='count()' onerror='count()'>
         <script>
           for (const method of ['GET', 'POST']) {{
             const how = {{ method, mode: 'no-cors', credentials: 'include' }};
             fetch('{link}', how).then(count, count);
           }}
         </script>"
    ))
    .await;
    let browser = Browser::open(Screen::Phone, Scheme::Light).await;
    for host in ["localhost", "127.0.0.1"] {
        browser.goto(&format!("http://{host}:{preview}/")).await;
        let looked = async { while browser.evaluate("window.done").await != 5 {} };
        let looked = timeout(Duration::from_secs(30), looked).await;
        assert!(looked.is_ok(), "{host}: {}", browser.evaluate("window.done").await);
        let asked = browser.requests().await;
        let reached = asked.iter().filter(|request| request["request"]["url"] == link.as_str());
        assert!(reached.count() >= 4, "{host}: {asked:?}");
        drop(browser.console_errors().await);
        assert_eq!(broker.number("SELECT count(*) FROM consents").await, 0, "{host}");
        let bound = "SELECT count(*) FROM consent_links WHERE browser_hash IS NOT NULL";
        assert_eq!(broker.number(bound).await, 0, "{host}");
    }
    // It is still there for whoever comes first, in another browser too.
    let person = Browser::open(Screen::Phone, Scheme::Light).await;
    go_to_provider(&person, &link, Simulated::Avito).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn another_account_in_a_real_browser_waits(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let before = broker.token("avito-shop").await.json();
    let browser = Browser::open(Screen::Desktop, Scheme::Light).await;
    // Not even the operator's own browser replaces the account of a live connection.
    let more = json!({ "self": true, "expected_account": "10000002" });
    let link = broker.link("avito-shop", "avito", more).await;
    go_to_provider(&browser, &link, Simulated::Avito).await;
    browser.choose("10000002").await;
    browser.press("Allow").await;
    shows(&browser, StatusCode::OK, "Waiting for confirmation · token-broker").await;
    let page = browser.text().await;
    assert!(page.contains("Second shop"), "{page}");
    let view = broker.view("avito-shop").await;
    assert_eq!(view["pending_account"]["id"], "10000002");
    assert_eq!(view["account"]["id"], before["account"]);
    assert_eq!(broker.token("avito-shop").await.json()["access_token"], before["access_token"]);
    // Somebody else's browser learns nothing of it.
    let other = Browser::open(Screen::Desktop, Scheme::Light).await;
    other.goto(&link).await;
    shows(&other, StatusCode::GONE, "This link was already used · token-broker").await;
    assert!(!other.text().await.contains("Second shop"));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_with_a_secret_is_shown_to_nobody_else() {
    let broker = TestBroker::start(TestDatabase::sqlite().await).await;
    let browser = Browser::open(Screen::Desktop, Scheme::Light).await;
    let ours = Url::parse(&broker.public_url).unwrap();
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        let expected = json!({ "expected_account": broker.account(which) });
        let link = broker.link(&name, which.as_str(), expected).await;
        let secret = link.rsplit('/').next().unwrap();
        drop(browser.requests().await);
        go_to_provider(&browser, &link, which).await;
        let state = param(browser.url().await.as_str(), "state");
        browser.press("Allow").await;
        shows(&browser, StatusCode::OK, "Connected · token-broker").await;
        assert_eq!(browser.url().await.as_str(), link, "neither code nor state stay to be seen");

        let requests = browser.requests().await;
        let provider = broker.simulator(which).port();
        let (mut callbacks, mut referers) = (0, 0);
        for request in &requests {
            if let Some(url) = request["request"]["url"].as_str() {
                let url = Url::parse(url).unwrap();
                let to_us = url.port() == ours.port();
                assert!(to_us || url.port() == Some(provider), "{which}: nobody else: {url}");
                let tells = url.query_pairs().any(|(name, value)| name == "code" || value == state);
                let callback = to_us && url.path() == format!("/callback/{which}");
                assert!(!(tells && to_us) || callback, "{which}: {url}");
                callbacks += u32::from(callback);
                assert!(!url.as_str().contains(secret) || to_us, "{which}: {url}");
            } else {
                let headers = request["headers"].as_object().unwrap();
                let find = |wanted: &str| {
                    let mut all = headers.iter();
                    let found = all.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                    found.map(|(_, value)| value.as_str().unwrap().to_owned())
                };
                let Some(referer) = find("referer") else { continue };
                referers += 1;
                // Our own page tells our own origin where a press comes from.
                let home = find("host").is_some_and(|host| broker.public_url.ends_with(&host));
                assert!(home || !referer.starts_with(&broker.public_url), "{which}: {request}");
                assert!(!home || !referer.contains(&state), "{which}: {request}");
            }
        }
        assert_eq!(callbacks, 1, "{which}: {requests:?}");
        assert!(referers > 0, "{which}: the log has the headers on the wire: {requests:?}");
    }
    broker.stop().await;
}
