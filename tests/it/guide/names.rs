//! The guides name every route, code and state that the API's description has.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{code_spans, page};
use crate::support::process::Program;

async fn openapi() -> Value {
    let ended = Program::run(&["openapi"], &[]).await;
    serde_json::from_str(&ended.stdout.join("\n")).unwrap()
}

#[tokio::test]
async fn every_route_is_in_the_guide() {
    let openapi = openapi().await;
    let mut routes = BTreeSet::from(["GET /openapi.json".to_owned()]);
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            routes.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let guide = page("src/guide/api.md");
    let rows = guide.table("route");
    let described = rows.iter().map(|row| code_spans(row[0])[0].to_owned());
    assert_eq!(described.collect::<BTreeSet<_>>(), routes);
}

#[tokio::test]
async fn every_code_is_in_the_guide() {
    let openapi = openapi().await;
    let mut codes = BTreeSet::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                // The words of RFC 6749 are a table of their own.
                if path == "/oauth2/token" || !matches!(status.as_bytes()[0], b'4' | b'5') {
                    continue;
                }
                for code in code_spans(response["description"].as_str().unwrap()) {
                    codes.insert((status.clone(), code.to_owned()));
                }
            }
        }
    }
    let guide = page("src/guide/api.md");
    let rows = guide.table("status");
    let codes_of = |rows: &[Vec<&str>]| {
        let row = |row: &Vec<&str>| (row[0].to_owned(), code_spans(row[1])[0].to_owned());
        rows.iter().map(row).collect::<BTreeSet<_>>()
    };
    let described = codes_of(&rows);
    let words = ["confirm", "consent", "return_to", "down"].map(str::to_owned);
    for (status, code) in codes {
        let is_code = !words.contains(&code);
        assert!(!is_code || described.contains(&(status.clone(), code.clone())), "{status} {code}");
    }
}

#[tokio::test]
async fn every_state_is_in_the_guide() {
    let openapi = openapi().await;
    let schemas = &openapi["components"]["schemas"];
    let state = schemas["ConnectionView"]["properties"]["state"]["$ref"].as_str().unwrap();
    let states = schemas[state.rsplit('/').next().unwrap()]["enum"].as_array().unwrap();
    let states: BTreeSet<_> = states.iter().map(|state| state.as_str().unwrap()).collect();
    let guide = page("src/guide/states.md");
    let rows = guide.table("state");
    assert_eq!(rows.iter().map(|row| code_spans(row[0])[0]).collect::<BTreeSet<_>>(), states);
    for state in states {
        assert!(guide.prose.contains(&format!("\n## `{state}`\n")), "{state} has a section");
    }
}
