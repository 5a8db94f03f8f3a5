//! A provider that nobody wrote code for: a profile of the user's own, PKCE included.

use std::fs;

use reqwest::StatusCode;
use serde_json::json;
use tempfile::TempDir;
use token_broker::simulator::{
    Simulated, SimulatorSettings,
    settings::{RefreshParameters, RevocationEndpoint},
};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

/// The profile that the guide shows, at a simulated Divar that stands in for its provider.
fn acme(port: u16) -> String {
    let guide = include_str!("../../src/guide/profiles.md");
    let profile = guide.split("```toml\n").find(|block| block.starts_with("title = \"Acme\""));
    let profile = profile.unwrap().split("```").next().unwrap();
    let (site, api) = (format!("http://localhost:{port}"), format!("http://127.0.0.1:{port}"));
    let mut here = profile.to_owned();
    for (there, here_instead) in [
        ("title = \"Acme\"\n", "title = \"Acme\"\nnetwork = \"loopback\"\n".to_owned()),
        ("https://login.acme.example/authorize", format!("{site}/oauth2/auth")),
        ("https://login.acme.example/token", format!("{site}/oauth2/token")),
        ("https://login.acme.example/revoke", format!("{site}/oauth2/revoke")),
        ("https://api.acme.example/me", format!("{api}/v1/open-platform/users")),
        ("https://api.acme.example", api),
    ] {
        assert!(here.contains(there), "{there} is in the guide");
        here = here.replace(there, &here_instead);
    }
    here
}

/// A broker whose one client `divar` is at the provider Acme. The profiles lie in the folder.
pub(crate) async fn start(database: TestDatabase) -> (TestBroker, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut simulated = SimulatorSettings::default();
    simulated.divar.refresh_parameters = RefreshParameters::Ignored;
    simulated.divar.revocation = RevocationEndpoint::Offered;
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
    (broker, folder)
}

#[apply(on_both_engines!)]
async fn a_profile_in_a_folder_makes_a_provider(database: TestDatabase) {
    let (broker, _folder) = start(database).await;
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
