//! The JSON answers in the pages are compared with those of a running broker: the same members, and
//! values of the same type. A comment before each says what was asked: the method, the path, and whose
//! key was shown. A body that is sent is that of the `curl` command before it.

use std::{collections::BTreeSet, mem::discriminant, time::Duration};

use reqwest::{Method, RequestBuilder};
use serde_json::{Map, Value, json};
use tokio::time::{sleep, timeout};

use super::{Page, page};
use crate::support::{http::client, process::Program};

/// Objects whose members are named by whoever runs the broker, or by a provider.
const NAMED_FREELY: [&str; 3] = ["clients", "headers", "states"];

/// A demo, and what was asked of it.
struct Asked<'a> {
    ready: &'a Value,
    method: &'a str,
    path: &'a str,
    who: &'a str,
}

impl Asked<'_> {
    fn request(&self) -> RequestBuilder {
        let url = format!("{}{}", self.ready["internal_url"].as_str().unwrap(), self.path);
        let request = client().request(Method::from_bytes(self.method.as_bytes()).unwrap(), url);
        let key = |who: &str| self.ready[format!("{who}_key")].as_str().unwrap();
        match self.who {
            "none" => request,
            "oauth" => {
                let form = "grant_type=client_credentials&scope=avito-own";
                let form = request.basic_auth("demo", Some(key("service"))).body(form);
                form.header("Content-Type", "application/x-www-form-urlencoded")
            }
            who => request.bearer_auth(key(who)),
        }
    }

    async fn answer(&self, body: Option<Value>) -> Value {
        let request = self.request();
        let request = match body {
            Some(body) => request.body(body.to_string()),
            None => request,
        };
        let text = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{}: {text}", self.path))
    }
}

/// The body of the last `curl` command before a line of a page that goes to this path.
fn body(page: &Page, before: &str, path: &str) -> Option<Value> {
    let earlier = page.blocks.iter().take_while(|block| block.at != before);
    let command = earlier.filter(|block| block.language == "sh").last()?;
    let data = command.text.split("-d '").nth(1)?.split('\'').next()?;
    command.text.contains(path).then(|| serde_json::from_str(data).unwrap())
}

/// One object that has every member of those in a list.
fn union(list: &[Value]) -> Value {
    let mut members = Map::new();
    for object in list.iter().filter_map(Value::as_object) {
        members.extend(object.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    Value::Object(members)
}

/// How two answers differ, if they do. What is null in one of them may be anything in the other.
fn differ(at: &str, told: &Value, real: &Value) -> Option<String> {
    match (told, real) {
        (Value::Null, _) | (_, Value::Null) => None,
        (Value::Object(told), Value::Object(real)) => {
            if NAMED_FREELY.iter().any(|name| at.ends_with(name)) {
                let any = |members: &Map<String, Value>| members.values().next().cloned();
                return differ(&format!("{at}.*"), &any(told)?, &any(real)?);
            }
            let names =
                |members: &Map<String, Value>| members.keys().cloned().collect::<BTreeSet<_>>();
            if names(told) != names(real) {
                return Some(format!("{at} has {:?}, not {:?}", names(real), names(told)));
            }
            told.iter()
                .find_map(|(name, value)| differ(&format!("{at}.{name}"), value, &real[name]))
        }
        (Value::Array(told), Value::Array(real)) => match (told.first()?, real.first()?) {
            (Value::Object(_), Value::Object(_)) => {
                differ(&format!("{at}[]"), &union(told), &union(real))
            }
            (told, real) => differ(&format!("{at}[]"), told, real),
        },
        (told, real) if discriminant(told) == discriminant(real) => None,
        (told, real) => Some(format!("{at} is {real}, which is nothing like {told}")),
    }
}

#[tokio::test]
async fn every_answer_is_like_a_real_one() {
    let mut program = Program::start(&["demo", "--json"], &[]);
    let ready = program.json().await;
    // For the answer to a deletion.
    let example = json!({
        "name": "example", "client": "admitad", "grant_type": "client_credentials",
    });
    Asked { ready: &ready, method: "POST", path: "/v1/connections", who: "operator" }
        .answer(Some(example))
        .await;
    let mut compared = BTreeSet::new();
    for page in [page("README.md"), page("src/guide/api.md")] {
        for block in page.blocks_in("json") {
            let note = block.note.strip_prefix("answer: ").and_then(|note| note.strip_suffix(')'));
            let note = note.and_then(|note| note.split_once(' ')).unwrap_or_else(|| {
                panic!("{}: <!-- {} --> does not say whose answer it is", block.at, block.note)
            });
            let (method, (path, who)) = (note.0, note.1.split_once(" (").unwrap());
            let asked = Asked { ready: &ready, method, path, who };
            let body = match (method, who) {
                ("POST", "oauth") | ("GET" | "DELETE", _) => None,
                _ => body(&page, &block.at, path),
            };
            let told = serde_json::from_str(&block.text).unwrap();
            let alike = async {
                // A record of the audit trail is not there at once.
                while let Some(why) = differ("", &told, &asked.answer(body.clone()).await) {
                    let late = path.starts_with("/v1/events");
                    assert!(late, "{}: {method} {path}: {why}", block.at);
                    sleep(Duration::from_millis(100)).await;
                }
            };
            let alike = timeout(Duration::from_secs(30), alike).await;
            assert!(alike.is_ok(), "{}: {method} {path} stays different", block.at);
            compared.insert((method.to_owned(), path.to_owned()));
        }
    }
    assert!(compared.len() >= 10, "{compared:?}");
}

#[test]
fn a_difference_is_found() {
    let told = json!({"a": 1, "list": [{"x": "y"}], "headers": {"b": "c"}, "n": null});
    assert_eq!(differ("", &told, &told), None);
    let other = json!({"a": 2, "list": [{"x": "z"}, {}], "headers": {"d": "e"}, "n": 7});
    assert_eq!(differ("", &told, &other), None);
    for wrong in [
        json!({"a": 1, "list": [{"x": "y"}], "headers": {"b": "c"}}),
        json!({"a": 1, "list": [{"x": "y"}], "headers": {"b": "c"}, "n": null, "more": 1}),
        json!({"a": "1", "list": [{"x": "y"}], "headers": {"b": "c"}, "n": null}),
        json!({"a": 1, "list": [{"x": 1}], "headers": {"b": "c"}, "n": null}),
        json!({"a": 1, "list": [{"x": "y"}], "headers": {"b": 3}, "n": null}),
    ] {
        assert!(differ("", &told, &wrong).is_some(), "{wrong}");
    }
}
