use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{
    Simulated,
    settings::{AmocrmAccount, AmocrmSettings, RefreshMode},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Answer, REDIRECT_URI, SimulatedProvider, send, with};

const HOST: &str = "demo.amocrm.localhost";
const ID: &str = "5130a1ce-51a7-4ed0-8bad-c0ffee000001";
const QUERY: [(&str, &str); 3] =
    [("client_id", ID), ("state", "state-1"), ("mode", "post_message")];
const CODE: [(&str, &str); 4] = [
    ("grant_type", "authorization_code"),
    ("client_id", ID),
    ("client_secret", "simulated-integration-secret"),
    ("redirect_uri", REDIRECT_URI),
];
const TOKEN: &str = "/oauth2/access_token";

async fn amocrm(change: impl FnOnce(&mut AmocrmSettings)) -> SimulatedProvider {
    SimulatedProvider::new(Simulated::Amocrm, |settings| change(&mut settings.amocrm)).await
}

fn second_account(settings: &mut AmocrmSettings) {
    settings.accounts.push(AmocrmAccount {
        id: 20_000_002,
        subdomain: "second".into(),
        ..AmocrmAccount::default()
    });
}

fn json_of(fields: &[(&str, &str)]) -> Value {
    fields.iter().map(|&(name, value)| (name.to_owned(), json!(value))).collect()
}

impl SimulatedProvider {
    async fn amocrm_post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let host = format!("demo.{}.localhost", self.which);
        send(self.post(&host, path).json(&json_of(fields))).await
    }

    async fn amocrm_code(&self) -> String {
        self.consent("/oauth", &QUERY, "allow").await.callback_param("code")
    }

    async fn amocrm_redeem(&self, code: &str) -> Answer {
        self.amocrm_post(TOKEN, &with(&CODE, "code", Some(code))).await
    }

    pub(super) async fn amocrm_grant(&self) -> Answer {
        let code = self.amocrm_code().await;
        self.amocrm_redeem(&code).await
    }

    pub(super) async fn amocrm_refresh(&self, refresh_token: &str) -> Answer {
        let fields = with(&CODE, "grant_type", Some("refresh_token"));
        self.amocrm_post(TOKEN, &with(&fields, "refresh_token", Some(refresh_token))).await
    }

    async fn amocrm_account(&self, host: &str, token: &str) -> Answer {
        send(self.request(Method::GET, host, "/api/v4/account").bearer_auth(token)).await
    }
}

fn refused(answer: &Answer, status: u16, hint: &str) {
    assert_eq!(answer.content_type, "application/problem+json");
    let expected = json!({
        "hint": hint,
        "title": "Некорректный запрос",
        "type": "https://developers.amocrm.ru/v3/errors/OAuthProblemJson",
        "status": status,
        "detail": "В запросе отсутствует ряд параметров или параметры невалидны",
    });
    assert_eq!((answer.status, answer.json()), (status, expected));
}

fn refused_client(answer: &Answer) {
    let expected = json!({
        "title": "Некорректный клиент",
        "type": "https://developers.amocrm.ru/v3/errors/OAuthProblemJson",
        "status": 401,
        "detail": "Авторизация клиента не прошла",
    });
    assert_eq!((answer.status, answer.json()), (401, expected));
}

#[tokio::test]
async fn the_callback_names_the_account_and_the_code_gives_a_pair() {
    let provider = amocrm(|_| ()).await;
    let callback = provider.consent("/oauth", &QUERY, "allow").await;
    for (name, value) in
        [("state", "state-1"), ("referer", HOST), ("platform", "1"), ("client_id", ID)]
    {
        assert_eq!(callback.callback_param(name), value);
    }
    let grant = provider.amocrm_redeem(&callback.callback_param("code")).await;
    let names: Vec<_> = grant.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["access_token", "expires_in", "refresh_token", "token_type"]);
    let (access, refresh) = (grant.token("access_token"), grant.token("refresh_token"));
    assert!((900..1_200).contains(&access.len()), "{}", access.len());
    assert!((900..1_100).contains(&refresh.len()), "{}", refresh.len());
    assert!(refresh.starts_with("def50200"));
    let claims = URL_SAFE_NO_PAD.decode(access.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["aud"], &claims["account_id"]), (&json!(ID), &json!(20_000_001)));
    assert_eq!(claims["api_domain"], "api-b.amocrm.localhost");

    let account = provider.amocrm_account(HOST, &access).await;
    assert_eq!((account.status, &account.json()["subdomain"]), (200, &json!("demo")));
    let second = provider.amocrm_refresh(&refresh).await;
    assert_eq!(second.status, 200);
    assert_eq!(provider.amocrm_account(HOST, &second.token("access_token")).await.status, 200);
}

#[tokio::test]
async fn old_tokens_do_not_name_their_shard() {
    let provider = amocrm(|settings| settings.api_domain = false).await;
    let access = provider.amocrm_grant().await.token("access_token");
    let claims = URL_SAFE_NO_PAD.decode(access.split('.').nth(1).unwrap()).unwrap();
    assert!(!String::from_utf8(claims).unwrap().contains("api_domain"));
}

#[tokio::test]
async fn kommo_has_its_own_hosts_and_tells_its_time() {
    let provider =
        SimulatedProvider::new(Simulated::Kommo, |settings| settings.kommo.server_time_skew = 600)
            .await;
    let callback = provider.consent("/oauth", &QUERY, "allow").await;
    assert_eq!(callback.callback_param("referer"), "demo.kommo.localhost");
    assert!(callback.callback().iter().all(|(name, _)| name != "platform"));
    let code = callback.callback_param("code");
    let fields = json_of(&with(&CODE, "code", Some(&code)));
    let elsewhere = send(provider.post(HOST, TOKEN).json(&fields)).await;
    assert_eq!((elsewhere.status, elsewhere.text.as_str()), (404, "No such simulated host\n"));
    let before = provider.simulator().oracle().now.as_second();
    let grant = send(provider.post("demo.kommo.localhost", TOKEN).json(&fields)).await;
    let ahead = grant.json()["server_time"].as_i64().unwrap() - before;
    assert!((600..660).contains(&ahead), "{ahead}");
    let exchange = provider.post("demo.kommo.localhost", "/oauth2/exchange_api_key");
    assert_eq!(send(exchange.json(&json!({}))).await.status, 404);
}

#[tokio::test]
async fn a_refusal_names_the_client_and_a_wrong_client_never_comes_back() {
    let provider = amocrm(|_| ()).await;
    let callback = provider.consent("/oauth/", &QUERY, "deny").await.callback();
    let expected = [("error", "access_denied"), ("client_id", ID), ("state", "state-1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(callback, expected);
    let query = with(&QUERY, "client_id", Some("5130a1ce-51a7-4ed0-8bad-c0ffee000002"));
    provider.shows_a_problem("/oauth", &query, StatusCode::BAD_REQUEST).await;
}

#[tokio::test]
async fn json_and_form_are_read_alike_and_basic_is_not() {
    let provider = amocrm(|_| ()).await;
    let code = provider.amocrm_code().await;
    let form = with(&CODE, "code", Some(&code));
    assert_eq!(send(provider.post(HOST, TOKEN).form(&form)).await.status, 200);
    let without = with(&with(&form, "client_id", None), "client_secret", None);
    let basic = provider
        .post(HOST, TOKEN)
        .basic_auth(ID, Some("simulated-integration-secret"))
        .json(&json_of(&without));
    refused(&send(basic).await, 400, "Check the `client_id` parameter");
}

#[tokio::test]
async fn every_fault_of_a_token_request_has_its_hint() {
    let provider = amocrm(second_account).await;
    let code = provider.amocrm_code().await;
    let fields = with(&CODE, "code", Some(&code));
    for (name, value, hint) in [
        ("grant_type", None, "Check that all required parameters have been provided"),
        (
            "grant_type",
            Some("client_credentials"),
            "Check that all required parameters have been provided",
        ),
        ("client_id", None, "Check the `client_id` parameter"),
        ("client_id", Some("not a uuid"), "Check the `client_id` parameter"),
        ("client_secret", None, "Check the `client_secret` parameter"),
        ("redirect_uri", None, "Check the `redirect_uri` parameter"),
        (
            "redirect_uri",
            Some("http://127.0.0.1:9/callback/test/"),
            "Redirect URI is not associated with client",
        ),
        ("code", None, "Check the `code` parameter"),
        ("code", Some("def50200"), "Cannot decrypt the authorization code"),
    ] {
        refused(&provider.amocrm_post(TOKEN, &with(&fields, name, value)).await, 400, hint);
    }
    refused_client(&provider.amocrm_post(TOKEN, &with(&fields, "client_secret", Some("no"))).await);

    let elsewhere = provider.post("second.amocrm.localhost", TOKEN).json(&json_of(&fields));
    refused(&send(elsewhere).await, 400, "Invalid account");
    let nowhere = provider.post("third.amocrm.localhost", TOKEN).json(&json_of(&fields));
    assert_eq!(send(nowhere).await.status, 404);

    assert_eq!(provider.amocrm_redeem(&code).await.status, 200, "no refusal spent the code");
    refused(&provider.amocrm_redeem(&code).await, 400, "Authorization code has been revoked");
    let late = provider.amocrm_code().await;
    provider.simulator().advance_clock(Duration::from_mins(20));
    refused(&provider.amocrm_redeem(&late).await, 400, "Authorization code has expired");
}

#[tokio::test]
async fn a_refresh_needs_the_redirect_uri_and_a_live_token() {
    let provider = amocrm(|_| ()).await;
    let refresh = provider.amocrm_grant().await.token("refresh_token");
    let fields = with(&CODE, "grant_type", Some("refresh_token"));
    refused(
        &provider.amocrm_post(TOKEN, &fields).await,
        400,
        "Check the `refresh_token` parameter",
    );
    let fields = with(&fields, "refresh_token", Some(&refresh));
    let without = provider.amocrm_post(TOKEN, &with(&fields, "redirect_uri", None)).await;
    refused(&without, 400, "Check the `redirect_uri` parameter");
    refused(&provider.amocrm_refresh("def50200").await, 401, "Cannot decrypt the refresh token");

    let second = provider.amocrm_refresh(&refresh).await.token("refresh_token");
    refused(&provider.amocrm_refresh(&refresh).await, 401, "Token has been revoked");
    provider.simulator().advance_clock(Duration::from_hours(89 * 24));
    let third = provider.amocrm_refresh(&second).await.token("refresh_token");
    provider.simulator().advance_clock(Duration::from_hours(90 * 24));
    refused(&provider.amocrm_refresh(&third).await, 401, "Token has expired");
}

#[tokio::test]
async fn in_lenient_mode_the_old_token_works_until_the_new_pair_is_used() {
    let provider = amocrm(|settings| settings.refresh_mode = RefreshMode::Lenient).await;
    let old = provider.amocrm_grant().await.token("refresh_token");
    assert_eq!(provider.amocrm_refresh(&old).await.status, 200);
    let new = provider.amocrm_refresh(&old).await;
    assert_eq!(provider.amocrm_account(HOST, &new.token("access_token")).await.status, 200);
    refused(&provider.amocrm_refresh(&old).await, 401, "Token has been revoked");
    assert_eq!(provider.amocrm_refresh(&new.token("refresh_token")).await.status, 200);
}

#[tokio::test]
async fn the_account_call_takes_only_a_live_token_of_that_account() {
    let provider = amocrm(second_account).await;
    let access = provider.amocrm_grant().await.token("access_token");
    let unauthorized = json!({
        "title": "Unauthorized", "type": "https://httpstatus.es/401", "status": 401,
        "detail": "Invalid user name or password",
    });
    for (host, token) in [(HOST, "never issued"), ("second.amocrm.localhost", &access)] {
        let answer = provider.amocrm_account(host, token).await;
        assert_eq!((answer.status, answer.json()), (401, unauthorized.clone()));
    }
    provider.simulator().advance_clock(Duration::from_hours(24));
    assert_eq!(provider.amocrm_account(HOST, &access).await.status, 401);
    let unknown = provider.get(HOST, "/api/v4/leads").await;
    assert_eq!(
        (unknown.status, &unknown.json()["detail"]),
        (404, &json!("Cannot GET /api/v4/leads"))
    );
}

#[tokio::test]
async fn an_api_key_brings_a_code_to_the_redirect_uri_once_in_five_minutes() {
    let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let redirect_uri = format!("http://{}/callback/amocrm", broker.local_addr().unwrap());
    let provider = amocrm(|settings| settings.redirect_uri = Some(redirect_uri.clone())).await;
    let fields = [
        ("login", "demo@example.com"),
        ("api_key", "simulated-api-key"),
        ("client_uuid", ID),
        ("client_secret", "simulated-integration-secret"),
    ];
    let path = "/oauth2/exchange_api_key";
    let wrong_key = with(&fields, "api_key", Some("wrong"));
    assert_eq!(provider.amocrm_post(path, &wrong_key).await.status, 401);
    refused_client(
        &provider.amocrm_post(path, &with(&fields, "client_secret", Some("wrong"))).await,
    );
    assert_eq!(send(provider.post(HOST, path).form(&fields)).await.status, 400);

    let accepted = provider.amocrm_post(path, &fields).await;
    assert_eq!((accepted.status, accepted.text.as_str()), (202, ""));
    let (mut stream, _) = broker.accept().await.unwrap();
    let mut head = vec![0; 8_192];
    let length = stream.read(&mut head).await.unwrap();
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    let head = String::from_utf8_lossy(&head[..length]).into_owned();
    let target = head.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()).unwrap();
    let url = url::Url::parse(&format!("http://broker{target}")).unwrap();
    let params: std::collections::BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    assert_eq!(url.path(), "/callback/amocrm");
    assert_eq!((params["from_exchange"].as_str(), params["referer"].as_str()), ("1", HOST));
    assert!(!params.contains_key("state"));

    let again = provider.amocrm_post(path, &fields).await;
    assert_eq!((again.status, &again.json()["retry_after"]), (429, &json!(300)));
    let redeem = with(&CODE, "redirect_uri", Some(&redirect_uri));
    let redeem = with(&redeem, "code", Some(&params["code"]));
    assert_eq!(provider.amocrm_post(TOKEN, &redeem).await.status, 200);
    provider.simulator().advance_clock(Duration::from_mins(5));
    assert_eq!(provider.amocrm_post(path, &fields).await.status, 202);
}
