//! The simulators, through real sockets: each grant of each provider, and everything they refuse.

mod admitad;
mod amocrm;
mod application;
mod avito;
mod divar;
mod faults;
mod rotation;

use reqwest::{Client, RequestBuilder, Response, StatusCode, redirect::Policy};
use serde_json::Value;
use token_broker::{
    clock::Clock,
    simulator::{Simulated, Simulator, SimulatorSettings, Simulators},
};
use url::Url;

const REDIRECT_URI: &str = "http://127.0.0.1:9/callback/test";

/// Running simulators, one of which is looked at, and a client that follows nothing.
struct SimulatedProvider {
    simulators: Simulators,
    which: Simulated,
    http: Client,
}

/// An answer, read whole.
#[derive(Debug)]
struct Answer {
    status: u16,
    content_type: String,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    fn token(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_else(|| panic!("no {name}: {}", self.text)).to_owned()
    }

    /// Where a callback leads: the parameters, and nothing but the registered URI before them.
    fn callback(&self) -> Vec<(String, String)> {
        assert_eq!(self.status, 303, "{}", self.text);
        let url = Url::parse(self.headers["location"].to_str().unwrap()).unwrap();
        assert!(url.as_str().starts_with(REDIRECT_URI), "{url}");
        url.query_pairs().into_owned().collect()
    }

    fn callback_param(&self, name: &str) -> String {
        let params = self.callback();
        let found = params.iter().find(|(one, _)| one == name);
        found.unwrap_or_else(|| panic!("no {name} in {params:?}")).1.clone()
    }
}

async fn read(response: Response) -> reqwest::Result<Answer> {
    let status = response.status();
    let headers = response.headers().clone();
    let content_type = headers.get("content-type").map(|value| value.to_str().unwrap().to_owned());
    Ok(Answer {
        status: status.as_u16(),
        content_type: content_type.unwrap_or_default(),
        headers,
        text: response.text().await?,
    })
}

async fn send(request: RequestBuilder) -> Answer {
    read(request.send().await.unwrap()).await.unwrap()
}

impl SimulatedProvider {
    async fn new(which: Simulated, change: impl FnOnce(&mut SimulatorSettings)) -> Self {
        let mut settings = SimulatorSettings::default();
        for uri in [
            &mut settings.admitad.redirect_uri,
            &mut settings.amocrm.redirect_uri,
            &mut settings.avito.redirect_uri,
            &mut settings.kommo.redirect_uri,
        ] {
            *uri = Some(REDIRECT_URI.to_owned());
        }
        settings.divar.redirect_uris = vec![REDIRECT_URI.to_owned()];
        change(&mut settings);
        #[expect(clippy::disallowed_methods, reason = "a plain client stands for any caller")]
        let http = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        let simulators = Simulators::start(settings, Clock::system()).await.unwrap();
        Self { simulators, which, http }
    }

    fn simulator(&self) -> &Simulator {
        self.simulators.of(self.which)
    }

    /// A URL on one of the provider's hosts; the connection always goes to 127.0.0.1.
    fn request(&self, method: reqwest::Method, host: &str, path: &str) -> RequestBuilder {
        let port = self.simulator().port();
        self.http
            .request(method, format!("http://127.0.0.1:{port}{path}"))
            .header("host", format!("{host}:{port}"))
    }

    async fn get(&self, host: &str, path: &str) -> Answer {
        send(self.request(reqwest::Method::GET, host, path)).await
    }

    fn post(&self, host: &str, path: &str) -> RequestBuilder {
        self.request(reqwest::Method::POST, host, path)
    }

    /// Opens the consent page, which must be shown, and presses a button.
    async fn consent(&self, path: &str, query: &[(&str, &str)], decision: &str) -> Answer {
        self.consent_as(path, query, &[("decision", decision)]).await
    }

    async fn consent_as(
        &self,
        path: &str,
        query: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Answer {
        let path = with_query(path, query);
        let page = self.get("localhost", &path).await;
        assert_eq!(page.status, 200, "{}", page.text);
        assert!(page.text.contains("no real account"), "{}", page.text);
        send(self.post("localhost", &path).form(form)).await
    }

    /// Asserts that a page of the provider's own ends the journey, with no way back.
    async fn shows_a_problem(&self, path: &str, query: &[(&str, &str)], status: StatusCode) {
        for method in [reqwest::Method::GET, reqwest::Method::POST] {
            let request = self.request(method, "localhost", &with_query(path, query));
            let answer = send(request.form(&[("decision", "allow")])).await;
            assert_eq!(answer.status, status.as_u16(), "{}", answer.text);
            assert!(answer.content_type.starts_with("text/html"), "{}", answer.content_type);
            assert!(!answer.headers.contains_key("location"), "{:?}", answer.headers);
        }
    }
}

fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    format!("{path}?{query}")
}

/// The fields of a form with one of them changed or, with `None`, left out.
fn with<'a>(
    fields: &[(&'a str, &'a str)],
    name: &'a str,
    value: Option<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    let others = fields.iter().copied().filter(|(one, _)| *one != name);
    others.chain(value.map(|value| (name, value))).collect()
}
