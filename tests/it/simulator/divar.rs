use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::{
    seal::secret::Digest,
    simulator::{
        End, Fault, Simulated,
        settings::{Denial, DivarSettings, Hydra, OldAccessToken, RefreshParameters},
    },
};

use super::{Answer, REDIRECT_URI, SimulatedProvider, send, with};

const ID: &str = "simulated-divar-app";
const AUTH: &str = "/oauth2/auth";
const TOKEN: &str = "/oauth2/token";
const QUERY: [(&str, &str); 5] = [
    ("response_type", "code"),
    ("client_id", ID),
    ("redirect_uri", REDIRECT_URI),
    ("scope", "USER_ID CHAT_MESSAGE_SEND.YTpi+/8= offline_access"),
    ("state", "12345678"),
];
const CODE: [(&str, &str); 4] = [
    ("grant_type", "authorization_code"),
    ("client_id", ID),
    ("client_secret", "simulated-divar-secret"),
    ("redirect_uri", REDIRECT_URI),
];
const INVALID_GRANT: &str = "The provided authorization grant (e.g., authorization code, resource \
    owner credentials) or refresh token is invalid, expired, revoked, does not match the \
    redirection URI used in the authorization request, or was issued to another client.";

const MALFORMED: &str = "The request is missing a required parameter, includes an invalid \
    parameter value, includes a parameter more than once, or is otherwise malformed.";
const INVALID_CLIENT: &str = "Client authentication failed (e.g., unknown client, no client \
    authentication included, or unsupported authentication method).";

async fn divar(change: impl FnOnce(&mut DivarSettings)) -> SimulatedProvider {
    SimulatedProvider::new(Simulated::Divar, |settings| change(&mut settings.divar)).await
}

/// The two tokens of an answer.
fn pair(answer: &Answer) -> (String, String) {
    (answer.token("access_token"), answer.token("refresh_token"))
}

impl SimulatedProvider {
    async fn divar_post(&self, form: &[(&str, &str)]) -> Answer {
        send(self.post("localhost", TOKEN).form(form)).await
    }

    async fn divar_code(&self, query: &[(&str, &str)]) -> String {
        self.consent(AUTH, query, "allow").await.callback_param("code")
    }

    async fn divar_redeem(&self, code: &str) -> Answer {
        self.divar_post(&with(&CODE, "code", Some(code))).await
    }

    pub(super) async fn divar_grant(&self) -> Answer {
        let code = self.divar_code(&QUERY).await;
        self.divar_redeem(&code).await
    }

    pub(super) async fn divar_refresh(&self, (access, refresh): &(String, String)) -> Answer {
        let form = with(&CODE, "grant_type", Some("refresh_token"));
        let form = with(&form, "code", Some(access));
        self.divar_post(&with(&form, "refresh_token", Some(refresh))).await
    }

    pub(super) async fn divar_user(&self, token: &str) -> Answer {
        let request = self.request(Method::GET, "127.0.0.1", "/v1/open-platform/users");
        send(request.bearer_auth(token).header("x-api-key", "simulated-divar-api-key")).await
    }
}

fn refused(answer: &Answer, status: u16, error: &str, description: &str) {
    assert_eq!(answer.content_type, "application/json;charset=UTF-8");
    assert_eq!(answer.headers["cache-control"], "no-store");
    let body = json!({"error": error, "error_description": description.trim_end()});
    assert_eq!((answer.status, answer.json()), (status, body));
}

fn invalid_grant(answer: &Answer, hint: &str) {
    refused(answer, 400, "invalid_grant", &format!("{INVALID_GRANT} {hint}"));
}

#[tokio::test]
async fn a_code_gives_a_pair_and_a_refresh_replaces_both() {
    let provider = divar(|_| ()).await;
    let callback = provider.consent(AUTH, &QUERY, "allow").await;
    assert_eq!(callback.callback_param("state"), "12345678");
    let first = provider.divar_redeem(&callback.callback_param("code")).await;
    let body = first.json();
    assert_eq!(
        (first.status, &body["expires_in"], &body["token_type"], &body["scope"]),
        (200, &json!(3_600), &json!("bearer"), &json!(QUERY[3].1))
    );
    let old = pair(&first);
    assert!(old.0.starts_with("ory_at_") && old.1.starts_with("ory_rt_"), "{old:?}");
    let second = provider.divar_refresh(&old).await;
    assert_eq!(second.status, 200);
    let user = provider.divar_user(&second.token("access_token")).await;
    assert_eq!((user.status, user.json()), (200, json!({"user_id": "simulated-user-1"})));
    assert_eq!(provider.divar_user(&old.0).await.status, 401);
}

#[tokio::test]
async fn the_refresh_token_needs_offline_access() {
    let provider = divar(|_| ()).await;
    let code = provider.divar_code(&with(&QUERY, "scope", Some("USER_PHONE"))).await;
    let answer = provider.divar_redeem(&code).await;
    assert!(answer.json().get("refresh_token").is_none());
    let user = provider.divar_user(&answer.token("access_token")).await;
    assert_eq!(user.json(), json!({"phone_number": "09000000001"}));
}

#[tokio::test]
async fn a_refusal_comes_with_an_error_or_with_nothing_but_the_state() {
    let provider = divar(|_| ()).await;
    let denial = provider.consent(AUTH, &QUERY, "deny").await;
    assert_eq!(denial.callback_param("error"), "access_denied");
    let bare = divar(|settings| settings.denial = Denial::Bare).await;
    let denial = bare.consent(AUTH, &QUERY, "deny").await;
    assert_eq!(denial.callback(), [("state".to_owned(), "12345678".to_owned())]);
}

#[tokio::test]
async fn a_wrong_client_or_redirect_uri_never_comes_back_and_other_errors_do() {
    let provider = divar(|_| ()).await;
    let query = with(&QUERY, "client_id", Some("another"));
    provider.shows_a_problem(AUTH, &query, StatusCode::UNAUTHORIZED).await;
    for uri in [None, Some("http://127.0.0.1:9/callback/test/")] {
        let query = with(&QUERY, "redirect_uri", uri);
        provider.shows_a_problem(AUTH, &query, StatusCode::BAD_REQUEST).await;
    }
    for (name, value, error) in [
        ("state", Some("1234567"), "invalid_state"),
        ("state", None, "invalid_state"),
        ("scope", Some("USER_ID POST_EDIT.x"), "invalid_scope"),
        ("scope", Some("USER_IDENTITY"), "invalid_scope"),
        ("response_type", Some("token"), "unsupported_response_type"),
    ] {
        let path = super::with_query(AUTH, &with(&QUERY, name, value));
        let answer = provider.get("localhost", &path).await;
        assert_eq!(answer.callback_param("error"), error);
    }
}

#[tokio::test]
async fn only_a_form_with_the_client_in_it_is_read() {
    let provider = divar(|_| ()).await;
    let as_json = send(provider.post("localhost", TOKEN).json(&json!({"grant_type": "x"}))).await;
    let empty = format!("{MALFORMED} The POST body can not be empty.");
    refused(&as_json, 400, "invalid_request", &empty);
    let missing = provider.divar_post(&with(&CODE, "grant_type", None)).await;
    let description = format!("{MALFORMED} Request parameter 'grant_type' is missing");
    refused(&missing, 400, "invalid_request", &description);

    let wrong = provider.divar_post(&with(&CODE, "client_secret", Some("wrong"))).await;
    refused(&wrong, 401, "invalid_client", INVALID_CLIENT);
    let basic = provider.post("localhost", TOKEN).basic_auth(ID, Some("simulated-divar-secret"));
    let basic = send(basic.form(&CODE)).await;
    assert_eq!((basic.status, &basic.json()["error"]), (401, &json!("invalid_client")));
    let direct = provider.divar_post(&with(&CODE, "grant_type", Some("client_credentials"))).await;
    assert_eq!((direct.status, &direct.json()["error"]), (400, &json!("unauthorized_client")));
    assert_eq!(send(provider.post("127.0.0.1", TOKEN).form(&CODE)).await.status, 404);
}

#[tokio::test]
async fn a_code_used_twice_takes_its_tokens_with_it() {
    let provider = divar(|_| ()).await;
    let code = provider.divar_code(&QUERY).await;
    let other = with(&with(&CODE, "code", Some(&code)), "redirect_uri", Some("http://other/"));
    let mismatch =
        "The 'redirect_uri' from this request does not match the one from the authorize request.";
    invalid_grant(&provider.divar_post(&other).await, mismatch);
    let tokens = pair(&provider.divar_redeem(&code).await);
    assert_eq!(provider.divar_user(&tokens.0).await.status, 200);
    let again = provider.divar_redeem(&code).await;
    invalid_grant(&again, "The authorization code has already been used.");
    assert_eq!(provider.divar_user(&tokens.0).await.status, 401);
    let refresh = provider.divar_refresh(&tokens).await;
    invalid_grant(&refresh, "The refresh token is malformed or not valid.");

    invalid_grant(&provider.divar_redeem("never issued").await, "");
    let late = provider.divar_code(&QUERY).await;
    provider.simulator().advance_clock(Duration::from_mins(10));
    invalid_grant(&provider.divar_redeem(&late).await, "");
}

#[tokio::test]
async fn within_the_grace_the_old_token_gives_further_pairs_and_after_it_ends_the_chain() {
    let provider = divar(|_| ()).await;
    let first = pair(&provider.divar_grant().await);
    let second = pair(&provider.divar_refresh(&first).await);
    provider.simulator().advance_clock(Duration::from_secs(110));
    let third = pair(&provider.divar_refresh(&first).await);
    for live in [&second, &third] {
        assert_eq!(provider.divar_user(&live.0).await.status, 200);
    }
    provider.simulator().advance_clock(Duration::from_secs(10));
    invalid_grant(&provider.divar_refresh(&first).await, "The refresh token was already used.");
    assert_eq!(provider.divar_user(&third.0).await.status, 401);
    let newest = provider.divar_refresh(&third).await;
    invalid_grant(&newest, "The refresh token is malformed or not valid.");
    let oracle = provider.simulator().oracle();
    assert_eq!(oracle.of(&third.1).unwrap().ended, Some(End::RefreshReused));
}

#[tokio::test]
async fn a_refresh_can_lose_a_race_without_losing_its_token() {
    let provider = divar(|_| ()).await;
    let tokens = pair(&provider.divar_grant().await);
    provider.simulator().fault(&Fault::Contended, 1);
    let lost = provider.divar_refresh(&tokens).await;
    assert_eq!((lost.status, &lost.json()["error"]), (400, &json!("invalid_request")));
    assert!(lost.text.contains("Please retry the request."), "{}", lost.text);
    assert_eq!(provider.divar_refresh(&tokens).await.status, 200);
}

#[tokio::test]
async fn the_grace_has_its_switches() {
    let lives = divar(|settings| settings.old_access_token = OldAccessToken::Lives).await;
    let old = pair(&lives.divar_grant().await);
    assert_eq!(lives.divar_refresh(&old).await.status, 200);
    assert_eq!(lives.divar_user(&old.0).await.status, 200);
    lives.simulator().advance_clock(Duration::from_mins(2));
    assert_eq!(lives.divar_user(&old.0).await.status, 401);

    let off = divar(|settings| settings.grace = 0).await;
    let old = pair(&off.divar_grant().await);
    assert_eq!(off.divar_refresh(&old).await.status, 200);
    invalid_grant(&off.divar_refresh(&old).await, "The refresh token was already used.");

    let old_hydra = divar(|settings| {
        settings.grace = 0;
        settings.hydra = Hydra::Old;
    })
    .await;
    let old = pair(&old_hydra.divar_grant().await);
    assert_eq!(old_hydra.divar_refresh(&old).await.status, 200);
    let reused = old_hydra.divar_refresh(&old).await;
    assert_eq!((reused.status, &reused.json()["error"]), (401, &json!("token_inactive")));
}

#[tokio::test]
async fn a_refresh_carries_the_access_token_it_replaces_and_the_redirect_uri() {
    let provider = divar(|_| ()).await;
    let tokens = pair(&provider.divar_grant().await);
    let form = with(&CODE, "grant_type", Some("refresh_token"));
    let form = with(&form, "refresh_token", Some(&tokens.1));
    for code in [None, Some("never issued")] {
        let answer = provider.divar_post(&with(&form, "code", code)).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")));
    }
    let without = with(&with(&form, "code", Some(&tokens.0)), "redirect_uri", None);
    assert_eq!(provider.divar_post(&without).await.status, 400);
    assert_eq!(provider.divar_refresh(&tokens).await.status, 200, "no refusal spent the token");

    let plain = divar(|settings| settings.refresh_parameters = RefreshParameters::Ignored).await;
    let tokens = pair(&plain.divar_grant().await);
    let form = with(&with(&form, "refresh_token", Some(&tokens.1)), "redirect_uri", None);
    assert_eq!(plain.divar_post(&form).await.status, 200);
}

#[tokio::test]
async fn a_refresh_token_lives_thirty_days_from_each_rotation() {
    let provider = divar(|_| ()).await;
    let first = pair(&provider.divar_grant().await);
    provider.simulator().advance_clock(Duration::from_hours(29 * 24));
    let second = pair(&provider.divar_refresh(&first).await);
    provider.simulator().advance_clock(Duration::from_hours(30 * 24));
    invalid_grant(&provider.divar_refresh(&second).await, "The refresh token expired.");
}

#[tokio::test]
async fn pkce_is_checked_for_a_client_that_uses_it() {
    let provider = divar(|_| ()).await;
    let verifier = "a-verifier-of-at-least-forty-three-characters";
    let challenge = URL_SAFE_NO_PAD.encode(Digest::of_bytes(verifier.as_bytes()).as_bytes());
    let query = with(&QUERY, "code_challenge", Some(&challenge));
    let query = with(&query, "code_challenge_method", Some("S256"));
    let code = provider.divar_code(&query).await;
    let hint = "The PKCE code challenge did not match the code verifier.";
    invalid_grant(&provider.divar_redeem(&code).await, hint);
    let form = with(&with(&CODE, "code", Some(&code)), "code_verifier", Some(verifier));
    assert_eq!(provider.divar_post(&form).await.status, 200);
}

#[tokio::test]
async fn the_user_call_needs_the_key_and_a_live_token() {
    let provider = divar(|_| ()).await;
    let access = provider.divar_grant().await.token("access_token");
    let without_key = provider.request(Method::GET, "127.0.0.1", "/v1/open-platform/users");
    let answer = send(without_key.bearer_auth(&access)).await;
    let body = json!({"code": 16, "message": "invalid api key", "details": []});
    assert_eq!((answer.status, answer.json()), (401, body));
    let body = json!({"code": 16, "message": "invalid access token", "details": []});
    let answer = provider.divar_user("never issued").await;
    assert_eq!((answer.status, answer.json()), (401, body));
    provider.simulator().advance_clock(Duration::from_hours(1));
    assert_eq!(provider.divar_user(&access).await.status, 401);
    let unknown = provider.get("127.0.0.1", "/oauth2/auth").await;
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!(5)));
}
