//! Commands that talk to a running broker over its internal listener.

use std::{path::Path, time::Duration};

use reqwest::{Client, Method, StatusCode, redirect::Policy};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::{
    Failure,
    args::{Connect, Healthcheck, List, Remote, ServiceAction, Services, Token},
    environment, say,
};
use crate::config::{Config, read_secret};

/// Longer than the longest wait for a refresh.
const TIMEOUT: Duration = Duration::from_secs(80);

/// A running broker and the key to show it.
struct Broker {
    url: Url,
    key: Option<SecretString>,
    http: Client,
}

impl Broker {
    fn new(url: &Url, key: Option<SecretString>) -> Result<Self, Failure> {
        if url.cannot_be_a_base() {
            return Err(Failure::usage("the broker's URL must be like http://127.0.0.1:8081"));
        }
        Ok(Self { url: url.clone(), key, http: http_client()? })
    }

    fn of(remote: &Remote) -> Result<Self, Failure> {
        let path = remote.key_file.as_deref().ok_or_else(|| {
            Failure::usage("name a file with a key: --key-file FILE, or TOKEN_BROKER_KEY_FILE")
        })?;
        let key =
            read_secret(path).map_err(|error| Failure::usage(format!("key file: {error}")))?;
        Self::new(&remote.url, Some(key))
    }

    /// Sends a request whose answer is JSON.
    #[expect(clippy::disallowed_methods, reason = "the key is shown to the broker it is for")]
    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::usage("the broker's URL has no path"))?
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose_secret());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| {
            let why = if error.is_timeout() { "did not answer in time" } else { "does not answer" };
            Failure::unavailable(format!("the broker at {} {why}; is it running?", self.url))
        })?;
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        if status.is_success() {
            if body.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&body).map_err(|_| {
                Failure::unavailable(format!("{} does not answer like a token-broker", self.url))
            });
        }
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = match (problem["code"].as_str(), problem["detail"].as_str()) {
            (Some(code), Some(detail)) => format!("{code}: {detail}"),
            _ => format!("{} answers {status}; is it a token-broker?", self.url),
        };
        Err(match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => {
                Failure::unavailable(message)
            }
            status if status.is_server_error() => Failure::internal(message),
            _ => Failure::usage(message),
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a broker is no provider: loopback, plain http")]
fn http_client() -> Result<Client, Failure> {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(TIMEOUT)
        .build()
        .map_err(Failure::internal)
}

pub(crate) async fn token(args: &Token) -> Result<(), Failure> {
    let query: Vec<_> =
        args.min_ttl.iter().map(|seconds| ("min_ttl", seconds.to_string())).collect();
    let path = ["v1", "connections", args.connection.as_str(), "token"];
    let answer = Broker::of(&args.remote)?.ask(Method::GET, &path, &query, None).await?;
    if args.json {
        return say_json(&answer);
    }
    say(text(&answer, "access_token"))
}

pub(crate) async fn connect(args: &Connect) -> Result<(), Failure> {
    let broker = Broker::of(&args.remote)?;
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
        let answer = broker.ask(Method::POST, &["v1", "connections"], &[], Some(&body)).await?;
        return say(&format!(
            "{}: the provider accepted the API key and sends a code to the callback; see \
             `token-broker connections`",
            text(&answer, "name")
        ));
    }
    body["connection"] = json!(connection);
    body["self"] = json!(args.own_browser);
    let answer = broker.ask(Method::POST, &["v1", "consent-links"], &[], Some(&body)).await?;
    say(text(&answer, "url"))
}

#[expect(clippy::disallowed_methods, reason = "the API key goes to the broker that exchanges it")]
fn api_key_exchange(file: &Path, login: &str, host: &str) -> Result<Value, Failure> {
    let key = read_secret(file).map_err(|error| Failure::usage(format!("API key: {error}")))?;
    Ok(json!({ "account_host": host, "login": login, "api_key": key.expose_secret() }))
}

pub(crate) async fn connections(args: &List) -> Result<(), Failure> {
    let answer =
        Broker::of(&args.remote)?.ask(Method::GET, &["v1", "connections"], &[], None).await?;
    if args.json {
        return say_json(&answer);
    }
    let connections = answer["connections"].as_array().cloned().unwrap_or_default();
    if connections.is_empty() {
        return say("no connections yet: `token-broker connect CLIENT` makes a consent link");
    }
    let rows = connections.iter().map(|connection| {
        let account = &connection["account"];
        let account = account["name"].as_str().or(account["id"].as_str()).unwrap_or("-");
        let error = &connection["last_error"]["message"];
        [
            text(connection, "name").to_owned(),
            text(connection, "provider").to_owned(),
            text(connection, "state").to_owned(),
            account.to_owned(),
            text(connection, "expires_at").to_owned(),
            error.as_str().unwrap_or("-").to_owned(),
        ]
    });
    table(["CONNECTION", "PROVIDER", "STATE", "ACCOUNT", "TOKEN UNTIL", "LAST ERROR"], rows)
}

pub(crate) async fn services(args: &Services) -> Result<(), Failure> {
    match &args.action {
        ServiceAction::List(list) => {
            let broker = Broker::of(&list.remote)?;
            let answer = broker.ask(Method::GET, &["v1", "services"], &[], None).await?;
            if list.json {
                return say_json(&answer);
            }
            let services = answer["services"].as_array().cloned().unwrap_or_default();
            let rows = services.iter().map(|service| {
                let keys: Vec<String> = service["keys"]
                    .as_array()
                    .map(|keys| keys.iter().map(|key| text(key, "id").to_owned()).collect())
                    .unwrap_or_default();
                [
                    text(service, "name").to_owned(),
                    words(&service["connections"]),
                    words(&service["verbs"]),
                    keys.join(" "),
                ]
            });
            table(["SERVICE", "CONNECTIONS", "VERBS", "KEY IDS"], rows)
        }
        ServiceAction::Create { name, connections, verbs, expires_at, remote } => {
            let mut body = json!({ "name": name, "connections": connections });
            if !verbs.is_empty() {
                body["verbs"] = json!(verbs);
            }
            if let Some(end) = expires_at {
                body["expires_at"] = json!(end);
            }
            let broker = Broker::of(remote)?;
            let answer = broker.ask(Method::POST, &["v1", "services"], &[], Some(&body)).await?;
            say(text(&answer, "key"))
        }
        ServiceAction::AddKey { name, remote } => {
            let path = ["v1", "services", name.as_str(), "keys"];
            let broker = Broker::of(remote)?;
            let answer = broker.ask(Method::POST, &path, &[], Some(&json!({}))).await?;
            say(text(&answer, "key"))
        }
        ServiceAction::DeleteKey { name, key, remote } => {
            let path = ["v1", "services", name.as_str(), "keys", key.as_str()];
            Broker::of(remote)?.ask(Method::DELETE, &path, &[], None).await?;
            say(&format!("key {key} of service {name} has ended"))
        }
        ServiceAction::Delete { name, remote } => {
            let path = ["v1", "services", name.as_str()];
            Broker::of(remote)?.ask(Method::DELETE, &path, &[], None).await?;
            say(&format!("service {name} is deleted"))
        }
    }
}

pub(crate) async fn healthcheck(config: Option<&Path>, args: &Healthcheck) -> Result<(), Failure> {
    let url = if let Some(url) = &args.url {
        url.clone()
    } else {
        // The listener, not the URL: a container checks itself.
        let mut listen = Config::load(config, environment())?.internal_listen;
        if listen.ip().is_unspecified() {
            listen.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        Url::parse(&format!("http://{listen}")).map_err(Failure::internal)?
    };
    let broker = Broker::new(&url, None)?;
    match broker.ask(Method::GET, &["health", "ready"], &[], None).await {
        Ok(_) => say("ready"),
        Err(failure) => Err(Failure::unavailable(failure.message)),
    }
}

fn say_json(value: &Value) -> Result<(), Failure> {
    say(&serde_json::to_string_pretty(value).map_err(Failure::internal)?)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

fn words(value: &Value) -> String {
    let words = value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect());
    words.map(|words: Vec<_>| words.join(" ")).unwrap_or_default()
}

/// Prints rows under headings, as wide as they need to be.
fn table<const N: usize>(
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<(), Failure> {
    let rows: Vec<_> = std::iter::once(headings.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("  ").trim_end())?;
    }
    Ok(())
}
