//! The pages of a consent link in a real browser, at every size and scheme that people use.

use std::future::IntoFuture as _;

use askama::Template as _;
use axum::{
    Router,
    http::{HeaderValue, header},
    response::Html,
    routing::get,
};
use token_broker::{
    domain::connection::Account,
    http::pages::{Ask, Connected, Message, Previous, STYLE_SOURCE, Waiting, WrongAccount},
};
use tokio::net::TcpListener;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::support::browser::{Browser, Scheme, Screen};

/// Every page in every state, with texts as long and as foreign as they may come.
fn pages() -> Vec<(&'static str, String)> {
    let avito =
        Account {
            id: "94235311".into(), name: Some("Мебель на Невском".into()), aliases: vec![]
        };
    let divar = Account { id: "8b1c2f04".repeat(12), name: None, aliases: vec![] };
    let scopes = ["messenger:read".to_owned(), "messenger:write".into(), "items:info".into()];
    let home = "https://crm.example/settings/channels?from=avito".parse().unwrap();
    let ask = Ask {
        requested_by: "service billing",
        connection: "avito-main",
        provider: "Avito",
        scopes: &scopes,
        expected_account: Some("94235311"),
        ends_at: "2026-11-22T09:30:00Z".parse().unwrap(),
        previous: None,
    };
    let failed = Previous::Failed { said: Some("temporarily_unavailable: try later") };
    vec![
        ("ask", ask.render().unwrap()),
        (
            "ask-denied",
            Ask { previous: Some(Previous::Denied), scopes: &[], ..ask }.render().unwrap(),
        ),
        ("ask-failed", Ask { previous: Some(failed), ..ask }.render().unwrap()),
        (
            "connected",
            Connected {
                connection: "avito-main",
                provider: "Avito",
                account: Some(&avito),
                return_to: Some(&home),
            }
            .render()
            .unwrap(),
        ),
        (
            "waiting",
            Waiting { connection: "divar-tehran", provider: "Divar", account: Some(&divar) }
                .render()
                .unwrap(),
        ),
        (
            "wrong-account",
            WrongAccount {
                connection: "avito-main",
                provider: "Avito",
                expected_account: "70000001",
            }
            .render()
            .unwrap(),
        ),
        ("used", Message::LINK_USED.render().unwrap()),
        ("ended", Message::LINK_ENDED.render().unwrap()),
        ("other-browser", Message::OTHER_BROWSER.render().unwrap()),
    ]
}

/// The strictest policy that lets the pages' own style sheet in.
fn policy() -> HeaderValue {
    format!("default-src 'none'; style-src {}", *STYLE_SOURCE).parse().unwrap()
}

/// Serves the routes until the test ends; the address they are at.
async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(axum::serve(listener, router).into_future());
    origin
}

#[tokio::test]
async fn every_page_is_styled_and_fits_phone_and_desktop_in_light_and_dark() {
    let pages = pages();
    let mut router = Router::new();
    for (name, page) in pages.clone() {
        router = router.route(&format!("/{name}"), get(async || Html(page)));
    }
    let policy = SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy());
    let origin = serve(router.layer(policy)).await;

    let browser = Browser::open(Screen::Desktop, Scheme::Light).await;
    for (screen, width) in [(Screen::Desktop, 1280), (Screen::Phone, 390)] {
        for (scheme, ground) in
            [(Scheme::Light, "rgb(244, 245, 247)"), (Scheme::Dark, "rgb(18, 21, 26)")]
        {
            browser.show(screen, scheme).await;
            for (name, _) in &pages {
                browser.goto(&format!("{origin}/{name}")).await;
                let view = format!("{name} {screen:?} {scheme:?}").to_lowercase().replace(' ', "-");
                browser.screenshot(&format!("page-{view}")).await;

                let painted = "getComputedStyle(document.body).backgroundColor";
                assert_eq!(browser.evaluate(painted).await, ground, "{view}");
                let scrolls = "document.documentElement.scrollWidth";
                assert_eq!(browser.evaluate(scrolls).await, width, "{view}");
                assert_eq!(browser.console_errors().await, Vec::<String>::new(), "{view}");
            }
        }
    }
}

#[tokio::test]
async fn the_button_posts_to_the_address_that_the_page_was_read_from() {
    let pages = pages();
    let page = |wanted| Html(pages.iter().find(|(name, _)| *name == wanted).unwrap().1.clone());
    let (ask, connected) = (page("ask"), page("connected"));
    let router = Router::new()
        .route("/connect/one-time", get(async || ask).post(async || connected))
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy()));
    let origin = serve(router).await;

    let browser = Browser::open(Screen::Phone, Scheme::Light).await;
    browser.goto(&format!("{origin}/connect/one-time?from=mail")).await;
    assert_eq!(browser.title().await, "Connect Avito · token-broker");
    assert!(browser.text().await.contains("service billing asks for access"));

    browser.press("Continue to Avito").await;
    assert_eq!(browser.title().await, "Connected · token-broker");
    assert_eq!(browser.url().await.as_str(), format!("{origin}/connect/one-time?from=mail"));
    assert_eq!(browser.console_errors().await, Vec::<String>::new());
}
