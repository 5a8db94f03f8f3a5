//! Canaries: a whole life of the real binary at its most talkative, with every secret known to the
//! test and none of them anywhere but where it belongs: not in the log, not in an answer that is
//! not meant to carry it, not in a file, a database, its log of changes or a dump of it.

mod canaries;
mod recorded_broker;
mod relay;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Fault, Simulated};

use self::{
    canaries::Kind,
    recorded_broker::{FORGED, RecordedBroker},
};
use crate::support::{http::client, server::Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_said_or_written_with_sqlite_in_json() {
    story(RecordedBroker::start("json", None).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_said_or_written_with_sqlite_in_text() {
    story(RecordedBroker::start("text", None).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_said_or_written_with_postgres_in_json() {
    story(RecordedBroker::start("json", Some(Server::start())).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_said_or_written_with_postgres_in_text() {
    story(RecordedBroker::start("text", Some(Server::start())).await).await;
}

async fn story(mut broker: RecordedBroker) {
    let reader = keys(&mut broker).await;
    consents(&mut broker).await;
    tokens(&broker, &reader).await;
    refreshes(&broker).await;
    an_account_key(&mut broker).await;
    misplaced_secrets(&broker, &reader).await;
    junk(&broker);
    for path in ["/health", "/health/live", "/health/ready", "/openapi.json", "/nowhere"] {
        broker.ask("", Method::GET, path, None, &[]).await;
    }
    for path in
        ["/v1/connections", "/v1/connections/avito-shop", "/v1/services", "/v1/services/reader"]
    {
        assert_eq!(broker.operate(Method::GET, path, None).await.status, StatusCode::OK);
    }
    // It dies while a refresh is under way, and starts again.
    broker.simulator(Simulated::Avito).fault(&Fault::Hold { processed: true }, 1);
    let path = format!("{}/v1/connections/avito-shop/refresh", broker.internal_url);
    let held = client().post(path).bearer_auth(&broker.operator_key).send();
    let simulator = broker.simulator(Simulated::Avito);
    let before = simulator.oracle().requests.clone();
    let arrives = async {
        while simulator.oracle().requests == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = held => panic!("{answer:?}"),
        () = arrives => {}
    }
    broker.end("KILL").await;
    broker.serve().await;
    let deleted = broker.operate(Method::DELETE, "/v1/connections/avito-shop", None).await;
    assert!(deleted.status.is_success(), "{deleted:?}");
    // A clean end tidies up.
    broker.scan_files().await;
    broker.end("TERM").await;
    broker.scan().await;
}

/// Keys are made and ended; gives one that reads tokens.
async fn keys(broker: &mut RecordedBroker) -> String {
    let mut made = Vec::new();
    for (path, body) in [
        ("/v1/services", json!({ "name": "reader", "connections": ["*"] })),
        ("/v1/services", json!({ "name": "other", "connections": ["*"] })),
        ("/v1/services/other/keys", json!({})),
    ] {
        let operator = broker.operator_key.clone();
        let answer = broker.ask(&operator, Method::POST, path, Some(body), &[Kind::ApiKey]).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        let key = answer.json()["key"].as_str().unwrap().to_owned();
        broker.plant_key(&key);
        made.push(key);
    }
    let id = made[2].split('_').nth(1).unwrap();
    for path in [format!("/v1/services/other/keys/{id}"), "/v1/services/other".to_owned()] {
        let ended = broker.operate(Method::DELETE, &path, None).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT, "{ended:?}");
    }
    for dead in &made[1..] {
        let refused = broker.ask(dead, Method::GET, "/v1/connections", None, &[]).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    }
    made.remove(0)
}

/// Allowed, denied, of another account than expected, waiting for confirmation, failed.
async fn consents(broker: &mut RecordedBroker) {
    for which in ["admitad", "amocrm", "avito", "divar", "kommo"] {
        let body = json!({ "connection": format!("{which}-shop"), "client": which, "self": true });
        let page = broker.consent(body, "allow").await;
        assert!(page.text.contains("Connected"), "{which}: {}", page.text);
    }
    let link = |name: &str| json!({ "connection": name, "client": "avito" });
    broker.consent(link("avito-denied"), "deny").await;
    broker.consent(link("avito-waits"), "allow").await;
    let mut another = link("avito-another");
    another["expected_account"] = "nobody".into();
    broker.consent(another, "allow").await;
    for fault in [
        Fault::Body { text: json!({ "error": FORGED, "error_description": FORGED }).to_string() },
        Fault::ServerError { processed: true },
    ] {
        broker.simulator(Simulated::Avito).fault(&fault, 1);
        let page = broker.consent(link("avito-failed"), "allow").await;
        assert!(!page.text.contains("Connected"), "{}", page.text);
    }
    // The refresh token of an answer that brings nothing else is used at once.
    broker.simulator(Simulated::Avito).fault(&Fault::NoAccessToken, 1);
    let page = broker.consent(link("avito-saved"), "allow").await;
    assert!(!page.text.contains("did not succeed"), "{}", page.text);
}

/// Every way to fetch a token.
async fn tokens(broker: &RecordedBroker, reader: &str) {
    let belongs = [Kind::Access];
    for which in ["admitad", "amocrm", "avito", "divar", "kommo"] {
        let path = format!("/v1/connections/{which}-shop/token");
        let belongs = [Kind::Access, Kind::ClientSecret];
        // Divar wants the application's key beside each token: it belongs to the answer.
        let belongs = if which == "divar" { &belongs[..] } else { &belongs[..1] };
        let token = broker.ask(reader, Method::GET, &path, None, belongs).await;
        assert_eq!(token.status, StatusCode::OK, "{token:?}");
    }
    let path = "/v1/connections/avito-shop/token";
    let print =
        broker.ask(reader, Method::GET, path, None, &belongs).await.json()["fingerprint"].clone();
    let body = json!({ "fingerprint": print });
    let path = format!("{path}/rejected");
    let anew = broker.ask(reader, Method::POST, &path, Some(body), &belongs).await;
    assert_eq!(anew.status, StatusCode::OK, "{anew:?}");
    let form = [("grant_type", "client_credentials"), ("scope", "avito-shop")];
    let url = format!("{}/oauth2/token", broker.internal_url);
    let request = client().post(&url).basic_auth("reader", Some(reader)).form(&form);
    assert_eq!(broker.send("/oauth2/token", request, &belongs).await.status, StatusCode::OK);
    let request = client().post(&url).basic_auth("nobody", Some(reader)).form(&form);
    assert_eq!(broker.send("/oauth2/token", request, &[]).await.status, StatusCode::UNAUTHORIZED);
    let form = [&form[..], &[("client_id", "reader"), ("client_secret", reader)]].concat();
    let request = client().post(&url).form(&form);
    assert_eq!(broker.send("/oauth2/token", request, &belongs).await.status, StatusCode::OK);
}

/// Good, refused, saved, put in escrow, and every kind of nonsense.
async fn refreshes(broker: &RecordedBroker) {
    for (which, name) in [(Simulated::Amocrm, "amocrm-shop"), (Simulated::Divar, "divar-shop")] {
        assert_eq!(broker.refresh(which, name, None).await.status, StatusCode::OK);
        // amoCRM's new refresh token takes the place of the old one, Divar's goes into escrow.
        broker.refresh(which, name, Some(Fault::NoAccessToken)).await;
    }
    let long = format!("{FORGED}{}", "x".repeat(60_000));
    for fault in [
        Fault::Body { text: json!({ "error": FORGED, "error_description": long }).to_string() },
        Fault::Body { text: json!({ "error": "e", "error_description": FORGED }).to_string() },
        Fault::Body { text: format!("{FORGED}{{\"refresh_token\":\"{{refresh_token}}\"") },
        Fault::Html { processed: false },
        Fault::CutJson,
        Fault::Busy { retry_after: "soon".to_owned() },
        Fault::Refused,
    ] {
        let failed = broker.refresh(Simulated::Kommo, "kommo-shop", Some(fault)).await;
        assert!(!failed.status.is_success(), "{failed:?}");
    }
    let refused = broker.refresh(Simulated::Admitad, "admitad-shop", Some(Fault::Refused)).await;
    assert!(!refused.status.is_success(), "{refused:?}");
}

/// amoCRM's API key becomes a connection.
async fn an_account_key(broker: &mut RecordedBroker) {
    let ask = |key: &str| {
        json!({
            "name": "amocrm-old", "client": "amocrm",
            "api_key_exchange": {
                "account_host": "demo.amocrm.localhost", "login": "demo@example.com", "api_key": key,
            },
        })
    };
    let wrong = "wrong-but-of-some-length";
    broker.canaries.plant(Kind::AccountKey, wrong);
    let refused = broker.operate(Method::POST, "/v1/connections", Some(ask(wrong))).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    let right = broker.account_key.clone();
    let made = broker.operate(Method::POST, "/v1/connections", Some(ask(&right))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let live = async {
        let path = "/v1/connections/amocrm-old";
        while broker.operate(Method::GET, path, None).await.json()["state"] != "active" {}
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), live).await.expect("live in seconds");
}

/// People paste secrets where they do not belong: nothing repeats them.
async fn misplaced_secrets(broker: &RecordedBroker, reader: &str) {
    for (method, path, body) in [
        (Method::GET, format!("/v1/connections?key={reader}"), None),
        (Method::GET, format!("/{reader}"), None),
        (Method::GET, format!("/v1/connections/{reader}"), None),
        (Method::POST, format!("/v1/connections/{reader}/refresh"), None),
        (Method::GET, format!("/v1/services/{reader}"), None),
        (Method::DELETE, format!("/v1/services/reader/keys/{reader}"), None),
        (Method::DELETE, format!("/v1/services/{reader}"), None),
        (Method::GET, format!("/v1/connections/avito-shop/token?min_ttl={reader}"), None),
        (
            Method::POST,
            "/v1/connections".to_owned(),
            Some(json!({ "name": "a b", "client": reader })),
        ),
        (Method::POST, "/v1/connections".to_owned(), Some(json!(reader))),
        (
            Method::POST,
            "/v1/services".to_owned(),
            Some(json!({ "name": 7, "connections": reader })),
        ),
        (
            Method::POST,
            "/v1/consent-links".to_owned(),
            Some(json!({ "connection": "x", "client": "avito", "scopes": reader })),
        ),
    ] {
        let answer: crate::support::api::Answer = broker.operate(method, &path, body).await;
        assert!(answer.status.is_client_error() || answer.status.is_success(), "{answer:?}");
    }
    for header in
        [format!("Basic {}", STANDARD.encode(format!("reader:{reader}"))), reader.to_owned()]
    {
        let request = broker.request(Method::GET, "/v1/connections", "");
        let request = request.header("authorization", header);
        broker.send("/v1/connections", request, &[]).await;
    }
    let callback = format!("{}/callback/avito?code={reader}&state={reader}", broker.public_url);
    broker.send("/callback", client().get(callback), &[]).await;
    let link = format!("{}/connect/{reader}/x?{reader}", broker.public_url);
    broker.send("/connect", client().get(link), &[]).await;
    let value: Value = json!({ "fingerprint": reader });
    let path = "/v1/connections/avito-shop/token/rejected";
    broker.ask(reader, Method::POST, path, Some(value), &[Kind::Access]).await;
}

/// Bytes in the hope of a line of their own in the log.
fn junk(broker: &RecordedBroker) {
    let long = format!("/{}", "%0d%0aforged%1b[31m".repeat(300));
    let many = "x".repeat(100_000);
    for listener in [&broker.public_url, &broker.internal_url] {
        for words in [
            "GET /%0d%0a{\"level\":\"ERROR\"}%1b[2J%1b[31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "GET /connect/%0d%0aforged HTTP/1.1\r\nHost: \x1b[31m\r\nConnection: close\r\n\r\n",
            "GET /callback/avito?error=%0d%0aforged&error_description=%1b[2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "GET /v1/connections/%0d%0a%1b[31m/token HTTP/1.1\r\nHost: x\r\nAuthorization: \x1b[2J\r\nConnection: close\r\n\r\n",
            "FOR\x1b[31mGED / HTTP/1.1\r\nHost: x\r\n\r\n",
            "F\u{f6}RGED / HTTP/9.9\r\n\r\n",
            "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nforged",
            "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\nforged",
            &format!("GET {long} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            &format!("GET / HTTP/1.1\r\nHost: {many}\r\n\r\n"),
        ] {
            broker.junk(listener, words.as_bytes());
        }
        broker.junk(listener, b"GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\nX-\x00: \x80\r\n\r\n");
    }
}
