//! Providers that answer badly: whatever comes, no stored token is lost or replaced by rubbish, a
//! live token is served, and the next good answer mends the connection.

use reqwest::StatusCode;
use serde_json::{Value, json};
use token_broker::simulator::{Fault, Kind, Simulated};

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

/// Every answer that brings no grant and lets the provider forget the request.
fn unprocessed() -> Vec<Fault> {
    vec![
        Fault::Html { processed: false },
        Fault::Empty { processed: false },
        Fault::ErrorInOk { processed: false },
        Fault::ServerError { processed: false },
        Fault::Drop { processed: false },
    ]
}

#[apply(on_both_engines!)]
async fn a_refresh_survives_every_bad_answer(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        broker.connect(&name, which).await;
        for fault in unprocessed() {
            let before = broker.token(&name).await.json();
            broker.simulator(which).fault(&fault, 1);
            let failed = broker.refresh(&name).await;
            assert!(failed.status.is_server_error(), "{which} {fault:?}: {failed:?}");
            assert_eq!(failed.header("content-type"), "application/problem+json");
            // What lives is served as it was.
            let after = broker.token(&name).await;
            assert_eq!(after.status, StatusCode::OK, "{which} {fault:?}: {after:?}");
            assert_eq!(after.json()["access_token"], before["access_token"]);
            assert_eq!(after.json()["stale"], true);
            let view = broker.view(&name).await;
            assert!(view["last_error"]["code"].is_string(), "{view}");
            // The refresh token that was not spent still works.
            let mended = broker.refresh(&name).await;
            assert_eq!(mended.status, StatusCode::OK, "{which} {fault:?}: {mended:?}");
            assert_eq!(mended.json()["state"], "active");
            assert!(mended.json()["last_error"].is_null());
        }
        // The provider has spent the refresh token, and its answer has no access token: the new
        // refresh token in it is kept, or the grace of the old one used.
        let before = broker.token(&name).await.json();
        broker.simulator(which).fault(&Fault::NoAccessToken, 1);
        let failed = broker.refresh(&name).await;
        assert!(failed.status.is_server_error(), "{which}: {failed:?}");
        let after = broker.token(&name).await.json();
        assert_eq!(after["access_token"], before["access_token"], "{which}");
        let mended = broker.refresh(&name).await;
        assert_eq!(mended.status, StatusCode::OK, "{which}: {mended:?}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_bad_answer_to_the_code_leaves_everything_as_it_was(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let mut faults = unprocessed();
    faults.extend([Fault::CutBody { at: 40 }, Fault::Body { text: "{\"scope\":".to_owned() }]);
    faults.push(Fault::Drop { processed: true });
    for fault in faults {
        let before = broker.token("avito-shop").await.json();
        broker.simulator(Simulated::Avito).fault(&fault, 1);
        let page = broker.consent("avito-shop", "avito", json!({})).await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.text.contains("did not succeed"), "{fault:?}: {}", page.text);
        let after = broker.token("avito-shop").await.json();
        assert_eq!(before["access_token"], after["access_token"], "{fault:?}");
        assert_eq!(broker.view("avito-shop").await["state"], "active");
    }
    // An exchange is never sent again.
    assert_eq!(broker.presented(Simulated::Avito, Kind::Code).1, 1);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refresh_token_that_is_all_a_code_brought_brings_the_rest(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    // Divar takes a refresh token only together with its access token.
    for which in Simulated::ALL.into_iter().filter(|which| *which != Simulated::Divar) {
        let name = format!("{which}-shop");
        broker.simulator(which).fault(&Fault::NoAccessToken, 1);
        broker.connect_any(&name, which.as_str()).await;
        assert_eq!(broker.presented(which, Kind::Code), (1, 1), "{which}");
        let refreshed = broker.refresh(&name).await;
        assert_eq!(refreshed.status, StatusCode::OK, "{which}: {refreshed:?}");
    }
    // One that works for nothing leaves all as it was.
    broker.simulator(Simulated::Avito).fault(&Fault::NoAccessToken, 1);
    broker.simulator(Simulated::Avito).fault(&Fault::ServerError { processed: true }, 1);
    let page = broker.consent("avito-other", "avito", json!({ "self": true })).await;
    assert!(page.text.contains("did not succeed"), "{}", page.text);
    assert_eq!(broker.view("avito-other").await["state"], "pending_consent");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn an_odd_lifetime_is_read_or_replaced_by_the_usual_one(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    for (value, about) in [
        (json!("3600"), 3_600),
        (json!(3_600.0), 3_600),
        (json!(-1), 86_400),
        (json!(0), 86_400),
        (json!("soon"), 86_400),
        (json!(null), 86_400),
        (json!(1e300), 86_400),
        (json!(10_000_000_000_u64), 90 * 86_400),
    ] {
        let fault = Fault::ExpiresIn { value: value.clone() };
        broker.simulator(Simulated::Avito).fault(&fault, 1);
        let refreshed = broker.refresh("avito-shop").await;
        assert_eq!(refreshed.status, StatusCode::OK, "{value}: {refreshed:?}");
        let left = broker.token("avito-shop").await.json()["expires_in"].as_i64().unwrap();
        assert!((about - 60..=about).contains(&left), "{value}: {left} s, not {about}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_wrong_client_secret_touches_no_connection(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    for which in Simulated::ALL {
        broker.connect(&format!("{which}-shop"), which).await;
    }
    broker
        .restart(|settings| {
            for which in Simulated::ALL {
                settings["clients"][which.as_str()]["client_secret"] = "wrong".into();
            }
        })
        .await;
    for which in Simulated::ALL {
        let name = format!("{which}-shop");
        let before: Value = broker.view(&name).await;
        let refused = broker.refresh(&name).await;
        assert_eq!(refused.status, StatusCode::BAD_GATEWAY, "{which}: {refused:?}");
        assert_eq!(refused.json()["code"], "provider_misconfigured");
        let after = broker.view(&name).await;
        assert_eq!(
            (&after["state"], &after["generation"]),
            (&before["state"], &before["generation"])
        );
        assert_eq!(broker.token(&name).await.status, StatusCode::OK);
    }
    broker.stop().await;
}
