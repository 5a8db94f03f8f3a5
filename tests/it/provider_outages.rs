//! Providers that are down, ask for time, refuse our registration or refuse everybody: what lives is
//! served, nobody is condemned, and when they come back everything mends by itself.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::{Fault, Kind, Simulated, SimulatorSettings};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

/// Connections by client credentials, all due at once while their tokens live.
async fn due_at_once(broker: &TestBroker, which: Simulated, count: usize) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|number| format!("{which}-{number}")).collect();
    for name in &names {
        broker.create(name, which.as_str()).await;
    }
    broker.make_due().await;
    names
}

async fn notes(broker: &TestBroker) -> String {
    broker.health().await["notes"].to_string()
}

#[apply(on_both_engines!)]
async fn a_provider_that_is_down_is_left_alone_but_for_a_probe(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let names = due_at_once(&broker, Simulated::Avito, 12).await;
    let before = broker.posts(Simulated::Avito);
    broker.simulator(Simulated::Avito).fault(&Fault::ServerError { processed: false }, 100);
    for _ in 0..5 {
        broker.refresh_due().await;
    }
    let begun = broker.posts(Simulated::Avito) - before;
    // Five in a row open the breaker; seven more may have been under way by then.
    assert!((5..=12).contains(&begun), "{begun}");
    broker.all_served(&names).await;
    assert!(notes(&broker).await.contains("Avito does not answer"));

    // Ten minutes of it: a probe now and then, and no more.
    let before = broker.posts(Simulated::Avito);
    for _ in 0..40 {
        broker.advance(Duration::from_secs(15)).await;
        broker.refresh_due().await;
    }
    let probes = broker.posts(Simulated::Avito) - before;
    assert!((9..=14).contains(&probes), "{probes} in ten minutes");
    broker.all_served(&names).await;

    // The provider is back: the next probe finds out, and the rest follows.
    broker.simulator(Simulated::Avito).clear_faults();
    broker.advance(Duration::from_mins(6)).await;
    for _ in 0..3 {
        broker.refresh_due().await;
        broker.advance(Duration::from_mins(5)).await;
    }
    for name in &names {
        let view = broker.view(name).await;
        assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)), "{view}");
    }
    assert!(!notes(&broker).await.contains("Avito"));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_provider_that_asks_for_time_gets_it(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for (wait, least) in [
        ("120", 120),
        ("0", 1),
        ("-5", 0),
        ("315360000", 900),
        ("Sun, 21 Oct 2125 07:28:00 GMT", 900),
        ("soon", 0),
    ] {
        let name = format!("avito-{}", wait.len());
        broker.create(&name, "avito").await;
        let other = format!("avito-other-{}", wait.len());
        broker.create(&other, "avito").await;
        let busy = Fault::Busy { retry_after: wait.to_owned() };
        broker.simulator(Simulated::Avito).fault(&busy, 1);
        let refused = broker.refresh(&name).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{wait}: {refused:?}");
        let before = broker.posts(Simulated::Avito);
        broker.make_due().await;
        if least > 1 {
            broker.advance(Duration::from_secs(least - 1)).await;
            broker.refresh_due().await;
            assert_eq!(broker.posts(Simulated::Avito), before, "{wait}: the others wait as well");
        }
        broker.advance(Duration::from_secs(16)).await;
        broker.refresh_due().await;
        assert!(broker.posts(Simulated::Avito) > before, "{wait}");
        assert_eq!(broker.token(&other).await.status, StatusCode::OK);
        broker.advance(Duration::from_mins(6)).await;
        broker.refresh_due().await;
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refused_registration_touches_no_connection(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    let names = due_at_once(&broker, Simulated::Avito, 20).await;
    let before = broker.posts(Simulated::Avito);
    let mut right = None;
    broker
        .restart(|settings| {
            let client = settings["clients"]["avito"].as_table_mut().unwrap();
            right = client.insert("client_secret".into(), "wrong".into());
        })
        .await;
    for _ in 0..5 {
        broker.refresh_due().await;
    }
    let begun = broker.posts(Simulated::Avito) - before;
    assert!((3..=11).contains(&begun), "{begun} of 20 before it was understood");
    for name in &names {
        let view = broker.view(name).await;
        assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(1)), "{view}");
    }
    broker.all_served(&names).await;
    assert!(notes(&broker).await.contains("refuses the registration of client avito"));
    // Once a minute one of them asks whether that is mended.
    let before = broker.posts(Simulated::Avito);
    for _ in 0..4 {
        broker.advance(Duration::from_secs(61)).await;
        broker.refresh_due().await;
    }
    assert_eq!(broker.posts(Simulated::Avito) - before, 4);
    broker.restart(|settings| settings["clients"]["avito"]["client_secret"] = right.unwrap()).await;
    broker.advance(Duration::from_secs(61)).await;
    broker.refresh_due().await;
    for name in &names {
        assert_eq!(broker.view(name).await["generation"], 2, "{name}");
    }
    broker.stop().await;
}

/// Connections of accounts that consented, all due at once while their tokens live.
async fn consented(broker: &TestBroker, count: usize) -> Vec<String> {
    let names = broker.consented(count).await;
    broker.make_due().await;
    names
}

async fn states(broker: &TestBroker, names: &[String]) -> Vec<Value> {
    let mut states = Vec::new();
    for name in names {
        states.push(broker.view(name).await["state"].clone());
    }
    states
}

#[apply(on_both_engines!)]
async fn many_refusals_condemn_nobody(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let names = consented(&broker, 12).await;
    broker.simulator(Simulated::Avito).fault(&Fault::Refused, 100);
    for _ in 0..3 {
        broker.refresh_due().await;
    }
    let states = states(&broker, &names).await;
    assert!(!states.contains(&json!("needs_consent")), "{states:?}");
    assert!(states.contains(&json!("suspect")), "{states:?}");
    broker.all_served(&names).await;
    assert!(notes(&broker).await.contains("Avito refuses many grants at once"));
    // Quarter of an hour of it: a probe in five minutes, and nobody is condemned.
    let before = broker.posts(Simulated::Avito);
    for _ in 0..15 {
        broker.advance(Duration::from_mins(1)).await;
        broker.refresh_due().await;
    }
    assert!((2..=4).contains(&(broker.posts(Simulated::Avito) - before)));
    broker.simulator(Simulated::Avito).clear_faults();
    for _ in 0..4 {
        broker.advance(Duration::from_mins(6)).await;
        broker.refresh_due().await;
    }
    for name in &names {
        let view = broker.view(name).await;
        assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)), "{view}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn few_refusals_are_believed(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let names = consented(&broker, 6).await;
    broker.simulator(Simulated::Avito).fault(&Fault::Refused, 2);
    broker.refresh_due().await;
    let states = states(&broker, &names).await;
    let condemned = states.iter().filter(|state| **state == "needs_consent").count();
    assert_eq!(condemned, 2, "{states:?}");
    assert_eq!(broker.presented(Simulated::Avito, Kind::Refresh), (6, 1));
    // What a person must mend is asked for once, and not presented again.
    broker.advance(Duration::from_hours(1)).await;
    broker.refresh_due().await;
    assert_eq!(broker.presented(Simulated::Avito, Kind::Refresh).1, 1);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn the_pace_of_a_profile_is_kept(database: TestDatabase) {
    let pace = "[providers.profiles.avito.pace]\nper_second = 1000\nburst = 3\nin_flight = 2\n";
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), pace).await;
    due_at_once(&broker, Simulated::Avito, 6).await;
    let avito = broker.simulator(Simulated::Avito);
    avito.fault(&Fault::Late, 6);
    let before = broker.posts(Simulated::Avito);
    assert_eq!(broker.broker().start_due(10).await.unwrap(), 6);
    // Somebody at another provider is refreshed meanwhile: whatever could begin has begun.
    broker.create("admitad-own", "admitad").await;
    while broker.posts(Simulated::Avito) - before < 2 {
        tokio::task::yield_now().await;
    }
    let refreshed = broker.refresh("admitad-own");
    assert_eq!(refreshed.await.status, StatusCode::OK);
    assert_eq!(broker.posts(Simulated::Avito) - before, 2, "no more than two under way");
    avito.clear_faults();
    broker.idle().await;
    assert_eq!(broker.posts(Simulated::Avito) - before, 6);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_connection_that_kills_is_left_alone(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    broker.create("admitad-own", "admitad").await;
    let store = broker.broker().store().clone();
    broker.make_due().await;
    let before = broker.posts(Simulated::Avito);
    // Three processes claim it and are never heard of again.
    for attempt in ["one", "two", "three"] {
        let seen = store.record("avito-own").await.unwrap().unwrap();
        let claimed = store.claim(&seen, attempt, None, Duration::from_mins(1)).await.unwrap();
        assert!(claimed.held().is_some(), "{attempt}");
        broker.advance(Duration::from_secs(61)).await;
    }
    broker.refresh_due().await;
    let view = broker.view("avito-own").await;
    assert_eq!((&view["state"], &view["reason"]), (&json!("suspect"), &json!("crashes")), "{view}");
    assert_eq!(broker.posts(Simulated::Avito), before);
    assert_eq!(broker.view("admitad-own").await["generation"], 2, "others go on");
    assert_eq!(broker.token("avito-own").await.status, StatusCode::OK);
    // An hour later it has another chance.
    broker.advance(Duration::from_mins(59)).await;
    broker.refresh_due().await;
    assert_eq!(broker.posts(Simulated::Avito), before);
    broker.advance(Duration::from_mins(2)).await;
    broker.refresh_due().await;
    let view = broker.view("avito-own").await;
    assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)), "{view}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refresh_token_does_not_die_of_disuse(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    // Tokens of a minute are refreshed for their readers alone, and nobody reads.
    for (which, days) in [(Simulated::Amocrm, 90), (Simulated::Divar, 30), (Simulated::Avito, 365)]
    {
        let name = format!("{which}-shop");
        broker.simulator(which).fault(&Fault::ExpiresIn { value: json!(60) }, 1_000);
        broker.connect(&name, which).await;
        let mut refreshes = 0;
        for day in 0..400 {
            broker.advance(Duration::from_hours(24)).await;
            refreshes += broker.refresh_due().await;
            let state = broker.view(&name).await["state"].clone();
            assert_eq!(state, "active", "{name} on day {day}");
        }
        assert!((400 / days..=60).contains(&refreshes), "{name}: {refreshes} in 400 days");
        let token = broker.token(&name).await;
        assert_eq!(token.status, StatusCode::OK, "{name}: {token:?}");
        broker.delete(&name).await;
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_capped_token_is_used_to_its_end(database: TestDatabase) {
    let mut simulated = SimulatorSettings::default();
    simulated.admitad.token_cap = 1;
    let broker = TestBroker::start_with(database, simulated, "").await;
    broker.create("admitad-own", "admitad").await;
    let first = broker.token("admitad-own").await.json();
    // Due while its token lives, and the provider gives no second one (its error code 6).
    let capped = broker.refresh("admitad-own").await;
    assert_eq!(capped.status, StatusCode::SERVICE_UNAVAILABLE, "{capped:?}");
    for _ in 0..6 {
        broker.advance(Duration::from_hours(24)).await;
        broker.refresh_due().await;
        let token = broker.token("admitad-own").await;
        assert_eq!(token.json()["access_token"], first["access_token"], "{token:?}");
    }
    broker.advance(Duration::from_hours(30)).await;
    broker.refresh_due().await;
    let next = broker.token("admitad-own").await;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert_ne!(next.json()["access_token"], first["access_token"]);
    broker.stop().await;
}

/// Makes `avito-0` due, and when that is under way `avito-1`, too.
async fn one_after_the_other(broker: &TestBroker) {
    let before = broker.posts(Simulated::Avito);
    broker.execute("UPDATE connections SET refresh_at = created_at WHERE name = 'avito-0'").await;
    assert_eq!(broker.broker().start_due(10).await.unwrap(), 1);
    while broker.posts(Simulated::Avito) == before {
        tokio::task::yield_now().await;
    }
    broker.execute("UPDATE connections SET refresh_at = created_at WHERE name = 'avito-1'").await;
    broker.broker().start_due(10).await.unwrap();
}

#[apply(on_both_engines!)]
async fn a_reader_does_not_wait_behind_the_background(database: TestDatabase) {
    let pace = "[providers.profiles.avito.pace]\nin_flight = 1\n";
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), pace).await;
    for name in ["avito-0", "avito-1"] {
        broker.create(name, "avito").await;
        broker.advance(Duration::from_secs(1)).await;
    }
    broker.simulator(Simulated::Avito).fault(&Fault::Late, 1);
    one_after_the_other(&broker).await;
    // Their tokens end meanwhile.
    broker.advance(Duration::from_hours(25)).await;
    // The only place is taken; somebody needs the other one's token now.
    let token = broker.token("avito-1").await;
    assert_eq!(token.json()["generation"], 2, "{token:?}");
    broker.broker().sync().await.unwrap();
    assert_eq!(broker.view("avito-0").await["generation"], 1, "it is still under way");
    broker.simulator(Simulated::Avito).clear_faults();
    broker.idle().await;
    assert_eq!(broker.view("avito-0").await["generation"], 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_operator_who_joins_a_waiting_refresh_is_let_through(database: TestDatabase) {
    let pace = "[providers.profiles.avito.pace]\nin_flight = 1\n";
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), pace).await;
    for name in ["avito-0", "avito-1", "avito-2"] {
        broker.create(name, "avito").await;
        broker.advance(Duration::from_secs(1)).await;
    }
    let avito = broker.simulator(Simulated::Avito);
    avito.fault(&Fault::Late, 1);
    avito.fault(&Fault::ServerError { processed: false }, 100);
    one_after_the_other(&broker).await;
    // The second waits for the place of the first while the provider falls silent to everybody.
    while !notes(&broker).await.contains("Avito does not answer") {
        assert_eq!(broker.refresh("avito-2").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let silent = broker.posts(Simulated::Avito);
    let asked = broker.refresh("avito-1").await;
    assert_eq!(asked.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(broker.posts(Simulated::Avito), silent + 1, "{asked:?}");
    avito.clear_faults();
    broker.idle().await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_provider_with_many_due_takes_nothing_from_the_others(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    due_at_once(&broker, Simulated::Avito, 4).await;
    broker.create("admitad-own", "admitad").await;
    broker.make_due().await;
    // Avito's tokens end first, and there are more of them than one look takes.
    assert_eq!(broker.broker().refresh_due(2).await.unwrap(), 3);
    assert_eq!(broker.view("admitad-own").await["generation"], 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_key_that_nobody_has_confirmed_for_long_opens_nothing(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let statuses = async || {
        let mut statuses = Vec::new();
        let report = json!({ "fingerprint": "0000000000000000" });
        for (key, method, path, body) in [
            (&broker.service_key, Method::GET, "/v1/connections/avito-own/token", None),
            (
                &broker.service_key,
                Method::POST,
                "/v1/connections/avito-own/token/rejected",
                Some(report),
            ),
            (&broker.service_key, Method::GET, "/v1/connections", None),
            (&broker.operator_key, Method::GET, "/v1/connections", None),
            (&broker.operator_key, Method::GET, "/v1/connections/avito-own", None),
            (&broker.operator_key, Method::GET, "/v1/freezes", None),
            (&broker.operator_key, Method::GET, "/v1/events", None),
        ] {
            let answer = broker.ask(key, method, path, body).await;
            if answer.status != StatusCode::OK {
                assert_eq!(answer.json()["code"], "provider_unavailable", "{path}: {answer:?}");
                assert_eq!(answer.header("retry-after"), "5", "{path}");
            }
            statuses.push(answer.status);
        }
        let url = format!("{}/oauth2/token", broker.internal_url);
        let form = [("grant_type", "client_credentials"), ("scope", "avito-own")];
        let oauth = broker.http.post(url).basic_auth("reader", Some(&broker.service_key));
        statuses.push(oauth.form(&form).send().await.unwrap().status());
        let wrong = broker.ask("tbs_000000000000_x", Method::GET, "/v1/connections", None).await;
        assert!(!wrong.status.is_success(), "{wrong:?}");
        statuses
    };
    let health = async || broker.ask("", Method::GET, "/health", None).await;
    broker.clock.advance(Duration::from_mins(14));
    assert_eq!(statuses().await, [StatusCode::OK; 8]);
    assert_eq!(health().await.json()["status"], "ok");

    broker.clock.advance(Duration::from_secs(61));
    assert_eq!(statuses().await, [StatusCode::SERVICE_UNAVAILABLE; 8]);
    let down = health().await;
    assert_eq!(down.status, StatusCode::SERVICE_UNAVAILABLE, "{down:?}");
    assert_eq!(
        (&down.json()["status"], &down.json()["database"]["reachable"]),
        (&json!("down"), &json!(true))
    );
    assert!(down.text.contains("no key is accepted"), "{down:?}");
    let live = broker.ask("", Method::GET, "/health/live", None).await;
    assert_eq!(live.status, StatusCode::NO_CONTENT);

    broker.broker().sync().await.unwrap();
    assert_eq!(statuses().await, [StatusCode::OK; 8]);
    assert_eq!(health().await.status, StatusCode::OK);
    broker.stop().await;
}
