//! `token`, `connect` and `connections`: what a running broker knows of the connections.

use std::path::Path;

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{
    CliError,
    args::{Connect, List, Token},
    running::ApiClient,
    say,
    table::{say_json, table, text},
};
use crate::config::read_secret;

pub(crate) async fn token(args: &Token) -> Result<(), CliError> {
    let query: Vec<_> =
        args.min_ttl.iter().map(|seconds| ("min_ttl", seconds.to_string())).collect();
    let path = ["v1", "connections", args.connection.as_str(), "token"];
    let answer = ApiClient::of(&args.remote)?.get(&path, &query).await?;
    let token = answer.text("access_token")?;
    if args.json { say_json(&answer.json) } else { say(token) }
}

pub(crate) async fn connect(args: &Connect) -> Result<(), CliError> {
    let broker = ApiClient::of(&args.remote)?;
    let connection = args.connection.as_ref().unwrap_or(&args.client);
    let mut body = json!({ "client": args.client });
    if !args.scopes.is_empty() {
        body["scopes"] = json!(args.scopes);
    }
    if let Some(account) = &args.expected_account {
        body["expected_account"] = json!(account);
    }
    if let (Some(file), Some(login), Some(host)) =
        (&args.api_key_file, &args.login, &args.account_host)
    {
        body["name"] = json!(connection);
        body["api_key_exchange"] = api_key_exchange(file, login, host)?;
        let answer = broker.post(&["v1", "connections"], &body).await?;
        return say(&format!(
            "{}: the provider accepted the API key and sends a code to the callback; see \
             `token-broker connections`",
            answer.text("name")?
        ));
    }
    body["connection"] = json!(connection);
    body["self"] = json!(args.own_browser);
    let answer = broker.post(&["v1", "consent-links"], &body).await?;
    say(answer.text("url")?)
}

#[expect(clippy::disallowed_methods, reason = "the API key goes to the broker that exchanges it")]
fn api_key_exchange(file: &Path, login: &str, host: &str) -> Result<Value, CliError> {
    let key = read_secret(file).map_err(|error| CliError::usage(format!("API key: {error}")))?;
    Ok(json!({ "account_host": host, "login": login, "api_key": key.expose_secret() }))
}

pub(crate) async fn connections(args: &List) -> Result<(), CliError> {
    let answer = ApiClient::of(&args.remote)?.get(&["v1", "connections"], &[]).await?;
    let connections = answer.list("connections")?;
    if args.json {
        return say_json(&answer.json);
    }
    if connections.is_empty() {
        return say("no connections yet: `token-broker connect CLIENT` makes a consent link");
    }
    let rows = connections.iter().map(|connection| {
        let called = |account: &Value| {
            account["name"].as_str().or(account["id"].as_str()).map(str::to_owned)
        };
        let account = match called(&connection["pending_account"]) {
            Some(pending) => format!("{pending} (to be confirmed)"),
            None => called(&connection["account"]).unwrap_or_else(|| "-".to_owned()),
        };
        let state = match connection["reason"].as_str() {
            Some(reason) => format!("{} ({reason})", text(connection, "state")),
            None => text(connection, "state").to_owned(),
        };
        let error = &connection["last_error"]["message"];
        [
            text(connection, "name").to_owned(),
            text(connection, "provider").to_owned(),
            state,
            account,
            text(connection, "expires_at").to_owned(),
            error.as_str().unwrap_or("-").to_owned(),
        ]
    });
    table(["CONNECTION", "PROVIDER", "STATE", "ACCOUNT", "TOKEN UNTIL", "LAST ERROR"], rows)?;
    for connection in connections {
        if let Some(task) = connection["task"].as_str() {
            say(&format!("to do for {}: {task}", text(connection, "name")))?;
        }
    }
    Ok(())
}
