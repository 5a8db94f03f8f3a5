//! The internal API of a replica, as operators and services use it.

use std::time::Duration;

use reqwest::{
    Client, Method, RequestBuilder, StatusCode,
    header::{HOST, HeaderMap},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{http::client, person::Person};

/// The internal listener of a replica, and a key of each kind.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) internal_url: String,
    pub(crate) operator_key: String,
    /// May fetch the token of every connection, and nothing else.
    pub(crate) service_key: String,
    pub(crate) http: Client,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn read(response: reqwest::Response) -> Self {
        Self {
            status: response.status(),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Api {
    /// The API at this URL; the keys are still to be made.
    pub(crate) fn new(internal_url: String) -> Self {
        let (operator_key, service_key) = (String::new(), String::new());
        Self { internal_url, operator_key, service_key, http: client() }
    }

    /// The same keys at another replica.
    pub(crate) fn at(&self, internal_url: String) -> Self {
        Self { internal_url, http: client(), ..self.clone() }
    }

    /// A request that is still to be sent.
    pub(crate) fn request(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.internal_url));
        if key.is_empty() { request } else { request.bearer_auth(key) }
    }

    pub(crate) async fn ask(
        &self,
        key: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let mut request = self.request(method, path, key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::read(request.send().await.unwrap()).await
    }

    pub(crate) async fn operator(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask(&self.operator_key, method, path, body).await
    }

    /// Makes a service and returns its key.
    pub(crate) async fn service(&self, name: &str, connections: Value, verbs: Value) -> String {
        let body = json!({ "name": name, "connections": connections, "verbs": verbs });
        let answer = self.operator(Method::POST, "/v1/services", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    /// Fetches a token with the service's key.
    pub(crate) async fn token(&self, connection: &str) -> Answer {
        self.token_for(connection, &self.service_key).await
    }

    /// Fetches a token with this key.
    pub(crate) async fn token_for(&self, connection: &str, key: &str) -> Answer {
        self.ask(key, Method::GET, &format!("/v1/connections/{connection}/token"), None).await
    }

    /// Asserts that each connection serves a live token.
    pub(crate) async fn all_served(&self, names: &[String]) {
        for name in names {
            let token = self.token(name).await;
            assert_eq!(token.status, StatusCode::OK, "{name}: {token:?}");
        }
    }

    /// The connection as an operator sees it.
    pub(crate) async fn view(&self, connection: &str) -> Value {
        let path = format!("/v1/connections/{connection}");
        let answer = self.operator(Method::GET, &path, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    }

    /// `GET /health`, without a key.
    pub(crate) async fn health(&self) -> Value {
        self.ask("", Method::GET, "/health", None).await.json()
    }

    /// Makes a connection by client credentials.
    pub(crate) async fn create(&self, name: &str, client: &str) -> Value {
        let body = json!({ "name": name, "client": client, "grant_type": "client_credentials" });
        let answer = self.operator(Method::POST, "/v1/connections", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()
    }

    /// Makes a consent link; `more` is merged into the request.
    pub(crate) async fn link(&self, name: &str, client: &str, more: Value) -> String {
        let mut body = json!({ "connection": name, "client": client });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = self.operator(Method::POST, "/v1/consent-links", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["url"].as_str().unwrap().to_owned()
    }

    /// Makes a consent link and allows what it asks; returns the page at the end.
    pub(crate) async fn consent(&self, name: &str, client: &str, more: Value) -> Answer {
        let link = self.link(name, client, more).await;
        Person::new(self).consent(&link, "allow").await
    }

    /// Makes a connection whose account consents in the operator's own browser, whoever it is.
    pub(crate) async fn connect_any(&self, name: &str, client: &str) {
        let page = self.consent(name, client, json!({ "self": true })).await;
        assert!(page.text.contains("Connected"), "{name}: {page:?}");
    }

    /// Confirms an account.
    pub(crate) async fn confirm(&self, name: &str, account: impl Serialize) -> Answer {
        let path = format!("/v1/connections/{name}/confirm");
        self.operator(Method::POST, &path, Some(json!({ "account": account }))).await
    }

    /// Refreshes a connection at an operator's word.
    pub(crate) async fn refresh(&self, name: &str) -> Answer {
        self.operator(Method::POST, &format!("/v1/connections/{name}/refresh"), None).await
    }

    /// Deletes a connection.
    pub(crate) async fn delete(&self, name: &str) -> Answer {
        self.operator(Method::DELETE, &format!("/v1/connections/{name}"), None).await
    }

    /// Asks until the connection is live, for what happens after an answer was given.
    pub(crate) async fn until_active(&self, connection: &str) {
        let active = async { while self.view(connection).await["state"] != "active" {} };
        let active = tokio::time::timeout(Duration::from_secs(30), active).await;
        assert!(active.is_ok(), "{}", self.view(connection).await);
    }

    /// Uses a token as a service does: with the headers and the base URL that came with it.
    pub(crate) async fn use_token(&self, token: &Value, path: &str) -> Answer {
        // Our test client resolves no *.localhost: the address is 127.0.0.1, the host stays.
        let url: url::Url =
            format!("{}{path}", token["api_base_url"].as_str().unwrap()).parse().unwrap();
        let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let at = format!("http://127.0.0.1:{}{}", url.port().unwrap(), url.path());
        let mut request = self.http.get(at).header(HOST, host);
        for (name, value) in token["headers"].as_object().unwrap() {
            request = request.header(name, value.as_str().unwrap());
        }
        Answer::read(request.send().await.unwrap()).await
    }
}
