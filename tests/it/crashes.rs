//! The real binary dies in the middle of a refresh, and starts again.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{Connection as _, SqliteConnection};
use token_broker::simulator::{Fault, Kind, Simulated};
use tokio::{join, time::timeout};

use crate::support::{database::TestDatabase, deployment::Deployment, wait::until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_was_received_survives_the_death_of_the_process() {
    let (deployment, mut broker) =
        Deployment::start_process(TestDatabase::sqlite().await, "").await;
    broker.connect_any("amocrm-shop", "amocrm").await;
    let amocrm = deployment.simulator(Simulated::Amocrm);
    // The answer waits until the database has been taken away.
    amocrm.fault(&Fault::Late, 1);
    let path = "/v1/connections/amocrm-shop/refresh";
    let request = broker.request(Method::POST, path, &broker.operator_key).send();
    let death = async {
        deployment.until_presented(Simulated::Amocrm).await;
        let mut holder = SqliteConnection::connect(deployment.database.plain_url()).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
        amocrm.clear_faults();
        until("the grant is on the disk", async || broker.spooled() > 0).await;
        broker.kill().await;
        sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
        holder.close().await.unwrap();
    };
    let (answer, ()) = join!(request, death);
    assert!(answer.is_err(), "the process died before it could answer");

    broker.start_held(None);
    broker.program.hear("stored a grant that a crash had left").await;
    broker.program.hear("serving").await;
    let token = broker.token("amocrm-shop").await.json();
    assert_eq!(token["generation"], 2, "{token}");
    assert!(amocrm.oracle().of(token["access_token"].as_str().unwrap()).unwrap().alive);
    // The refresh token that came with it is the live one, and the old one stays unused.
    let refreshed = broker.refresh("amocrm-shop").await;
    let view = refreshed.json();
    assert_eq!((refreshed.status, &view["generation"]), (StatusCode::OK, &json!(3)), "{view}");
    assert!(deployment.presented(Simulated::Amocrm, Kind::Refresh).1 <= 1);
    assert_eq!(deployment.spool_files(), 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_died_with_the_process_is_asked_for_again_at_once() {
    let (deployment, mut broker) =
        Deployment::start_process(TestDatabase::sqlite().await, "").await;
    for (name, which) in [("divar-shop", Simulated::Divar), ("amocrm-shop", Simulated::Amocrm)] {
        broker.connect_any(name, which.as_str()).await;
        deployment.simulator(which).fault(&Fault::Late, 1);
        let path = format!("/v1/connections/{name}/refresh");
        let request = broker.request(Method::POST, &path, &broker.operator_key).send();
        let death = async {
            deployment.until_presented(which).await;
            broker.kill().await;
        };
        let (answer, ()) = join!(request, death);
        assert!(answer.is_err(), "the process died before it could answer");
        broker.start_held(None);
        // It knows its own attempt again and does not wait for the lease to end.
        broker.program.hear("refreshes were under way when this replica last ended").await;
        broker.program.hear("serving").await;
        let settled = async {
            loop {
                let view = broker.view(name).await;
                if view["generation"] == 2 || view["state"] == "needs_consent" {
                    return view;
                }
            }
        };
        let view = timeout(Duration::from_secs(20), settled).await.expect("settled in seconds");
        match which {
            // Within its grace the provider gives another pair for the same token.
            Simulated::Divar => assert_eq!(view["state"], "active", "{view}"),
            // Nobody could have saved this one; it is known at once, for what it is.
            _ => assert_eq!(view["reason"], "lost_in_rotation", "{view}"),
        }
        let token = broker.token(name).await.json();
        assert!(token["access_token"].is_string(), "the old token lives: {token}");
    }
}
