use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::simulator::{
    Simulated,
    settings::{AdmitadSettings, ExpiresIn, MissingSlash, OldRefreshToken},
};

use super::{Answer, REDIRECT_URI, SimulatedProvider, send, with};

const ID: &str = "simulated-admitad-client";
const SECRET: &str = "simulated-admitad-secret";
const AUTHORIZE: &str = "/api/authorize/";
const QUERY: [(&str, &str); 5] = [
    ("client_id", ID),
    ("redirect_uri", REDIRECT_URI),
    ("scope", "private_data websites"),
    ("response_type", "code"),
    ("state", "state-1"),
];
const DIRECT: [(&str, &str); 3] =
    [("grant_type", "client_credentials"), ("client_id", ID), ("scope", "private_data websites")];
const BODY: [(&str, &str); 2] = [("client_id", ID), ("client_secret", SECRET)];

async fn admitad(change: impl FnOnce(&mut AdmitadSettings)) -> SimulatedProvider {
    SimulatedProvider::new(Simulated::Admitad, |settings| change(&mut settings.admitad)).await
}

impl SimulatedProvider {
    async fn admitad_direct(&self, form: &[(&str, &str)]) -> Answer {
        send(self.post("127.0.0.1", "/token/").basic_auth(ID, Some(SECRET)).form(form)).await
    }

    async fn admitad_body(&self, form: &[(&str, &str)]) -> Answer {
        send(self.post("127.0.0.1", "/token/").form(form)).await
    }

    pub(super) async fn admitad_grant(&self) -> Answer {
        self.admitad_direct(&DIRECT).await
    }

    pub(super) async fn admitad_refresh(&self, refresh_token: &str) -> Answer {
        let form = with(&BODY, "grant_type", Some("refresh_token"));
        self.admitad_body(&with(&form, "refresh_token", Some(refresh_token))).await
    }

    async fn admitad_me(&self, token: &str) -> Answer {
        send(self.request(Method::GET, "127.0.0.1", "/me/").bearer_auth(token)).await
    }
}

fn refused(answer: &Answer, status: u16, error: &str, code: u8) {
    let body = answer.json();
    assert_eq!(
        (answer.status, &body["error"], &body["error_code"]),
        (status, &json!(error), &json!(code))
    );
    assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
}

fn refused_client(answer: &Answer, named: &str) {
    let description = format!("client_id {named} doesn't exist");
    let body = json!({"error": "invalid_client", "error_description": description});
    assert_eq!((answer.status, answer.json()), (401, body));
    assert!(answer.headers.contains_key("www-authenticate"));
}

#[tokio::test]
async fn client_credentials_come_by_basic_and_give_a_refresh_token() {
    let provider = admitad(|_| ()).await;
    let answer = provider.admitad_direct(&DIRECT).await;
    let body = answer.json();
    assert_eq!(
        (answer.status, &body["expires_in"], &body["token_type"], &body["scope"]),
        (200, &json!(604_800), &json!("bearer"), &json!("private_data websites"))
    );
    assert_eq!((&body["username"], &body["group"]), (&json!("webmaster1"), &json!("webmaster")));
    let access = answer.token("access_token");
    assert!(access.len() == 30 && access.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_eq!(provider.admitad_me(&access).await.json()["id"], 30_000_001);

    let second = provider.admitad_refresh(&answer.token("refresh_token")).await;
    assert_eq!(second.status, 200);
    assert_eq!(provider.admitad_me(&second.token("access_token")).await.status, 200);
}

#[tokio::test]
async fn a_code_is_taken_with_either_kind_of_client_authentication() {
    let provider = admitad(|_| ()).await;
    for basic in [false, true] {
        let callback = provider.consent(AUTHORIZE, &QUERY, "allow").await;
        assert_eq!(callback.callback_param("state"), "state-1");
        let code = callback.callback_param("code");
        assert!(code.len() == 30 && code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
            ("client_id", ID),
            ("client_secret", SECRET),
            ("redirect_uri", REDIRECT_URI),
        ];
        refused(
            &provider.admitad_body(&with(&form, "redirect_uri", None)).await,
            400,
            "invalid_request",
            3,
        );
        let other = Some("http://127.0.0.1:9/other");
        refused(
            &provider.admitad_body(&with(&form, "redirect_uri", other)).await,
            400,
            "invalid_grant",
            3,
        );
        let answer = if basic {
            provider.admitad_direct(&with(&form, "client_secret", None)).await
        } else {
            provider.admitad_body(&form).await
        };
        assert_eq!(answer.status, 200, "{}", answer.text);
        refused(&provider.admitad_body(&form).await, 400, "invalid_grant", 3);
    }
}

#[tokio::test]
async fn each_grant_insists_on_its_own_client_authentication() {
    let provider = admitad(|_| ()).await;
    let in_body = with(&DIRECT, "client_secret", Some(SECRET));
    refused_client(&provider.admitad_body(&in_body).await, ID);
    let wrong =
        provider.post("127.0.0.1", "/token/").basic_auth("nobody", Some(SECRET)).form(&DIRECT);
    refused_client(&send(wrong).await, "nobody");
    refused(
        &provider.admitad_direct(&with(&DIRECT, "client_id", None)).await,
        400,
        "invalid_request",
        3,
    );

    let refresh = provider.admitad_direct(&DIRECT).await.token("refresh_token");
    let form = [("grant_type", "refresh_token"), ("client_id", ID), ("refresh_token", &refresh)];
    refused_client(&provider.admitad_direct(&form).await, ID);
    let as_json = provider.post("127.0.0.1", "/token/").basic_auth(ID, Some(SECRET));
    let as_json = as_json.json(&json!({"grant_type": "client_credentials"}));
    refused(&send(as_json).await, 400, "invalid_request", 3);
}

#[tokio::test]
async fn a_scope_must_be_the_applications_and_not_withdrawn() {
    let provider = admitad(|_| ()).await;
    refused(
        &provider.admitad_direct(&with(&DIRECT, "scope", None)).await,
        400,
        "invalid_request",
        3,
    );
    let unknown = with(&DIRECT, "scope", Some("coupons"));
    refused(&provider.admitad_direct(&unknown).await, 400, "invalid_scope", 3);
    let withdrawn = with(&DIRECT, "scope", Some("private_data payments"));
    refused(&provider.admitad_direct(&withdrawn).await, 401, "invalid_scope", 2);
    let query = with(&QUERY, "scope", Some("payments"));
    provider.shows_a_problem(AUTHORIZE, &query, StatusCode::UNAUTHORIZED).await;
}

#[tokio::test]
async fn a_refresh_token_works_once_unless_the_switch_says_otherwise() {
    let provider = admitad(|_| ()).await;
    let refresh = provider.admitad_direct(&DIRECT).await.token("refresh_token");
    assert_eq!(provider.admitad_refresh(&refresh).await.status, 200);
    refused(&provider.admitad_refresh(&refresh).await, 400, "invalid_grant", 5);
    let lenient = admitad(|settings| settings.old_refresh_token = OldRefreshToken::Stays).await;
    let refresh = lenient.admitad_direct(&DIRECT).await.token("refresh_token");
    for _ in 0..2 {
        assert_eq!(lenient.admitad_refresh(&refresh).await.status, 200);
    }
}

#[tokio::test]
async fn live_tokens_are_capped_and_the_lifetime_can_be_a_string() {
    let provider = admitad(|settings| {
        settings.token_cap = 1;
        settings.expires_in = ExpiresIn::Text;
    })
    .await;
    let answer = provider.admitad_direct(&DIRECT).await;
    assert_eq!(answer.json()["expires_in"], "604800");
    refused(&provider.admitad_direct(&DIRECT).await, 403, "access_denied", 6);
    let refresh = answer.token("refresh_token");
    refused(&provider.admitad_refresh(&refresh).await, 403, "access_denied", 6);
    provider.simulator().advance_clock(Duration::from_hours(7 * 24));
    assert_eq!(provider.admitad_refresh(&refresh).await.status, 200);
}

#[tokio::test]
async fn the_trailing_slash_matters() {
    let provider = admitad(|_| ()).await;
    let answer = send(provider.post("127.0.0.1", "/token").form(&DIRECT)).await;
    assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (301, "/token/"));
    let strict = admitad(|settings| settings.missing_slash = MissingSlash::NotFound).await;
    assert_eq!(send(strict.post("127.0.0.1", "/token").form(&DIRECT)).await.status, 404);
    assert_eq!(strict.get("127.0.0.1", "/me").await.status, 404);
    assert_eq!(strict.get("localhost", "/api/authorize").await.status, 404);
}

#[tokio::test]
async fn errors_come_back_only_to_the_applications_own_domain() {
    let provider = admitad(|_| ()).await;
    let path = |query: &[(&str, &str)]| super::with_query(AUTHORIZE, query);
    let unknown =
        provider.get("localhost", &path(&with(&QUERY, "client_id", Some("nobody")))).await;
    let expected = [
        ("state", "state-1"),
        ("error", "invalid_client"),
        ("error_description", "client_id nobody doesn't exist"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(unknown.callback(), expected);
    for uri in [Some("http://example.com/callback"), Some("nonsense"), None] {
        let query = with(&QUERY, "redirect_uri", uri);
        provider.shows_a_problem(AUTHORIZE, &query, StatusCode::BAD_REQUEST).await;
    }
    let elsewhere = with(&QUERY, "redirect_uri", Some("http://127.0.0.1:9/callback/test/deeper"));
    provider.consent(AUTHORIZE, &elsewhere, "allow").await.callback_param("code");
    let denial = provider.consent(AUTHORIZE, &QUERY, "deny").await;
    assert_eq!(denial.callback_param("error"), "access_denied");
}

#[tokio::test]
async fn the_account_call_tells_expired_from_unknown_and_from_too_little() {
    let provider = admitad(|_| ()).await;
    refused(&provider.get("127.0.0.1", "/me/").await, 401, "invalid_token", 1);
    let unknown = provider.admitad_me("never issued").await;
    refused(&unknown, 401, "invalid_token", 1);
    assert_eq!(unknown.json()["error_description"], "Token doesn't exist");
    let small = with(&DIRECT, "scope", Some("websites"));
    let small = provider.admitad_direct(&small).await.token("access_token");
    refused(&provider.admitad_me(&small).await, 403, "insufficient_scope", 2);
    let access = provider.admitad_direct(&DIRECT).await.token("access_token");
    provider.simulator().advance_clock(Duration::from_hours(7 * 24));
    refused(&provider.admitad_me(&access).await, 401, "invalid_token", 0);
}
