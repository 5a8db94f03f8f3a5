//! A person with a browser, as far as a consent needs one.

use std::collections::BTreeMap;

use reqwest::{Client, Method, StatusCode, header};

use super::{
    api::{Answer, Api},
    http::client,
};

/// A person with a browser: cookies by host, redirects followed one by one. A clone is another tab.
#[derive(Clone)]
pub(crate) struct Person {
    http: Client,
    cookies: BTreeMap<String, String>,
}

impl Person {
    /// A person with a browser of their own.
    pub(crate) fn alone() -> Self {
        Self { http: client(), cookies: BTreeMap::new() }
    }

    pub(crate) fn new(api: &Api) -> Self {
        Self { http: api.http.clone(), cookies: BTreeMap::new() }
    }

    pub(crate) async fn get(&mut self, url: &str) -> Answer {
        self.send(Method::GET, url, &[], None).await
    }

    /// Presses the button of a page of this URL.
    pub(crate) async fn press(&mut self, url: &str) -> Answer {
        let origin = url::Url::parse(url).unwrap().origin().ascii_serialization();
        let headers = [("origin", origin.as_str()), ("sec-fetch-site", "same-origin")];
        self.send(Method::POST, url, &headers, None).await
    }

    /// From the link to the provider's consent page; returns that page's URL.
    pub(crate) async fn start(&mut self, link: &str) -> String {
        let page = self.get(link).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        let pressed = self.press(link).await;
        assert_eq!(pressed.status, StatusCode::SEE_OTHER, "{pressed:?}");
        pressed.header("location").to_owned()
    }

    /// Decides at the provider; returns the callback's URL.
    pub(crate) async fn decide(&mut self, provider: &str, decision: &str) -> String {
        let page = self.get(provider).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        let form = [("decision", decision)];
        let decided = self.send(Method::POST, provider, &[], Some(&form)).await;
        assert!(decided.status.is_redirection(), "{decided:?}");
        decided.header("location").to_owned()
    }

    /// The whole way; returns the page at its end.
    pub(crate) async fn consent(&mut self, link: &str, decision: &str) -> Answer {
        let provider = self.start(link).await;
        let callback = self.decide(&provider, decision).await;
        let back = self.get(&callback).await;
        assert_eq!(back.status, StatusCode::SEE_OTHER, "{back:?}");
        let location = back.header("location").to_owned();
        self.get(&location).await
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        form: Option<&[(&str, &str)]>,
    ) -> Answer {
        let host = url::Url::parse(url).unwrap().host_str().unwrap().to_owned();
        let mut request = self.http.request(method, url);
        if let Some(cookie) = self.cookies.get(&host) {
            request = request.header(header::COOKIE, cookie);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(form) = form {
            request = request.form(form);
        }
        let answer = Answer::read(request.send().await.unwrap()).await;
        if let Some(set) = answer.headers.get(header::SET_COOKIE) {
            let cookie = set.to_str().unwrap().split(';').next().unwrap().to_owned();
            self.cookies.insert(host, cookie);
        }
        answer
    }
}
