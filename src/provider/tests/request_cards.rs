//! A card for every request of every provider: method, URL, headers, body, secrets as «names».

use std::fmt::Write as _;

use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    domain::connection::Vars,
    provider::{
        Authorization, Body, CurrentTokens, OutboundRequest, RequestError, RevokedToken, amocrm,
        client::Client, request, test_support,
    },
};

#[expect(clippy::disallowed_methods, reason = "the secrets of these tests are made up")]
fn shown(secret: &SecretString) -> &str {
    secret.expose_secret()
}

fn card(request: Result<OutboundRequest, RequestError>) -> String {
    let request = request.unwrap();
    let mut card = format!("{} {}\n", request.method, request.url);
    for (name, value) in &request.headers {
        let value = unbase64(shown(value)).replace("%C2%AB", "«").replace("%C2%BB", "»");
        writeln!(card, "{name}: {value}").unwrap();
    }
    let params = match &request.body {
        Body::Empty => return card,
        Body::Form(params) | Body::Json(params) => params,
    };
    let (content_type, _) = request.body.encode().unwrap();
    writeln!(card, "content-type: {content_type}\n").unwrap();
    for (name, value) in params {
        writeln!(card, "{name} = {}", shown(value)).unwrap();
    }
    card
}

/// Basic credentials as the pair that they stand for.
fn unbase64(value: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let Some(pair) = value.strip_prefix("Basic ") else { return value.to_owned() };
    format!("Basic base64({})", String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap())
}

struct Cards {
    client: Client,
    vars: Vars,
    scopes: Vec<String>,
}

impl Cards {
    fn of(provider: &str, scopes: &[&str]) -> Self {
        let client = test_support::client(provider);
        let host = match provider {
            "amocrm" => "example.amocrm.ru",
            _ => "example.kommo.com",
        };
        let vars = client.profile.vars.keys().map(|name| (name.clone(), host.to_owned()));
        Self {
            vars: vars.collect(),
            client,
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        }
    }

    fn authorize(&self) -> String {
        let asked = Authorization {
            state: &"«state»".into(),
            scopes: &self.scopes,
            challenge: Some("«challenge»"),
            vars: &Vars::new(),
        };
        let url = request::authorize_url(&self.client, &asked).unwrap();
        let mut card = format!("GET {}\n\n", &url[..url::Position::AfterPath]);
        for (name, value) in url.query_pairs() {
            writeln!(card, "{name} = {value}").unwrap();
        }
        card
    }

    fn code(&self) -> String {
        let verifier = "«verifier»".into();
        let redirect = "https://broker.example/callback/main";
        let code = "«code»".into();
        card(request::code_exchange(&self.client, &code, Some(&verifier), redirect, &self.vars))
    }

    fn credentials(&self) -> String {
        card(request::client_credentials(&self.client, &self.scopes, &self.vars))
    }

    fn refresh(&self) -> String {
        let (refresh, access) = ("«refresh_token»".into(), "«access_token»".into());
        let tokens = CurrentTokens { refresh: &refresh, access: &access };
        let redirect = "https://broker.example/callback/main";
        card(request::refresh(&self.client, tokens, redirect, &self.vars))
    }

    fn account(&self) -> String {
        card(request::account(&self.client, &"«access_token»".into(), &self.vars).unwrap())
    }

    fn resource(&self) -> String {
        let mut card = request::api_base_url(&self.client, &self.vars).unwrap() + "\n";
        let access = "«access_token»".into();
        for (name, value) in request::resource_headers(&self.client, &access, &self.vars).unwrap() {
            writeln!(card, "{name}: {}", shown(&value)).unwrap();
        }
        card
    }
}

#[test]
fn avito() {
    let cards = Cards::of("avito", &["messenger:read", "user:read"]);
    insta::assert_snapshot!("avito_authorize", cards.authorize());
    insta::assert_snapshot!("avito_code", cards.code());
    insta::assert_snapshot!("avito_client_credentials", cards.credentials());
    insta::assert_snapshot!("avito_refresh", cards.refresh());
    insta::assert_snapshot!("avito_account", cards.account());
    insta::assert_snapshot!("avito_resource", cards.resource());
}

#[test]
fn amocrm() {
    let cards = Cards::of("amocrm", &["crm"]);
    insta::assert_snapshot!("amocrm_authorize", cards.authorize());
    insta::assert_snapshot!("amocrm_code", cards.code());
    insta::assert_snapshot!("amocrm_refresh", cards.refresh());
    insta::assert_snapshot!("amocrm_account", cards.account());
    insta::assert_snapshot!("amocrm_resource", cards.resource());
    let key = amocrm::key_exchange(&cards.client, "«login»", &"«api_key»".into(), &cards.vars);
    insta::assert_snapshot!("amocrm_key_exchange", card(key));
}

#[test]
fn kommo() {
    let cards = Cards::of("kommo", &[]);
    insta::assert_snapshot!("kommo_authorize", cards.authorize());
    insta::assert_snapshot!("kommo_code", cards.code());
    insta::assert_snapshot!("kommo_refresh", cards.refresh());
    insta::assert_snapshot!("kommo_account", cards.account());
    insta::assert_snapshot!("kommo_resource", cards.resource());
}

#[test]
fn admitad() {
    let cards = Cards::of("admitad", &["public_data", "private_data"]);
    insta::assert_snapshot!("admitad_authorize", cards.authorize());
    insta::assert_snapshot!("admitad_code", cards.code());
    insta::assert_snapshot!("admitad_client_credentials", cards.credentials());
    insta::assert_snapshot!("admitad_refresh", cards.refresh());
    insta::assert_snapshot!("admitad_account", cards.account());
    insta::assert_snapshot!("admitad_resource", cards.resource());
}

#[test]
fn divar() {
    let cards = Cards::of("divar", &["USER_PHONE", "CHAT_MESSAGE_SEND.YTpiOmM+Lz0="]);
    insta::assert_snapshot!("divar_authorize", cards.authorize());
    insta::assert_snapshot!("divar_code", cards.code());
    insta::assert_snapshot!("divar_refresh", cards.refresh());
    insta::assert_snapshot!("divar_account", cards.account());
    insta::assert_snapshot!("divar_resource", cards.resource());
}

#[test]
fn what_a_provider_does_not_offer_is_not_asked_for() {
    for provider in ["amocrm", "kommo", "divar"] {
        let client = test_support::client(provider);
        let error = request::client_credentials(&client, &[], &Vars::new()).unwrap_err();
        assert_eq!(error.to_string(), "the provider offers no client_credentials");
    }
    let kommo = test_support::client("kommo");
    let key = "key".into();
    assert!(amocrm::key_exchange(&kommo, "login", &key, &Vars::new()).is_err());
}

#[test]
fn a_missing_account_host_is_named() {
    let client = test_support::client("amocrm");
    let code = "code".into();
    let error = request::code_exchange(&client, &code, None, "", &Vars::new()).unwrap_err();
    assert_eq!(error.to_string(), "`account_host` has no value");
}

#[test]
fn pkce_is_used_for_both_steps_or_neither() {
    let mut profile = (*test_support::profile("divar")).clone();
    profile.authorize.as_mut().unwrap().pkce = true;
    let client = test_support::of(profile.into());
    let asked = Authorization {
        state: &"state".into(),
        scopes: &[],
        challenge: Some("challenge"),
        vars: &Vars::new(),
    };
    let url = request::authorize_url(&client, &asked).unwrap();
    assert!(url.query().unwrap().ends_with("&code_challenge=challenge&code_challenge_method=S256"));
    let asked = Authorization { challenge: None, ..asked };
    assert!(matches!(request::authorize_url(&client, &asked), Err(RequestError::Pkce)));

    let exchange = |verifier: Option<&SecretString>| {
        request::code_exchange(&client, &"code".into(), verifier, "https://b/", &Vars::new())
    };
    assert!(card(exchange(Some(&"verifier".into()))).contains("code_verifier = verifier"));
    assert!(matches!(exchange(None), Err(RequestError::Pkce)));
}

#[test]
fn a_parameter_without_a_value_is_not_sent() {
    let client = test_support::client("divar");
    let (refresh, access) = ("rt".into(), "".into());
    let tokens = CurrentTokens { refresh: &refresh, access: &access };
    let card = card(request::refresh(&client, tokens, "https://b/", &Vars::new()));
    assert!(card.ends_with("refresh_token = rt\nredirect_uri = https://b/\n"), "{card}");
}

#[test]
fn basic_credentials_are_form_encoded_first() {
    let mut client = test_support::client("admitad");
    client.client_id = "id:1".to_owned();
    client.client_secret = "p@ss word%é".into();
    let request = request::client_credentials(&client, &[], &Vars::new()).unwrap();
    let (_, value) = &request.headers[0];
    assert_eq!(unbase64(shown(value)), "Basic base64(id%3A1:p%40ss+word%25%C3%A9)");
}

#[test]
fn scopes_are_joined_once_and_what_is_always_needed_is_added() {
    let cards = Cards::of("divar", &[]);
    assert!(cards.authorize().contains("scope = offline_access\n"));
    let cards = Cards::of("divar", &["offline_access", "USER_ID"]);
    assert!(cards.authorize().contains("scope = offline_access USER_ID\n"));
    assert!(!Cards::of("avito", &[]).authorize().contains("scope"));
}

#[test]
fn a_scope_is_percent_encoded_in_the_browsers_address() {
    let client = test_support::client("divar");
    let asked = Authorization {
        state: &"state".into(),
        scopes: &["CHAT_MESSAGE_SEND.a+b/c=".to_owned()],
        challenge: None,
        vars: &Vars::new(),
    };
    let url = request::authorize_url(&client, &asked).unwrap();
    let query = url.query().unwrap();
    assert!(query.contains("&scope=CHAT_MESSAGE_SEND.a%2Bb%2Fc%3D%20offline_access&"), "{query}");
}

#[test]
fn a_json_body_is_escaped_and_a_form_encoded() {
    let params = || vec![("a b".to_owned(), "\"c\" & d=é".into())];
    let (_, json) = Body::Json(params()).encode().unwrap();
    assert_eq!(shown(&json), r#"{"a b":"\"c\" & d=é"}"#);
    let (_, form) = Body::Form(params()).encode().unwrap();
    assert_eq!(shown(&form), "a+b=%22c%22+%26+d%3D%C3%A9");
}

#[test]
fn no_secret_shows_in_debug_output() {
    let cards = Cards::of("divar", &[]);
    let (refresh, access) = ("canary-1".into(), "canary-2".into());
    let tokens = CurrentTokens { refresh: &refresh, access: &access };
    let request = request::refresh(&cards.client, tokens, "", &cards.vars).unwrap();
    let account = request::account(&cards.client, &access, &cards.vars).unwrap().unwrap();
    let shown = format!("{tokens:?} {request:?} {account:?} {:?}", cards.client);
    assert!(!shown.contains("canary") && !shown.contains("«client_secret»"), "{shown}");
    assert!(!shown.contains("«api_key»"), "{shown}");
}

#[test]
fn a_revocation_names_its_token_and_proves_the_client() {
    for (auth, proof) in
        [("body", "\nclient_id = «client_id»\nclient_secret = «client_secret»"), ("basic", "")]
    {
        let mut profile = (*test_support::profile("avito")).clone();
        let written = format!("url = \"https://id.example.com/revoke\"\nclient_auth = \"{auth}\"");
        profile.revocation = Some(toml::from_str(&written).unwrap());
        let client = test_support::of(profile.into());
        let revoke = |kind| card(request::revoke(&client, kind, &"«token»".into(), &Vars::new()));
        let header = match auth {
            "basic" => "authorization: Basic base64(«client_id»:«client_secret»)\n",
            _ => "",
        };
        assert_eq!(
            revoke(RevokedToken::Refresh),
            format!(
                "POST https://id.example.com/revoke\n{header}content-type: \
                 application/x-www-form-urlencoded\n{proof}\ntoken = «token»\n\
                 token_type_hint = refresh_token\n"
            )
        );
        assert!(revoke(RevokedToken::Access).ends_with("token_type_hint = access_token\n"));
    }
    let none = request::revoke(
        &test_support::client("avito"),
        RevokedToken::Refresh,
        &"«token»".into(),
        &Vars::new(),
    );
    assert!(matches!(none, Err(RequestError::NotOffered("revocation"))));
}
