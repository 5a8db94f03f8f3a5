//! What PostgreSQL tells of its cluster, and what becomes of it where it may not.

use std::fs;

use reqwest::StatusCode;
use secrecy::SecretString;
use serde_json::{Value, json};
use token_broker::{clock::Clock, simulator::Simulated, store::Store};

use super::{all, release, states};
use crate::support::{broker::TestBroker, database::TestDatabase};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_is_no_restore_and_another_cluster_is() {
    let mut broker = TestBroker::start(TestDatabase::postgres().await).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    broker.halt().await;
    let watermark = broker.state("watermark");
    let mut seen: Value = serde_json::from_slice(&fs::read(&watermark).unwrap()).unwrap();
    let now = seen["timeline"].take();
    assert!(now.is_string(), "{now}");
    seen["timeline"] = json!("000000ab");
    fs::write(&watermark, seen.to_string()).unwrap();
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, all("active", 1));
    let seen: Value = serde_json::from_slice(&fs::read(&watermark).unwrap()).unwrap();
    assert_eq!(seen["timeline"], now);

    // A copy on another cluster is known even to a replica that is new.
    broker.halt().await;
    broker
        .execute(
            "DO $$ BEGIN
                 ASSERT (SELECT home_cluster FROM identity) =
                     (SELECT system_identifier::text FROM pg_control_system());
                 UPDATE identity SET home_cluster = '1';
             END $$",
        )
        .await;
    fs::remove_file(&watermark).unwrap();
    broker.restart(|_| {}).await;
    let view = broker.view("divar-shop").await;
    assert_eq!(
        (&view["state"], &view["reason"]),
        (&json!("quarantined"), &json!("database_moved"))
    );
    release(&broker, &["--all"]).await;
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, all("active", 1), "the move is accepted");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_know_nothing_of_the_cluster_serves() {
    let mut database = TestDatabase::postgres().await;
    let told = database.store.identity().await.unwrap();
    assert!(told.system.is_some() && told.timeline.is_some(), "{told:?}");
    database
        .execute(
            "REVOKE EXECUTE ON FUNCTION pg_control_system(), pg_walfile_name(pg_lsn) FROM PUBLIC;
             DO $$ DECLARE name text := current_schema(); BEGIN
                 EXECUTE format('CREATE ROLE %I', name);
                 EXECUTE format('GRANT ALL ON SCHEMA %I TO %I', name, name);
                 EXECUTE format('GRANT ALL ON ALL TABLES IN SCHEMA %I TO %I', name, name);
             END $$",
        )
        .await;
    let url = database.plain_url();
    let role = url.rsplit_once("options[search_path]=").unwrap().1;
    database.url = SecretString::from(format!("{url}&options[role]={role}"));
    let store = Store::connect(&database.url, Clock::system()).await.unwrap();
    let untold = store.identity().await.unwrap();
    assert_eq!((untold.system, untold.timeline), (None, None));
    store.close().await;

    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    assert_eq!(broker.token("avito-own").await.status, StatusCode::OK);
    broker.stop().await;
}
