//! The commands that ask a running broker.

use std::net::TcpListener;

use axum::{Router, http::StatusCode};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{CANARY, Machine, UNAVAILABLE, USAGE, apply, on_both_machines};

/// Every command that asks a running broker with a key.
const COMMANDS: &[&[&str]] = &[
    &["token", "avito"],
    &["token", "avito", "--json"],
    &["connect", "avito"],
    &["connections"],
    &["connections", "--json"],
    &["services", "list"],
    &["services", "list", "--json"],
    &["services", "create", "shop", "--connection", "avito"],
    &["services", "add-key", "shop"],
    &["services", "delete-key", "shop", "1"],
    &["services", "delete", "shop"],
];

#[apply(on_both_machines!)]
async fn services_are_made_listed_and_deleted(mut machine: Machine) {
    if machine.postgres.is_some() {
        machine.output(&["keys", "generate"]).await;
    }
    let operator = machine.operator().await;
    machine.set("TOKEN_BROKER_KEY_FILE", &operator);
    let (_program, url) = machine.serve().await;
    machine.set("TOKEN_BROKER_URL", &url);
    assert_eq!(machine.output(&["healthcheck"]).await, ["ready"]);

    let none = machine.output(&["services", "list"]).await;
    assert!(none[0].starts_with("no services yet: "), "{none:?}");
    let create = ["services", "create", "shop", "--connection", "avito-*", "--verb", "token"];
    let key = machine.output(&create).await;
    assert_eq!(key.len(), 1, "a key alone, for `> shop.key`: {key:?}");
    let line = machine.refused(USAGE, &create).await;
    assert_eq!(line, "the name `shop` is taken");
    let second = machine.output(&["services", "add-key", "shop"]).await;
    assert_ne!(key, second);
    let line = machine.refused(USAGE, &["services", "add-key", "shop"]).await;
    assert!(line.contains("two"), "{line}");

    let listed = machine.output(&["services", "list"]).await;
    assert_eq!(listed[0].split_whitespace().next(), Some("SERVICE"));
    let cells: Vec<_> = listed[1].split_whitespace().collect();
    assert_eq!(cells[..3], ["shop", "avito-*", "token"]);
    let ended = machine.output(&["services", "delete-key", "shop", cells[3]]).await;
    assert_eq!(ended, [format!("key {} of service shop has ended", cells[3])]);
    let line = machine.refused(USAGE, &["services", "delete-key", "shop", "none"]).await;
    assert_eq!(line, "service `shop` has no such key");

    // A service's key is not an operator's.
    let shop = machine.write("shop.key", &second[0]);
    let line = machine.refused(USAGE, &["services", "list", "--key-file", &shop]).await;
    assert!(line.contains("for operators"), "{line}");
    let none = machine.output(&["connections", "--key-file", &shop]).await;
    assert!(none[0].starts_with("no connections yet: "), "{none:?}");
    let line = machine.refused(USAGE, &["token", "avito-main", "--key-file", &shop]).await;
    assert_eq!(line, "there is no connection `avito-main` that you may use");

    let line = machine.refused(USAGE, &["connect", "nothing"]).await;
    assert!(line.contains("`nothing`"), "{line}");
    assert_eq!(machine.output(&["services", "delete", "shop"]).await, ["service shop is deleted"]);
    let line = machine.refused(USAGE, &["services", "delete", "shop"]).await;
    assert_eq!(line, "there is no service `shop`");
    let line = machine.refused(USAGE, &["connections", "--key-file", &shop]).await;
    assert_eq!(line, format!("the broker at {url}/ knows no such key as the one in {shop}"));
}

#[tokio::test]
async fn a_key_file_is_needed_and_holds_one_key() {
    let machine = Machine::new();
    for command in COMMANDS {
        let line = machine.refused(USAGE, command).await;
        assert_eq!(line, "name a file that holds a key: --key-file or TOKEN_BROKER_KEY_FILE");
    }
    for (text, expected) in [
        ("", "cannot read"),
        ("\n", "the file is empty"),
        (&format!("{CANARY}\n{CANARY}"), "is not one key alone"),
        (&format!("Bearer {CANARY}"), "is not one key alone"),
        (&format!("{CANARY}é"), "is not one key alone"),
    ] {
        let file = machine.write("key", text);
        let line = machine.refused(USAGE, &["connections", "--key-file", &file]).await;
        assert!(line.starts_with("key: ") && line.contains(&file), "{line}");
        assert!(line.contains(expected), "{line}");
    }
    let line = machine.refused(USAGE, &["connections", "--key-file", "/nowhere/key"]).await;
    assert_eq!(line, "key: cannot read /nowhere/key: No such file or directory (os error 2)");
}

#[tokio::test]
async fn without_an_operator_the_way_to_make_one_is_told() {
    let mut machine = Machine::new();
    let (_program, url) = machine.serve().await;
    let file = machine.write("key", CANARY);
    let arguments = ["services", "list", "--url", &url, "--key-file", &file];
    let line = machine.refused(USAGE, &arguments).await;
    assert_eq!(line, "there is no operator yet; run `token-broker operators create NAME`");
    let arguments = ["token", "avito", "--url", &url, "--key-file", &file];
    let line = machine.refused(USAGE, &arguments).await;
    assert_eq!(line, format!("the broker at {url}/ knows no such key as the one in {file}"));
}

#[tokio::test]
async fn a_broker_that_is_down_is_told_as_such() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let mut machine = Machine::new();
    machine.set("TOKEN_BROKER__INTERNAL_LISTEN", &closed);
    let expected = format!("nothing answers at http://{closed}/; is the broker running there?");
    assert_eq!(machine.refused(UNAVAILABLE, &["healthcheck"]).await, expected);
    machine.set("TOKEN_BROKER_URL", &format!("http://{closed}"));
    machine.set("TOKEN_BROKER_KEY_FILE", &machine.write("key", CANARY));
    for command in COMMANDS {
        assert_eq!(machine.refused(UNAVAILABLE, command).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_a_broker_is_told_as_such() {
    let mut machine = Machine::new();
    machine.set("TOKEN_BROKER_KEY_FILE", &machine.write("key", CANARY));
    for (status, body) in [
        (StatusCode::OK, "<html>hello</html>"),
        (StatusCode::OK, ""),
        (StatusCode::OK, "{}"),
        (StatusCode::OK, "{\"access_token\": 7, \"connections\": \"\", \"services\": {}}"),
        (StatusCode::OK, "[1, 2"),
        (StatusCode::FOUND, "moved"),
        (StatusCode::NOT_FOUND, "<html>not found</html>"),
        (StatusCode::UNAUTHORIZED, "{\"error\": \"who are you\"}"),
        (StatusCode::BAD_GATEWAY, "<html>bad gateway</html>"),
    ] {
        let (url, _until) = stranger(status, body).await;
        let expected = format!(
            "what answers at {url} is not the internal listener of a token-broker; see --url"
        );
        for command in COMMANDS {
            // Success with nothing to say is all that a deletion needs to hear.
            if command.iter().any(|word| word.starts_with("delete")) && status == StatusCode::OK {
                continue;
            }
            let line =
                machine.refused(UNAVAILABLE, &[command, &["--url", &url][..]].concat()).await;
            assert_eq!(line, expected, "{command:?} of {status} {body}");
        }
        let line = machine.refused(UNAVAILABLE, &["healthcheck", "--url", &url]).await;
        assert_eq!(line, expected, "{status} {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_refusal_says_stays_one_line() {
    let mut machine = Machine::new();
    machine.set("TOKEN_BROKER_KEY_FILE", &machine.write("key", CANARY));
    let body = r#"{"code": "invalid_request", "detail": "no\n\u001b[2Jroot# "}"#;
    let (url, _until) = stranger(StatusCode::BAD_REQUEST, body).await;
    let line = machine.refused(USAGE, &["connections", "--url", &url]).await;
    assert_eq!(line, r"no\n\u{1b}[2Jroot# ");
}

/// Something that answers everything alike; gives its URL.
async fn stranger(status: StatusCode, body: &'static str) -> (String, DropGuard) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let router = Router::new().fallback(move || async move { (status, body) });
    let until = CancellationToken::new();
    let serving =
        axum::serve(listener, router).with_graceful_shutdown(until.clone().cancelled_owned());
    tokio_util::task::TaskTracker::new().spawn(async move { serving.await.unwrap() });
    (url, until.drop_guard())
}
