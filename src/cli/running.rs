//! A running broker, asked over its internal listener.

use std::{path::PathBuf, time::Duration};

use reqwest::{Client, Method, StatusCode, redirect::Policy};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use url::Url;

use super::{CliError, args::Remote};
use crate::config::read_secret;

/// Longer than the longest wait for a refresh.
const TIMEOUT: Duration = Duration::from_secs(80);

/// A running broker.
pub(super) struct ApiClient {
    url: Url,
    key: Option<Key>,
    http: Client,
}

/// The key to show, and the file it is from.
struct Key {
    file: PathBuf,
    secret: SecretString,
}

/// A JSON answer of what ought to be a token-broker.
pub(super) struct Answer {
    pub(super) json: Value,
    url: Url,
}

impl Answer {
    /// A text that a broker's answer always has.
    pub(super) fn text(&self, key: &str) -> Result<&str, CliError> {
        self.json[key].as_str().ok_or_else(|| stranger(&self.url))
    }

    /// A list that a broker's answer always has.
    pub(super) fn list(&self, key: &str) -> Result<&[Value], CliError> {
        self.json[key].as_array().map(Vec::as_slice).ok_or_else(|| stranger(&self.url))
    }
}

impl ApiClient {
    /// The broker at an address, asked without a key.
    pub(super) fn at(url: &Url) -> Result<Self, CliError> {
        Ok(Self { url: url.clone(), key: None, http: http_client()? })
    }

    /// The broker and the key that the command line names.
    pub(super) fn of(remote: &Remote) -> Result<Self, CliError> {
        let file = remote.key_file.clone().ok_or_else(|| {
            CliError::usage("name a file that holds a key: --key-file or TOKEN_BROKER_KEY_FILE")
        })?;
        let secret =
            read_secret(&file).map_err(|error| CliError::usage(format!("key: {error}")))?;
        if !is_one_word(&secret) {
            return Err(CliError::usage(format!("key: {} is not one key alone", file.display())));
        }
        Ok(Self { key: Some(Key { file, secret }), ..Self::at(&remote.url)? })
    }

    pub(super) async fn get(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Answer, CliError> {
        self.ask(Method::GET, path, query, None).await
    }

    pub(super) async fn post(&self, path: &[&str], body: &Value) -> Result<Answer, CliError> {
        self.ask(Method::POST, path, &[], Some(body)).await
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<(), CliError> {
        self.ask(Method::DELETE, path, &[], None).await.map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<Answer, CliError> {
        let (status, body) = self.send(method, path, query, body).await?;
        let json: Option<Value> = match body.as_slice() {
            [] => Some(Value::Null),
            body => serde_json::from_slice(body).ok(),
        };
        match json {
            Some(json) if status.is_success() => Ok(Answer { json, url: self.url.clone() }),
            Some(json) => Err(self.refusal(status, &json)),
            None => Err(stranger(&self.url)),
        }
    }

    /// Sends a request; gives the status and the body.
    #[expect(clippy::disallowed_methods, reason = "the key is shown to the broker it is for")]
    pub(super) async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, Vec<u8>), CliError> {
        let mut url = self.url.clone();
        url.path_segments_mut().map_err(|()| stranger(&self.url))?.pop_if_empty().extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.secret.expose_secret());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let failed = |error: reqwest::Error| {
            if error.is_connect() {
                let what = format!("nothing answers at {}; is the broker running there?", self.url);
                CliError::unavailable(what)
            } else if error.is_timeout() {
                CliError::unavailable(format!("{} did not answer in time", self.url))
            } else {
                stranger(&self.url)
            }
        };
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let body = response.bytes().await.map_err(failed)?;
        Ok((status, body.to_vec()))
    }

    /// The advice for a person at the command line on a refusal.
    fn refusal(&self, status: StatusCode, problem: &Value) -> CliError {
        let (Some(code), Some(detail)) = (problem["code"].as_str(), problem["detail"].as_str())
        else {
            return stranger(&self.url);
        };
        match (code, &self.key) {
            ("unauthorized", Some(key)) => {
                let file = key.file.display();
                return CliError::usage(format!(
                    "the broker at {} knows no such key as the one in {file}",
                    self.url
                ));
            }
            // Nothing is wrong with the question, but there is no token now.
            (
                "consent_required"
                | "frozen"
                | "not_connected"
                | "pending_confirm"
                | "revoked"
                | "too_many_requests"
                | "provider_misconfigured"
                | "provider_unavailable",
                _,
            ) => return CliError::unavailable(detail),
            _ => {}
        }
        match status {
            StatusCode::SERVICE_UNAVAILABLE => CliError::unavailable(detail),
            status if status.is_server_error() => CliError::internal(detail),
            _ => CliError::usage(detail),
        }
    }
}

/// The answer is not, or not only, a token-broker's.
pub(super) fn stranger(url: &Url) -> CliError {
    CliError::unavailable(format!(
        "what answers at {url} is not the internal listener of a token-broker; see --url"
    ))
}

#[expect(clippy::disallowed_methods, reason = "only the kind of its characters is looked at")]
fn is_one_word(key: &SecretString) -> bool {
    key.expose_secret().bytes().all(|byte| byte.is_ascii_graphic())
}

#[expect(clippy::disallowed_methods, reason = "a broker is no provider: loopback, plain http")]
fn http_client() -> Result<Client, CliError> {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(TIMEOUT)
        .build()
        .map_err(CliError::internal)
}
