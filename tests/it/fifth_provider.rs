//! A provider that nobody wrote code for: a profile of the user's own, PKCE included.

use std::fs;

use reqwest::StatusCode;
use serde_json::json;
use token_broker::simulator::{Simulated, SimulatorSettings, settings::RefreshParameters};

use crate::support::{
    broker::{Person, TestBroker},
    database::{TestDatabase, on_both_engines},
};

on_both_engines! {
    a_profile_in_a_folder_makes_a_provider,
}

/// The profile of the README, at a simulated Divar that stands in for the provider.
fn acme(port: u16) -> String {
    format!(
        r#"
        title = "Acme"
        network = "loopback"

        [authorize]
        url = "http://localhost:{port}/oauth2/auth"

        [token]
        url = "http://localhost:{port}/oauth2/token"

        [grants.authorization_code]
        client_auth = "body"

        [grants.refresh_token]
        client_auth = "body"

        [account]
        url = "http://127.0.0.1:{port}/v1/open-platform/users"
        id = "/user_id"
        headers = {{ Authorization = "Bearer {{access_token}}", x-api-key = "{{key}}" }}

        [resource]
        base_url = "http://127.0.0.1:{port}"
        headers = {{ Authorization = "Bearer {{access_token}}" }}

        [client.key]
        about = "the key of the account call"
        "#
    )
}

async fn a_profile_in_a_folder_makes_a_provider(database: TestDatabase) {
    let folder = tempfile::tempdir().unwrap();
    let mut simulated = SimulatorSettings::default();
    simulated.divar.refresh_parameters = RefreshParameters::Ignored;
    let mut broker = TestBroker::start_with(database, simulated, "").await;
    let port = broker.simulator(Simulated::Divar).port();
    fs::write(folder.path().join("acme.toml"), acme(port)).unwrap();
    broker
        .restart(|settings| {
            let folder = folder.path().to_str().unwrap();
            settings["providers"].as_table_mut().unwrap().insert("folder".into(), folder.into());
            // The client keeps its name, which is in the redirect URI that is registered.
            settings["clients"]["divar"] = toml::toml! {
                provider = "acme"
                client_id = "simulated-divar-app"
                client_secret = "simulated-divar-secret"
                scopes = ["USER_ID", "offline_access"]
                settings = { key = "simulated-divar-api-key" }
            }
            .into();
        })
        .await;
    let link = broker.link("acme-one", "divar", json!({ "self": true })).await;
    let mut person = Person::new(&broker);
    let authorize = person.start(&link).await;
    assert!(authorize.contains("code_challenge_method=S256"), "{authorize}");
    let callback = person.decide(&authorize, "allow").await;
    let back = person.get(&callback).await;
    let page = person.get(back.header("location")).await;
    assert!(page.text.contains("Connected"), "{}", page.text);
    let token = broker.token("acme-one").await;
    assert_eq!(token.status, StatusCode::OK, "{token:?}");
    let token = token.json();
    assert_eq!(
        (&token["provider"], &token["account"]),
        (&json!("acme"), &json!("simulated-user-1"))
    );
    broker.advance(std::time::Duration::from_secs(3_200)).await;
    assert_eq!(broker.refresh_due().await, 1);
    assert_eq!(broker.token("acme-one").await.json()["generation"], 2);
    broker.stop().await;
}
