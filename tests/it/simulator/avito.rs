use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use token_broker::simulator::{
    End, Endpoint, Kind, Simulated,
    settings::{AvitoSettings, ErrorStyle, OldRefreshToken, RedirectUriMismatch, SpaceScopes},
};

use super::{Answer, SimulatedProvider, send, with};

const QUERY: [(&str, &str); 4] = [
    ("response_type", "code"),
    ("client_id", "simulated-avito-client"),
    ("scope", "user:read,messenger:read"),
    ("state", "s t&a"),
];
const CLIENT: [(&str, &str); 3] = [
    ("grant_type", "client_credentials"),
    ("client_id", "simulated-avito-client"),
    ("client_secret", "simulated-avito-secret"),
];

async fn avito(change: impl FnOnce(&mut AvitoSettings)) -> SimulatedProvider {
    SimulatedProvider::new(Simulated::Avito, |settings| change(&mut settings.avito)).await
}

impl SimulatedProvider {
    async fn avito_token(&self, form: &[(&str, &str)]) -> Answer {
        send(self.post("127.0.0.1", "/token").form(form)).await
    }

    async fn avito_exchange(&self, grant_type: &str, name: &str, text: &str) -> Answer {
        let mut form = with(&CLIENT, "grant_type", Some(grant_type));
        form.push((name, text));
        self.avito_token(&form).await
    }

    pub(super) async fn avito_refresh(&self, refresh_token: &str) -> Answer {
        self.avito_exchange("refresh_token", "refresh_token", refresh_token).await
    }

    pub(super) async fn avito_grant(&self) -> Answer {
        let code = self.consent("/oauth", &QUERY, "allow").await.callback_param("code");
        self.avito_exchange("authorization_code", "code", &code).await
    }

    async fn avito_account(&self, token: &str) -> Answer {
        let path = "/core/v1/accounts/self";
        send(self.request(reqwest::Method::GET, "127.0.0.1", path).bearer_auth(token)).await
    }
}

fn refused(answer: &Answer, status: u16, error: &str) {
    assert_eq!((answer.status, &answer.json()["error"]), (status, &Value::from(error)));
}

#[tokio::test]
async fn a_code_gives_a_pair_and_a_refresh_replaces_both() {
    let provider = avito(|_| ()).await;
    let callback = provider.consent("/oauth", &QUERY, "allow").await;
    assert_eq!(callback.callback_param("state"), "s t&a");
    let code = callback.callback_param("code");
    let first = provider.avito_exchange("authorization_code", "code", &code).await;
    let fields = first.json();
    assert_eq!(
        (first.status, &fields["expires_in"], &fields["token_type"], &fields["scope"]),
        (200, &json!(86_400), &json!("Bearer"), &json!("user:read,messenger:read"))
    );
    let (access, refresh) = (first.token("access_token"), first.token("refresh_token"));
    assert_eq!((access.len(), refresh.len()), (22, 38));

    let second = provider.avito_refresh(&refresh).await;
    assert_ne!(second.token("access_token"), access);
    assert_ne!(second.token("refresh_token"), refresh);
    let account = provider.avito_account(&second.token("access_token")).await;
    assert_eq!((account.status, &account.json()["id"]), (200, &json!(10_000_001)));

    let oracle = provider.simulator().oracle();
    let known = oracle.of(&refresh).unwrap();
    assert_eq!((known.kind, known.generation, known.alive), (Kind::Refresh, 1, false));
    assert_eq!((known.ended, known.presented[&Endpoint::Token]), (Some(End::Rotated), 1));
    assert_eq!(oracle.of(&code).unwrap().ended, Some(End::Redeemed));
    assert_eq!(oracle.requests[&Endpoint::Token], 2);
}

#[tokio::test]
async fn client_credentials_give_three_fields_and_act_for_the_owner() {
    let provider = avito(|_| ()).await;
    let answer = provider.avito_token(&CLIENT).await;
    let fields: Vec<_> = answer.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, ["access_token", "expires_in", "token_type"]);
    let account = provider.avito_account(&answer.token("access_token")).await;
    assert_eq!(account.json()["id"], 10_000_001);
}

#[tokio::test]
async fn a_person_can_choose_another_account_or_refuse() {
    let provider = avito(|_| ()).await;
    let form = [("decision", "allow"), ("account", "10000002")];
    let code = provider.consent_as("/oauth", &QUERY, &form).await.callback_param("code");
    let grant = provider.avito_exchange("authorization_code", "code", &code).await;
    let account = provider.avito_account(&grant.token("access_token")).await;
    assert_eq!(account.json()["id"], 10_000_002);

    let denial = provider.consent("/oauth", &QUERY, "deny").await;
    assert_eq!(denial.callback_param("error"), "access_denied");
    assert_eq!(denial.callback_param("state"), "s t&a");
}

#[tokio::test]
async fn a_wrong_authorisation_request_never_comes_back() {
    let provider = avito(|_| ()).await;
    for query in [
        with(&QUERY, "client_id", Some("another")),
        with(&QUERY, "client_id", None),
        with(&QUERY, "response_type", None),
        with(&QUERY, "scope", Some("user:read,autoload:reports")),
        with(&QUERY, "scope", Some("user:read messenger:read")),
        with(&QUERY, "scope", None),
    ] {
        provider.shows_a_problem("/oauth", &query, StatusCode::BAD_REQUEST).await;
    }
    let lenient = avito(|settings| settings.space_scopes = SpaceScopes::Split).await;
    let query = with(&QUERY, "scope", Some("user:read messenger:read"));
    lenient.consent("/oauth", &query, "allow").await.callback_param("code");
}

#[tokio::test]
async fn a_redirect_uri_in_the_request_is_ignored_unless_the_switch_says_otherwise() {
    let query = with(&QUERY, "redirect_uri", Some("http://127.0.0.1:9/elsewhere"));
    avito(|_| ()).await.consent("/oauth", &query, "allow").await.callback_param("code");
    let strict =
        avito(|settings| settings.redirect_uri_mismatch = RedirectUriMismatch::Refuse).await;
    strict.shows_a_problem("/oauth", &query, StatusCode::BAD_REQUEST).await;
}

#[tokio::test]
async fn the_api_host_knows_no_other_path_and_no_other_method() {
    let provider = avito(|_| ()).await;
    for path in ["/oauth/authorize", "/oauth", "/token", "/core/v1/accounts/self/"] {
        let answer = provider.get("127.0.0.1", path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json(), json!({"message": "no Route matched with those values"}));
    }
    let elsewhere = provider.get("api.avito.ru", "/oauth").await;
    assert_eq!(elsewhere.status, 404);
}

#[tokio::test]
async fn the_token_endpoint_wants_a_form_with_the_client_in_it() {
    let provider = avito(|_| ()).await;
    let body = json!({"grant_type": "client_credentials", "client_id": "simulated-avito-client",
                      "client_secret": "simulated-avito-secret"});
    let as_json = provider.post("127.0.0.1", "/token").json(&body);
    refused(&send(as_json).await, 400, "invalid_request");
    let basic = provider
        .post("127.0.0.1", "/token")
        .basic_auth("simulated-avito-client", Some("simulated-avito-secret"))
        .form(&[("grant_type", "client_credentials")]);
    refused(&send(basic).await, 401, "invalid_client");
    let wrong = with(&CLIENT, "client_secret", Some("wrong"));
    refused(&provider.avito_token(&wrong).await, 401, "invalid_client");
    let password = with(&CLIENT, "grant_type", Some("password"));
    refused(&provider.avito_token(&password).await, 400, "unsupported_grant_type");
    let without = with(&CLIENT, "grant_type", Some("authorization_code"));
    refused(&provider.avito_token(&without).await, 400, "invalid_request");
}

#[tokio::test]
async fn a_code_and_a_refresh_token_work_once() {
    let provider = avito(|_| ()).await;
    let code = provider.consent("/oauth", &QUERY, "allow").await.callback_param("code");
    let first = provider.avito_exchange("authorization_code", "code", &code).await;
    let again = provider.avito_exchange("authorization_code", "code", &code).await;
    refused(&again, 400, "invalid_grant");
    let refresh = first.token("refresh_token");
    assert_eq!(provider.avito_refresh(&refresh).await.status, 200);
    refused(&provider.avito_refresh(&refresh).await, 400, "invalid_grant");
    refused(&provider.avito_refresh("never issued").await, 400, "invalid_grant");
    let oracle = provider.simulator().oracle();
    assert_eq!(oracle.of(&refresh).unwrap().presented[&Endpoint::Token], 2);
    assert_eq!(oracle.unknown[&Endpoint::Token], 1);

    let lenient = avito(|settings| settings.old_refresh_token = OldRefreshToken::Stays).await;
    let refresh = lenient.avito_grant().await.token("refresh_token");
    assert_eq!(lenient.avito_refresh(&refresh).await.status, 200);
    assert_eq!(lenient.avito_refresh(&refresh).await.status, 200);
}

#[tokio::test]
async fn errors_can_come_under_status_200() {
    let provider = avito(|settings| settings.error_style = ErrorStyle::InOk).await;
    refused(&provider.avito_refresh("never issued").await, 200, "invalid_grant");
}

#[tokio::test]
async fn the_token_endpoint_can_insist_on_its_slash() {
    let provider = avito(|settings| settings.token_redirect = true).await;
    let answer = provider.avito_token(&CLIENT).await;
    assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (308, "/token/"));
    assert_eq!(send(provider.post("127.0.0.1", "/token/").form(&CLIENT)).await.status, 200);
}

#[tokio::test]
async fn the_account_call_takes_only_a_live_token_with_the_scope() {
    let provider = avito(|_| ()).await;
    let none = provider.get("127.0.0.1", "/core/v1/accounts/self").await;
    let unauthorized = json!({"error": {"code": 401, "message": "Unauthorized"}});
    assert_eq!((none.status, none.json()), (401, unauthorized));
    let forbidden = json!({"error": {"code": 403, "message": "Forbidden"}});
    let grant = provider.avito_grant().await;
    for wrong in ["never issued", &grant.token("refresh_token")] {
        let answer = provider.avito_account(wrong).await;
        assert_eq!((answer.status, answer.json()), (403, forbidden.clone()));
    }
    let access = grant.token("access_token");
    assert_eq!(provider.avito_account(&access).await.status, 200);
    provider.simulator().advance_clock(Duration::from_hours(24));
    let expired = provider.avito_account(&access).await;
    assert_eq!((expired.status, expired.json()), (403, forbidden));
    let oracle = provider.simulator().oracle();
    let known = oracle.of(&access).unwrap();
    assert_eq!((known.ended, known.presented[&Endpoint::Account]), (Some(End::Expired), 2));
}
