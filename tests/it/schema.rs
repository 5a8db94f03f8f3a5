//! The API document as a contract about secrets: which words no answer and no request has, and what
//! another site's page may send without changing anything.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Endpoint, Simulated};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

/// What never leaves: a person or service that needs one asks the provider.
const NEVER_ANSWERED: &[&str] = &[
    "api_key",
    "client_secret",
    "code_verifier",
    "hash",
    "key_hash",
    "login",
    "password",
    "private_key",
    "refresh",
    "refresh_token",
    "sealed",
    "secret",
    "verifier",
];

/// What is configured once by who runs the broker, and that no request overrides.
const NEVER_ASKED: &[&str] = &[
    "access_token",
    "authorize_url",
    "base_url",
    "client_id",
    "client_secret",
    "endpoint",
    "host",
    "issuer",
    "network",
    "provider",
    "proxy",
    "redirect_uri",
    "refresh_token",
    "token_endpoint",
    "token_url",
    "url",
];

fn document() -> Value {
    serde_json::to_value(token_broker::http::openapi()).unwrap()
}

/// The names of all members of a schema, however deep.
fn members(document: &Value, schema: &Value, seen: &mut BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Some(reference) = schema["$ref"].as_str() {
        if !seen.insert(reference.to_owned()) {
            return found;
        }
        let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
        return members(document, schema, seen);
    }
    match schema {
        Value::Object(parts) => {
            for (name, part) in parts {
                if name == "properties" {
                    found.extend(part.as_object().unwrap().keys().cloned());
                }
                if name != "example" && name != "description" {
                    found.extend(members(document, part, seen));
                }
            }
        }
        Value::Array(parts) => {
            found.extend(parts.iter().flat_map(|part| members(document, part, seen)));
        }
        _ => {}
    }
    found
}

/// Every operation: method and path, the members of its answers, those of its request.
fn operations() -> Vec<(String, BTreeSet<String>, BTreeSet<String>)> {
    let document = document();
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, about) in methods.as_object().unwrap() {
            let read = |part: &Value| members(&document, part, &mut BTreeSet::new());
            let mut asked = read(&about["requestBody"]);
            let parameters = about["parameters"].as_array().into_iter().flatten();
            asked.extend(parameters.map(|one| one["name"].as_str().unwrap().to_lowercase()));
            all.push((
                format!("{} {path}", method.to_uppercase()),
                read(&about["responses"]),
                asked,
            ));
        }
    }
    all
}

/// T50: neither a refresh token nor a client's secret has a place in any answer.
#[test]
fn no_answer_has_a_place_for_what_must_not_leave() {
    let all = operations();
    assert!(
        all.len() > 15 && all.iter().map(|(_, answered, _)| answered.len()).sum::<usize>() > 60
    );
    let carries = |word: &str| {
        let with = all.iter().filter(|(_, answered, _)| answered.contains(word));
        with.map(|(operation, ..)| operation.as_str()).collect::<Vec<_>>()
    };
    for word in NEVER_ANSWERED {
        assert_eq!(carries(word), [""; 0], "{word}");
    }
    let tokens = [
        "POST /oauth2/token",
        "GET /v1/connections/{connection}/token",
        "POST /v1/connections/{connection}/token/rejected",
    ];
    assert_eq!(carries("access_token"), tokens);
    assert_eq!(carries("headers"), tokens[1..]);
    // One schema says how a service looks and, the once, what its new key is.
    let keys = carries("key");
    assert!(keys.len() < 5 && keys.iter().all(|at| at.contains(" /v1/services")), "{keys:?}");
    for (operation, ..) in &all {
        for word in ["backup", "debug", "dump", "export", "reveal"] {
            assert!(!operation.contains(word), "{operation}");
        }
    }
}

/// T6: where a client's secret is sent, and as whom, is no caller's to say.
#[test]
fn no_request_says_where_secrets_are_sent() {
    for (operation, _, asked) in operations() {
        for word in NEVER_ASKED {
            // There the broker is the provider, and a service its client.
            let ours =
                operation == "POST /oauth2/token" && ["client_id", "client_secret"].contains(word);
            assert!(ours || !asked.contains(*word), "{word} in {operation}");
        }
    }
}

/// T57: whatever a browser sends along for a page of another site, it is no operator's key.
#[apply(on_both_engines!)]
async fn a_page_of_another_site_changes_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    broker.service("shop", json!(["*"]), json!(["token"])).await;
    let lists = async || {
        let mut all = Vec::new();
        for path in ["/v1/connections", "/v1/services", "/v1/connections/avito-shop"] {
            all.push(broker.operator(Method::GET, path, None).await.text);
        }
        all
    };
    let before = lists().await;
    let posts = || broker.simulator(Simulated::Avito).oracle().requests[&Endpoint::Token];
    let asked = posts();
    let body = json!({ "name": "intruder", "client": "avito", "connection": "intruder", "connections": ["*"] });
    let json = body.to_string();
    let form =
        format!("name=intruder&client=avito&_method=DELETE&access_token={}", broker.operator_key);
    let bodies = [
        ("application/json", json.clone()),
        ("text/plain", json.clone()),
        ("application/x-www-form-urlencoded", form),
        ("application/x-www-form-urlencoded", json.clone()),
        ("multipart/form-data; boundary=x", format!("--x\r\n\r\n{json}\r\n--x--")),
    ];
    let document = document();
    let mut sent = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{connection}", "avito-shop").replace("{service}", "shop");
        for method in methods.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            if method == Method::GET {
                continue;
            }
            let url = format!("{}{path}?access_token={}", broker.internal_url, broker.operator_key);
            for (kind, body) in &bodies {
                for (origin, site) in [
                    ("https://evil.example", "cross-site"),
                    ("null", "cross-site"),
                    ("", "same-site"),
                ] {
                    let request = broker
                        .http
                        .request(method.clone(), &url)
                        .header("content-type", *kind)
                        .header("origin", origin)
                        .header("sec-fetch-site", site)
                        .header("x-http-method-override", "DELETE")
                        .header(
                            "cookie",
                            format!("token-broker={0}; session={0}", broker.operator_key),
                        )
                        .basic_auth("alice", Some(&broker.operator_key));
                    let answer = request.body(body.clone()).send().await.unwrap();
                    let refused = match path.as_str() {
                        "/oauth2/token" => [400, 401].contains(&answer.status().as_u16()),
                        _ => answer.status() == StatusCode::UNAUTHORIZED,
                    };
                    assert!(refused, "{method} {path} {kind}: {answer:?}");
                    let allows = |name: &str| name.starts_with("access-control-");
                    assert!(
                        !answer.headers().keys().any(|name| allows(name.as_str())),
                        "{answer:?}"
                    );
                    sent += 1;
                }
            }
            let ahead =
                broker.http.request(Method::OPTIONS, &url).header("origin", "https://evil.example");
            let ahead = ahead.header("access-control-request-method", method.as_str()).send().await;
            let ahead = ahead.unwrap();
            assert!(!ahead.status().is_success(), "{method} {path}: {ahead:?}");
        }
    }
    assert!(sent > 100, "{sent}");
    assert_eq!(lists().await, before);
    assert_eq!(posts(), asked, "nobody asked the provider for anything");
    broker.stop().await;
}
