//! The consent journeys in a real browser, which has rules of its own about cookies and forms.
//!
//! The broker is at 127.0.0.1 and every provider's pages are at `localhost`: two sites, so that
//! the way back from a provider is a cross-site navigation, as it is in production.

use std::future::IntoFuture as _;

use axum::{Router, response::Html, routing::get};
use reqwest::StatusCode;
use serde_json::{Value, json};
use token_broker::simulator::{Kind, Simulated};
use tokio::net::TcpListener;

use crate::support::{
    broker::TestBroker,
    browser::{Browser, Scheme, Screen},
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

/// What the provider is called on a page.
fn title(which: Simulated) -> &'static str {
    match which {
        Simulated::Admitad => "Admitad",
        Simulated::Amocrm => "amoCRM",
        Simulated::Avito => "Avito",
        Simulated::Divar => "Divar",
        Simulated::Kommo => "Kommo",
    }
}

/// A link for the provider's simulated account.
async fn link(broker: &TestBroker, which: Simulated) -> String {
    let expected = json!({ "expected_account": broker.account(which) });
    broker.link(&format!("{which}-shop"), which.as_str(), expected).await
}

/// Asserts that the browser shows a page with this title, and that nothing on the way there was
/// refused or failed.
pub(crate) async fn shows(browser: &Browser, status: StatusCode, title: &str) {
    assert_eq!(browser.title().await, title, "{}", browser.text().await);
    assert_eq!(browser.status().await, status.as_u16(), "{title}");
    let mut errors = browser.console_errors().await;
    if !status.is_success() {
        // Chromium reports the page's own status too.
        let own = format!("{} - Failed to load resource", browser.url().await);
        errors.retain(|error| !error.starts_with(&own));
    }
    assert_eq!(errors, Vec::<String>::new(), "{title}");
}

/// From the link to the provider's consent page.
pub(crate) async fn go_to_provider(browser: &Browser, link: &str, which: Simulated) {
    let title = title(which);
    browser.goto(link).await;
    shows(browser, StatusCode::OK, &format!("Connect {title} · token-broker")).await;
    press_on(browser, which).await;
}

/// From the broker's page to the provider's.
async fn press_on(browser: &Browser, which: Simulated) {
    let title = title(which);
    browser.press(&format!("Continue to {title}")).await;
    shows(browser, StatusCode::OK, &format!("Simulated {title}")).await;
    assert_eq!(browser.url().await.host_str(), Some("localhost"));
    // The link's secret is in the address that the browser came from.
    assert_eq!(browser.evaluate("document.referrer").await, "");
}

#[apply(on_both_engines!)]
async fn a_person_declines_and_then_connects_every_provider(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let browser = Browser::open(Screen::Phone, Scheme::Light).await;
    for which in Simulated::ALL {
        let (name, title) = (format!("{which}-shop"), title(which));
        let link = link(&broker, which).await;
        go_to_provider(&browser, &link, which).await;
        let page = browser.text().await;
        assert!(
            page.contains("no real account") && page.contains(&broker.account(which)),
            "{page}"
        );

        // Back on the link's own page: the browser showed its cookie to the callback, or the
        // attempt would not have been found.
        browser.press("Deny").await;
        shows(&browser, StatusCode::OK, &format!("Connect {title} · token-broker")).await;
        assert_eq!(browser.url().await.as_str(), link);
        let page = browser.text().await;
        assert!(page.contains("Access was declined"), "{which}: {page}");
        assert_eq!(broker.view(&name).await["state"], "pending_consent");

        press_on(&browser, which).await;
        browser.press("Allow").await;
        shows(&browser, StatusCode::OK, "Connected · token-broker").await;
        assert_eq!(browser.url().await.as_str(), link);
        let page = browser.text().await;
        assert!(page.contains(title) && page.contains(&name), "{which}: {page}");
        let token = broker.token(&name).await;
        assert_eq!(token.status, StatusCode::OK, "{which}: {token:?}");

        // Nothing is sent twice by a reload, nor by the way back and a second Allow.
        browser.reload().await;
        shows(&browser, StatusCode::OK, "Connected · token-broker").await;
        browser.back().await;
        shows(&browser, StatusCode::OK, &format!("Simulated {title}")).await;
        browser.press("Allow").await;
        shows(&browser, StatusCode::BAD_REQUEST, "There is nothing to finish here · token-broker")
            .await;
        browser.goto(&link).await;
        shows(&browser, StatusCode::OK, "Connected · token-broker").await;
        assert_eq!(broker.presented(which, Kind::Code), (1, 1), "{which}");
        assert_eq!(broker.token(&name).await.json()["generation"], 1);
    }
    // One cookie serves every link of this browser.
    let cookies = browser.cookies().await;
    let [cookie] = cookies.as_slice() else { panic!("{cookies:?}") };
    let kept = ["name", "domain", "path", "httpOnly", "sameSite", "session"];
    let kept: Vec<&Value> = kept.iter().map(|member| &cookie[member]).collect();
    assert_eq!(json!(kept), json!(["token-broker", "127.0.0.1", "/", true, "Lax", true]));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_link_and_its_callback_belong_to_the_browser_that_pressed(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let first = Browser::open(Screen::Phone, Scheme::Light).await;
    let second = Browser::open(Screen::Desktop, Scheme::Dark).await;
    let link = link(&broker, Simulated::Avito).await;
    go_to_provider(&first, &link, Simulated::Avito).await;
    // The provider's answer, before it reaches anybody.
    let provider = first.url().await;
    let callback = Person::new(&broker).decide(provider.as_str(), "allow").await;

    let refused = "There is nothing to finish here · token-broker";
    second.goto(&link).await;
    shows(&second, StatusCode::GONE, "This link was opened in another browser · token-broker")
        .await;
    second.goto(&callback).await;
    shows(&second, StatusCode::BAD_REQUEST, refused).await;
    // The same with a cookie of its own.
    let elsewhere = broker.link("avito-else", "avito", json!({})).await;
    go_to_provider(&second, &elsewhere, Simulated::Avito).await;
    second.goto(&callback).await;
    shows(&second, StatusCode::BAD_REQUEST, refused).await;
    assert_eq!(broker.presented(Simulated::Avito, Kind::Code), (0, 0));

    first.goto(&callback).await;
    shows(&first, StatusCode::OK, "Connected · token-broker").await;
    assert_eq!(first.url().await.as_str(), link);
    second.goto(&link).await;
    shows(&second, StatusCode::GONE, "This link was already used · token-broker").await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_page_of_another_site_cannot_press_the_button(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = link(&broker, Simulated::Avito).await;
    let trap = format!(
        "<link rel=icon href='data:,'>\
         <form method=post action='{link}'><button>Win a prize</button></form>"
    );
    let port = serve(trap).await;
    let browser = Browser::open(Screen::Phone, Scheme::Light).await;
    // Another site; then another origin of the broker's own site.
    for host in ["localhost", "127.0.0.1"] {
        browser.goto(&format!("http://{host}:{port}/")).await;
        browser.press("Win a prize").await;
        let refused = "This request came from another site · token-broker";
        shows(&browser, StatusCode::FORBIDDEN, refused).await;
        assert_eq!(browser.cookies().await, Vec::<Value>::new());
    }
    // It reached neither the provider nor the link, which still works.
    go_to_provider(&browser, &link, Simulated::Avito).await;
    let oracle = broker.simulator(Simulated::Avito).oracle();
    assert!(oracle.known.is_empty(), "{oracle:?}");
    broker.stop().await;
}

/// Serves a page until the test ends; the port it is at.
pub(crate) async fn serve(page: String) -> u16 {
    let router = Router::new().route("/", get(async || Html(page)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(axum::serve(listener, router).into_future());
    port
}

/// Takes a picture at every size and scheme; nothing may stick out to the side.
async fn picture(browser: &Browser, name: &str) {
    for (screen, width) in [(Screen::Desktop, 1280), (Screen::Phone, 390)] {
        for scheme in [Scheme::Light, Scheme::Dark] {
            browser.show(screen, scheme).await;
            let view = format!("{name} {screen:?} {scheme:?}").to_lowercase().replace(' ', "-");
            browser.screenshot(&format!("journey-{view}")).await;
            let scrolls = browser.evaluate("document.documentElement.scrollWidth").await;
            assert_eq!(scrolls, width, "{view}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_the_journeys_fits_phone_and_desktop_in_light_and_dark() {
    let broker = TestBroker::start(TestDatabase::sqlite().await).await;
    let browser = Browser::open(Screen::Desktop, Scheme::Light).await;
    for which in Simulated::ALL {
        let link = link(&broker, which).await;
        browser.goto(&link).await;
        picture(&browser, &format!("{which}-1-ask")).await;
        press_on(&browser, which).await;
        picture(&browser, &format!("{which}-2-consent")).await;
        let provider = browser.url().await;
        browser.press("Deny").await;
        picture(&browser, &format!("{which}-3-declined")).await;
        press_on(&browser, which).await;
        browser.press("Allow").await;
        shows(&browser, StatusCode::OK, "Connected · token-broker").await;
        picture(&browser, &format!("{which}-4-connected")).await;
        // What each of them shows instead of going back.
        let (spoilt, status) = match which {
            Simulated::Admitad => ("redirect_uri=", StatusCode::BAD_REQUEST),
            Simulated::Divar => ("client_id=", StatusCode::UNAUTHORIZED),
            _ => ("client_id=", StatusCode::BAD_REQUEST),
        };
        browser.goto(&provider.as_str().replace(spoilt, &format!("{spoilt}&was="))).await;
        shows(&browser, status, &format!("Simulated {}", title(which))).await;
        picture(&browser, &format!("{which}-5-error")).await;
    }

    let other = json!({ "expected_account": "10000001" });
    let link = broker.link("avito-other", "avito", other).await;
    go_to_provider(&browser, &link, Simulated::Avito).await;
    browser.choose("10000002").await;
    browser.press("Allow").await;
    shows(&browser, StatusCode::OK, "Another account was expected · token-broker").await;
    picture(&browser, "wrong-account").await;
    browser.press("Try again").await;
    browser.press("Allow").await;
    shows(&browser, StatusCode::OK, "Connected · token-broker").await;

    let link = broker.link("divar-other", "divar", json!({})).await;
    go_to_provider(&browser, &link, Simulated::Divar).await;
    browser.press("Allow").await;
    shows(&browser, StatusCode::OK, "Waiting for confirmation · token-broker").await;
    picture(&browser, "waiting").await;

    browser.goto(&format!("{}/callback/avito?code=1&state=2", broker.public_url)).await;
    let title = "There is nothing to finish here · token-broker";
    shows(&browser, StatusCode::BAD_REQUEST, title).await;
    picture(&browser, "refused-callback").await;
    browser.goto(&broker.public_url).await;
    shows(&browser, StatusCode::NOT_FOUND, "There is nothing here · token-broker").await;
    picture(&browser, "nothing-here").await;
    broker.stop().await;
}
