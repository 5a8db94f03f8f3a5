//! Redirects of the public listener: no input of a stranger chooses their target.

use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::simulator::{Simulated, SimulatorSettings};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use url::Url;

use crate::{
    callbacks::{param, random_looking},
    support::{
        api::Answer,
        broker::TestBroker,
        database::{TestDatabase, apply, on_both_engines},
        person::Person,
    },
};

/// Where a browser would go that trusted one of these.
const ELSEWHERE: [&str; 44] = [
    "//evil.example",
    "///evil.example",
    "////evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "\\/evil.example",
    "/\\/evil.example",
    "/\t/evil.example",
    "/\t\\evil.example",
    "\t//evil.example",
    " //evil.example",
    "\u{0}//evil.example",
    "/\r\n/evil.example",
    "https:evil.example",
    "https:/evil.example",
    "https://evil.example",
    "HTTPS://EVIL.EXAMPLE",
    "https:\\\\evil.example",
    "http://evil.example",
    "ftp://evil.example",
    "https://shop.example@evil.example",
    "https://shop.example:443@evil.example",
    "https://shop.example%40evil.example",
    "https://shop.example.evil.example",
    "https://shop.example%2eevil.example",
    "https://evil.example/https://shop.example/done",
    "https://evil.example?https://shop.example/done",
    "https://evil.example#shop.example/done",
    "https://shop.example/done/../../evil",
    "https://shop.example/done?next=//evil.example",
    "%2f%2fevil.example",
    "%2F%2Fevil.example",
    "%5c%5cevil.example",
    "%252f%252fevil.example",
    "/%09/evil.example",
    "/%0d%0aLocation:%20https://evil.example",
    "shop\r\nLocation: https://evil.example",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:msgbox(1)",
    "https://ѕһор.example/done",
    "https://shop。example/done",
];

#[apply(on_both_engines!)]
async fn no_input_chooses_where_a_browser_is_sent(database: TestDatabase) {
    let settings = "[return_to]\nshop = \"https://shop.example/done\"\n";
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), settings).await;
    for place in ELSEWHERE {
        let body = json!({ "connection": "avito-shop", "client": "avito", "return_to": place });
        let refused = broker.operator(Method::POST, "/v1/consent-links", Some(body)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{place:?}: {refused:?}");
        assert!(refused.headers.get("location").is_none(), "{place:?}");
    }
    let link = broker.link("avito-shop", "avito", json!({ "return_to": "shop" })).await;
    let path = link.strip_prefix(&broker.public_url).unwrap();
    let mut person = Person::new(&broker);
    let home = format!("{}/callback/avito", broker.public_url);
    let provider = broker.simulator(Simulated::Avito).port().to_string();
    for place in ELSEWHERE {
        // As a browser sends it, and as somebody who writes requests by hand does.
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        for name in ["return_to", "redirect_uri", "next", "url", "continue"] {
            form.append_pair(name, place);
        }
        let query = form.finish();
        let raw: String = place
            .bytes()
            .map(|b| if b.is_ascii_graphic() { char::from(b).into() } else { format!("%{b:02x}") })
            .collect();
        for target in [
            raw.clone(),
            format!("/{raw}"),
            format!("/connect/{raw}"),
            format!("{path}/{raw}"),
            format!("{path}?{query}"),
            format!("{path}?return_to={raw}"),
            format!("/callback/{raw}?code=a&state=b"),
            format!("/callback/avito?{query}&code=a&state={}", random_looking(1)),
            format!("/callback/avito?return_to={raw}&state={}", random_looking(1)),
        ] {
            for method in ["GET", "POST", "OPTIONS"] {
                let head = raw_request(&broker, method, &target).await;
                let first = head.lines().next().unwrap_or_default();
                assert!(
                    first.starts_with("HTTP/1.1 ") && !first.contains(" 3"),
                    "{target}: {head}"
                );
                assert!(!head.to_lowercase().contains("\nlocation:"), "{target}: {head}");
            }
        }
        // The two places to which a browser is ever sent: the provider, and back to the link.
        let pressed = person.press(&format!("{link}?{query}")).await;
        assert_eq!(pressed.status, StatusCode::SEE_OTHER, "{place:?}");
        let to = Url::parse(pressed.header("location")).unwrap();
        assert_eq!(to.port().unwrap().to_string(), provider, "{to}");
        assert_eq!(param(to.as_str(), "state").len(), 43);
        let state = param(to.as_str(), "state");
        let denied = format!("{home}?{query}&error=access_denied&state={state}");
        let back = person.get(&denied).await;
        assert_eq!((back.status, back.header("location")), (StatusCode::SEE_OTHER, link.as_str()));
    }
    let page = person.consent(&link, "allow").await;
    assert!(page.headers.get("location").is_none());
    broker.stop().await;
}

/// A request to the public listener whose target no library has put right; the head of its answer.
async fn raw_request(broker: &TestBroker, method: &str, target: &str) -> String {
    let host = broker.public_url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    answer.split("\r\n\r\n").next().unwrap_or_default().to_owned()
}

/// Headers by which a proxy says what it has changed; nobody here has any right to them.
const LIES: [(&str, &str); 12] = [
    ("host", "evil.example"),
    ("x-forwarded-host", "evil.example"),
    ("x-forwarded-server", "evil.example"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-scheme", "https"),
    ("x-forwarded-port", "443"),
    ("x-forwarded-prefix", "/evil"),
    ("x-forwarded-uri", "/callback/avito"),
    ("x-forwarded-for", "10.0.0.1"),
    ("x-original-url", "/health/live"),
    ("x-rewrite-url", "/health/live"),
    ("forwarded", "for=10.0.0.1;host=evil.example;proto=https"),
];

#[apply(on_both_engines!)]
async fn headers_that_lie_change_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    // The link: made on the internal listener.
    let request = broker.http.post(format!("{}/v1/consent-links", broker.internal_url));
    let mut request = request.bearer_auth(&broker.operator_key);
    for (name, value) in LIES {
        request = request.header(name, value);
    }
    let body = json!({ "connection": "divar-shop", "client": "divar", "self": true });
    let made = request.json(&body).send().await.unwrap();
    assert_eq!(made.status(), StatusCode::CREATED);
    let made: serde_json::Value = serde_json::from_str(&made.text().await.unwrap()).unwrap();
    let link = made["url"].as_str().unwrap().to_owned();
    assert!(link.starts_with(&format!("{}/connect/", broker.public_url)), "{link}");

    // The press: with the truth and with lies it leads to the same place.
    let mut honest = Person::new(&broker);
    let true_link = broker.link("divar-true", "divar", json!({})).await;
    let truth = honest.press(&true_link).await;
    let mut person = Person::new(&broker);
    let page = person.send(Method::GET, &link, &LIES, None).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(!page.text.contains("evil"), "{}", page.text);
    let ours = [("origin", broker.public_url.as_str()), ("sec-fetch-site", "same-origin")];
    let pressed = person.send(Method::POST, &link, &[&LIES[..], &ours[..]].concat(), None).await;
    let without_state = |answer: &Answer| {
        let location = answer.header("location").to_owned();
        location.replace(&param(&location, "state"), "")
    };
    assert_eq!(without_state(&pressed), without_state(&truth));
    let callback = format!("{}/callback/divar", broker.public_url);
    assert_eq!(param(pressed.header("location"), "redirect_uri"), callback);
    let shape = |answer: &Answer| {
        let cookie = answer.header("set-cookie");
        let (name, rest) = cookie.split_once('=').unwrap();
        (name.to_owned(), rest.split_once(';').unwrap().1.to_owned())
    };
    assert_eq!(shape(&pressed), shape(&truth));

    // No header makes another origin ours.
    for origin in ["https://evil.example", "http://evil.example", "https://127.0.0.1"] {
        let theirs = [&LIES[..], &[("origin", origin)]].concat();
        let refused = Person::new(&broker).send(Method::POST, &link, &theirs, None).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{origin}");
    }

    // The callback, and the redirect URI that is repeated in the exchange: the simulator compares.
    let callback = person.decide(pressed.header("location"), "allow").await;
    let back = person.send(Method::GET, &callback, &LIES, None).await;
    assert_eq!((back.status, back.header("location")), (StatusCode::SEE_OTHER, link.as_str()));
    assert_eq!(broker.view("divar-shop").await["state"], "active");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn no_answer_to_a_post_asks_to_post_again(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let document = broker.ask("", Method::GET, "/openapi.json", None).await.json();
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let public =
        ["/connect/x", "/connect", "/connect/", "/callback/avito", "/", "//", "/health/live"];
    let mut urls: Vec<_> =
        public.iter().map(|path| format!("{}{path}", broker.public_url)).collect();
    urls.extend([format!("{link}/"), link.replace("/connect", "//connect")]);
    for path in document["paths"].as_object().unwrap().keys() {
        for path in [path.clone(), format!("{path}/"), format!("/{path}")] {
            urls.push(format!("{}{}", broker.internal_url, path.replace(['{', '}'], "")));
        }
    }
    for url in &urls {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let request = broker.http.request(method.clone(), url);
            let answer = request.bearer_auth(&broker.operator_key).send().await.unwrap();
            assert!(!answer.status().is_redirection(), "{method} {url}: {answer:?}");
            assert!(answer.headers().get("location").is_none(), "{method} {url}: {answer:?}");
        }
    }
    // The one POST that leads on does so by 303: what was posted is not posted again.
    let pressed = Person::new(&broker).press(&link).await;
    assert_eq!(pressed.status, StatusCode::SEE_OTHER);
    broker.stop().await;
}
