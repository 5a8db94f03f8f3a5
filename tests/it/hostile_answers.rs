//! Answers of status 200 that no provider should give, through the whole broker: if the bytes hold
//! one well-formed refresh token, it is kept and the next refresh works; what cannot stand in a
//! header is served to nobody.

use reqwest::StatusCode;
use token_broker::simulator::{Fault, Kind, Simulated, SimulatorSettings, settings::RotationClass};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

/// Nothing here is about how fast a provider may be asked.
const UNHURRIED: &str = "
    [providers.profiles.avito.pace]
    per_second = 1000
    burst = 1000
    [providers.profiles.divar.pace]
    per_second = 1000
    burst = 1000";

const R: &str = r#""refresh_token":"{refresh_token}""#;
const A: &str = r#""access_token":"at-1""#;

/// Answers with an access token of use; it is served.
fn usable() -> Vec<(&'static str, String)> {
    let lives = [
        "-1",
        "0",
        "1e308",
        r#""3600""#,
        "3600.7",
        "null",
        "true",
        r#""NaN""#,
        r#"{"seconds":1}"#,
        "99999999999999999999",
    ];
    let lives = lives.map(|life| ("a life", format!(r#"{{{A},{R},"expires_in":{life}}}"#)));
    let mut all = lives.to_vec();
    all.extend([
        ("no life", format!("{{{A},{R}}}")),
        ("twice the same", format!("{{{R},{A},{R}}}")),
        ("then null", format!(r#"{{{A},{R},"refresh_token":null}}"#)),
        ("then empty", format!(r#"{{{A},{R},"refresh_token":""}}"#)),
        ("first empty", format!(r#"{{"refresh_token":"",{A},{R}}}"#)),
        ("a number, and nested", format!(r#"{{{A},"refresh_token":7,"data":{{{R}}}}}"#)),
        ("nested", format!(r#"{{{A},"data":{{"deep":[{{{R}}}]}}}}"#)),
        ("byte order mark", format!("\u{feff}{{{A},{R}}}")),
        ("an escaped name", format!(r#"{{{A},"\u0072efresh_token":"{{refresh_token}}"}}"#)),
        ("an error beside it", format!(r#"{{{A},{R},"error":"invalid_grant"}}"#)),
        ("a scope of another kind", format!(r#"{{{A},{R},"scope":{{"a":[null]}}}}"#)),
        ("spaces", format!("\r\n\t{{ {A} ,\n{R} }}\r\n\r\n")),
    ]);
    all
}

/// Answers without one; what was served before is served on.
fn unusable() -> Vec<(&'static str, String)> {
    let huge = "x".repeat(20_000);
    let endless = "x".repeat(1_000_000);
    let access = [
        r#""a\r\nX-Injected: 1""#,
        r#""a\u0000t""#,
        r#""a t""#,
        r#""ät""#,
        r#""""#,
        "null",
        "7",
        "true",
        r#"["at"]"#,
        r#"{"at":1}"#,
    ];
    let access =
        access.map(|token| ("an access token", format!(r#"{{"access_token":{token},{R}}}"#)));
    let mut all = access.to_vec();
    let many = (0..70).fold(String::new(), |all, n| all + &format!(r#""m{n}":0,"#));
    let (deep, ends, abyss) = ("[".repeat(20), "]".repeat(20), "[".repeat(20_000));
    all.extend([
        ("too long", format!(r#"{{"access_token":"{huge}",{R}}}"#)),
        ("endless", format!(r#"{{{R},"access_token":"{endless}"}}"#)),
        ("endless beside it", format!(r#"{{{R},{A},"more":"{endless}"}}"#)),
        ("another type", format!(r#"{{{A},{R},"token_type":"mac"}}"#)),
        ("a type of another kind", format!(r#"{{{A},{R},"token_type":[1]}}"#)),
        ("an array", format!("[{{{A},{R}}}]")),
        ("nested", format!(r#"{{"data":{{{A},{R}}}}}"#)),
        ("deep", format!(r#"{{{A},"x":{deep}{ends},{R}}}"#)),
        ("an abyss", format!(r#"{{{A},{R},"x":{abyss}"#)),
        ("many members", format!("{{{many}{A},{R}}}")),
        ("a form", "access_token=at-1&refresh_token={refresh_token}".to_owned()),
        ("a page", format!("<html><body>{{{A},{R}}}</body></html>")),
        ("a guard in front", format!(")]}}',\n{{{A},{R}}}")),
        ("cut after it", format!("{{{R}")),
        ("cut in the next", format!(r#"{{{R},"access_token":"at"#)),
        ("two documents", format!("{{{A},{R}}}{{{A},{R}}}")),
        ("a comma too many", format!("{{{A},{R},}}")),
        ("zeros behind it", format!("{{{A},{R}}}\0\0")),
        ("a refusal", format!(r#"{{"error":"invalid_grant",{R}}}"#)),
        ("our fault", format!(r#"{{"error":"invalid_client",{R}}}"#)),
        ("its fault", format!(r#"{{"error":"server_error",{R}}}"#)),
        ("an error of another kind", format!(r#"{{"error":{{"code":1}},{R}}}"#)),
    ]);
    all
}

async fn start(database: TestDatabase, simulated: SimulatorSettings) -> TestBroker {
    TestBroker::start_with(database, simulated, UNHURRIED).await
}

#[apply(on_both_engines!)]
async fn a_refresh_token_survives_every_hostile_answer(database: TestDatabase) {
    let broker = start(database, SimulatorSettings::default()).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let all = usable().into_iter().map(|one| (true, one));
    for (of_use, (what, text)) in all.chain(unusable().into_iter().map(|one| (false, one))) {
        let shown: String = text.chars().take(120).collect();
        let before = broker.token("avito-shop").await.json();
        broker.simulator(Simulated::Avito).fault(&Fault::Body { text }, 1);
        let answer = broker.refresh("avito-shop").await;
        assert_eq!(answer.status == StatusCode::OK, of_use, "{what} {shown}: {answer:?}");
        let after = broker.token("avito-shop").await;
        assert_eq!(after.status, StatusCode::OK, "{what} {shown}: {after:?}");
        let after = after.json();
        if of_use {
            assert_eq!(after["access_token"], "at-1", "{what} {shown}");
            assert!(after["expires_in"].as_u64().unwrap() > 0, "{what} {shown}: {after}");
        } else {
            assert_eq!(after["access_token"], before["access_token"], "{what} {shown}");
        }
        // The refresh token that was sent is dead by now; the new one was in these bytes alone. A
        // second one shows that half of all requests do not fail, which would be an outage.
        for _ in 0..2 {
            let mended = broker.refresh("avito-shop").await;
            assert_eq!(mended.status, StatusCode::OK, "{what} {shown}: {mended:?}");
            assert_eq!(mended.json()["state"], "active", "{what} {shown}");
        }
    }
    assert_eq!(broker.presented(Simulated::Avito, Kind::Refresh).1, 1, "none is presented twice");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_is_left_after_the_grace_is_the_one_of_the_hostile_answer(database: TestDatabase) {
    let broker = start(database, SimulatorSettings::default()).await;
    for (number, (what, text)) in unusable().into_iter().enumerate() {
        let name = format!("divar-{number}");
        broker.connect(&name, Simulated::Divar).await;
        broker.simulator(Simulated::Divar).fault(&Fault::Body { text }, 1);
        let answer = broker.refresh(&name).await;
        assert_ne!(answer.status, StatusCode::OK, "{what}: {answer:?}");
        let taken = broker.view(&name).await["generation"] != 1;
        assert!(taken || broker.has_fallback(&name).await, "{what}: {answer:?}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_code_brings_its_refresh_token_through_a_hostile_answer(database: TestDatabase) {
    let broker = start(database, SimulatorSettings::default()).await;
    let of_use = [
        ("then null", format!(r#"{{{A},{R},"refresh_token":null}}"#)),
        ("nested", format!(r#"{{{A},"data":{{{R}}}}}"#)),
    ];
    let wanted = [
        "an access token",
        "endless",
        "another type",
        "an array",
        "deep",
        "a form",
        "a page",
        "cut after it",
        "a refusal",
        "its fault",
    ];
    let unusable = unusable().into_iter().filter(|(what, _)| wanted.contains(what));
    for (number, (what, text)) in of_use.into_iter().chain(unusable).enumerate() {
        let name = format!("avito-{number}");
        broker.simulator(Simulated::Avito).fault(&Fault::Body { text }, 1);
        broker.connect_any(&name, "avito").await;
        let refreshed = broker.refresh(&name).await;
        assert_eq!(refreshed.status, StatusCode::OK, "{what}: {refreshed:?}");
        assert_eq!(broker.token(&name).await.status, StatusCode::OK);
    }
    assert_eq!(broker.presented(Simulated::Avito, Kind::Code).1, 1, "no code is sent twice");
    assert_eq!(broker.presented(Simulated::Avito, Kind::Refresh).1, 1, "nor a refresh token");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_answer_without_a_refresh_token_keeps_the_old_one(database: TestDatabase) {
    let mut simulated = SimulatorSettings::default();
    simulated.avito.rotation = Some(RotationClass::None);
    let broker = start(database, simulated).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    for text in [
        format!("{{{A}}}"),
        format!(r#"{{{A},"refresh_token":""}}"#),
        format!(r#"{{{A},"refresh_token":null}}"#),
        format!(r#"{{{A},"refresh_token":7}}"#),
        format!(r#"{{{A},"refresh_token":"a\r\nb"}}"#),
    ] {
        broker.simulator(Simulated::Avito).fault(&Fault::Body { text: text.clone() }, 1);
        let odd = broker.refresh("avito-shop").await;
        assert_eq!(odd.status, StatusCode::OK, "{text}: {odd:?}");
        assert_eq!(broker.token("avito-shop").await.json()["access_token"], "at-1");
        let next = broker.refresh("avito-shop").await;
        assert_eq!(next.status, StatusCode::OK, "{text}: {next:?}");
    }
    broker.stop().await;
}
