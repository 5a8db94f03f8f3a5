//! A fresh installation: nobody is an operator, and nothing that only an operator may do is there
//! until one was made on the machine itself.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Machine, apply, on_both_machines};
use crate::support::http::client;

/// Every route of the API document that shows a key, and whether that may be a service's.
async fn routes(url: &str) -> Vec<(Method, String, bool)> {
    let document = client().get(format!("{url}/openapi.json")).send().await.unwrap();
    let document: Value = serde_json::from_str(&document.text().await.unwrap()).unwrap();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, about) in methods.as_object().unwrap() {
            let keys = about["security"].as_array().into_iter().flatten();
            let keys: Vec<_> = keys.flat_map(|keys| keys.as_object().unwrap().keys()).collect();
            if !keys.is_empty() {
                let method = method.to_uppercase().parse().unwrap();
                let path = path.replace(['{', '}'], "");
                routes.push((method, path, keys.iter().any(|key| *key == "service_key")));
            }
        }
    }
    routes
}

async fn ask(url: &str, key: &str, method: &Method, path: &str) -> (StatusCode, String) {
    let body = json!({ "name": "intruder", "connection": "intruder", "client": "avito", "connections": ["*"] });
    let mut request = client().request(method.clone(), format!("{url}{path}"));
    if method == Method::POST {
        request = request.json(&body);
    }
    if !key.is_empty() {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default();
    (status, answer["code"].as_str().unwrap_or_default().to_owned())
}

#[apply(on_both_machines!)]
async fn nothing_is_an_operators_until_there_is_one(mut machine: Machine) {
    if machine.postgres.is_some() {
        machine.output(&["keys", "generate"]).await;
    }
    let (program, url) = machine.serve().await;
    let routes = routes(&url).await;
    let operators = routes.iter().filter(|(.., service)| !service).count();
    assert!(operators >= 8 && routes.len() > operators, "{routes:?}");
    let guessed = format!("tbo_000000000000_{}", "A".repeat(43));
    for (method, path, service) in &routes {
        for key in ["", "admin", "Bearer", &guessed] {
            let (status, code) = ask(&url, key, method, path).await;
            if *service {
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} {key}: {code}");
            } else {
                assert_eq!(
                    (status, &*code),
                    (StatusCode::NOT_FOUND, "not_found"),
                    "{method} {path}"
                );
            }
        }
    }
    program.signal("TERM");
    assert!(program.end().await.status.success());

    let file = machine.operator().await;
    let key = std::fs::read_to_string(file).unwrap().trim().to_owned();
    let (_program, url) = machine.serve().await;
    for (method, path, _) in &routes {
        for key in ["", "admin", &guessed] {
            let (status, code) = ask(&url, key, method, path).await;
            assert_eq!(
                (status, &*code),
                (StatusCode::UNAUTHORIZED, "unauthorized"),
                "{method} {path}"
            );
        }
    }
    // And nobody has left anything behind.
    for path in ["/v1/connections", "/v1/services"] {
        let answer = client().get(format!("{url}{path}")).bearer_auth(&key).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let text = answer.text().await.unwrap();
        assert!(!text.contains("intruder"), "{text}");
    }
}
