use secrecy::SecretString;
use token_broker::{
    clock::Clock,
    seal::secret::Digest,
    simulator::{Simulated, SimulatorSettings, Simulators},
};

async fn started(change: impl FnOnce(&mut SimulatorSettings)) -> Simulators {
    let mut settings = SimulatorSettings::default();
    change(&mut settings);
    Simulators::start(settings, Clock::system()).await.unwrap()
}

#[tokio::test]
async fn an_overlay_points_a_profile_at_the_simulator() {
    let simulators = started(|_| ()).await;
    let overlays = simulators.overlays();
    assert_eq!(overlays.len(), Simulated::ALL.len());
    let port = |which| simulators.of(which).port();

    let amocrm = &overlays["amocrm"];
    assert_eq!(amocrm["network"].as_str(), Some("loopback"));
    let suffixes = amocrm["vars"]["account_host"]["suffixes"].as_array().unwrap();
    assert_eq!(suffixes, &[toml::Value::from("amocrm.localhost")]);
    let expected =
        format!("http://{{account_host}}:{}/oauth2/access_token", port(Simulated::Amocrm));
    assert_eq!(amocrm["token"]["url"].as_str(), Some(expected.as_str()));
    assert!(amocrm.contains_key("key_exchange") && !overlays["kommo"].contains_key("key_exchange"));

    let expected = format!("http://localhost:{}/oauth2/token", port(Simulated::Divar));
    assert_eq!(overlays["divar"]["token"]["url"].as_str(), Some(expected.as_str()));
    let expected = simulators.of(Simulated::Avito).base_url();
    assert_eq!(overlays["avito"]["resource"]["base_url"].as_str(), Some(expected.as_str()));
}

#[tokio::test]
async fn an_application_is_what_a_client_of_the_simulator_is_configured_with() {
    let simulators = started(|settings| settings.kommo.accounts[0].id = 7).await;
    let applications = simulators.applications();
    let accounts = applications.values().map(|application| application.account.as_str());
    let accounts: Vec<_> = accounts.collect();
    assert_eq!(accounts, ["30000001", "20000001", "10000001", "simulated-user-1", "7"]);
    let key = &applications["divar"].settings["api_key"];
    assert_eq!(Digest::of(key), Digest::of(&SecretString::from("simulated-divar-api-key")));
    assert!(applications["avito"].scopes.contains(&"user:read".to_owned()));
}

#[test]
fn settings_may_be_partial_but_not_misspelt() {
    let text = "[avito]\naccess_life = 60\nold_refresh_token = \"stays\"\n[divar]\ngrace = 0";
    let mut settings: SimulatorSettings = toml::from_str(text).unwrap();
    assert_eq!((settings.avito.access_life, settings.divar.grace), (60, 0));
    assert_eq!(settings.avito.client_id, SimulatorSettings::default().avito.client_id);
    settings.kommo.redirect_uri = Some("http://kept/".to_owned());
    settings.register_callbacks("http://127.0.0.1:1/");
    assert_eq!(settings.kommo.redirect_uri.as_deref(), Some("http://kept/"));
    assert_eq!(settings.divar.redirect_uris, ["http://127.0.0.1:1/callback/divar"]);

    for word in [
        "none",
        "grace_same_successor",
        "grace_new_successors",
        "grace_newest_lives",
        "single_use",
        "single_use_family",
    ] {
        for which in Simulated::ALL {
            let text = format!("[{which}]\nrotation = \"{word}\"\nrotation_grace = 5");
            toml::from_str::<SimulatorSettings>(&text).unwrap();
        }
    }
    for wrong in [
        "[avito]\nacces_life = 60",
        "[divar]\nrotation = \"grace\"",
        "[amocrm]\nrefresh_mode = \"soft\"",
        "[github]",
    ] {
        assert!(toml::from_str::<SimulatorSettings>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_documented_defaults_are_the_true_ones() {
    let defaults = include_str!("../../../config/default.toml").parse::<toml::Table>().unwrap();
    let mut documented: SimulatorSettings = defaults["simulators"].clone().try_into().unwrap();
    // But for the ports, which `simulate` keeps from one start to the next.
    documented.take_free_ports();
    assert_eq!(format!("{documented:?}"), format!("{:?}", SimulatorSettings::default()));
}

#[tokio::test]
async fn a_port_in_use_stops_the_start() {
    let simulators = started(|_| ()).await;
    let mut settings = SimulatorSettings::default();
    settings.kommo.port = simulators.of(Simulated::Kommo).port();
    let refused = Simulators::start(settings, Clock::system()).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}
