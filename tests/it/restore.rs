//! A database that was restored or copied: nothing is presented from it until an operator says so.

mod cluster;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::{
    simulator::Simulated,
    store::{Claim, ClaimRejected},
};
use tokio::time::timeout;

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

/// A backup, taken and put back behind the broker's back.
const BACK_UP: &str = "
    CREATE TABLE saved_connections AS SELECT * FROM connections;
    CREATE TABLE saved_grants AS SELECT * FROM grants;
    CREATE TABLE saved_pending AS SELECT * FROM pending_grants;
    CREATE TABLE saved_tombstones AS SELECT * FROM spent_tokens;
    CREATE TABLE saved_identity AS SELECT * FROM identity;";
const RESTORE: &str = "
    DELETE FROM connections; INSERT INTO connections SELECT * FROM saved_connections;
    INSERT INTO grants SELECT * FROM saved_grants;
    INSERT INTO pending_grants SELECT * FROM saved_pending;
    DELETE FROM spent_tokens; INSERT INTO spent_tokens SELECT * FROM saved_tombstones;
    DELETE FROM identity; INSERT INTO identity SELECT * FROM saved_identity;";

/// Puts the backup back when no replica remembers any more what it stored since.
async fn restore_a_day_later(broker: &TestBroker) {
    for file in fs::read_dir(broker.state("stored")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    broker.execute(RESTORE).await;
}

/// How many token requests the providers have seen.
fn posts(broker: &TestBroker) -> u64 {
    Simulated::ALL.map(|which| broker.posts(which)).iter().sum()
}

/// Four connections at each provider, one of which nobody had to consent to.
async fn twenty_connections(broker: &TestBroker) -> Vec<String> {
    let mut names = Vec::new();
    for which in Simulated::ALL {
        for number in 0..4 {
            let name = format!("{which}-{number}");
            match which {
                Simulated::Avito => drop(broker.create(&name, "avito").await),
                _ => broker.connect(&name, which).await,
            }
            names.push(name);
        }
    }
    names
}

/// Everything that would refresh a connection: a reader, the operator's button, the background.
async fn press_everything(broker: &TestBroker, names: &[String]) {
    for name in names {
        broker.token(name).await;
        assert_eq!(broker.refresh(name).await.status, StatusCode::CONFLICT, "{name}");
    }
    assert_eq!(broker.refresh_due().await, 0);
    broker.idle().await;
}

async fn states(broker: &TestBroker) -> BTreeMap<String, usize> {
    let answer = broker.operator(Method::GET, "/v1/connections", None).await.json();
    let mut states = BTreeMap::new();
    for connection in answer["connections"].as_array().unwrap() {
        *states.entry(connection["state"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    states
}

fn all(state: &str, count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(state.to_owned(), count)])
}

async fn release(broker: &TestBroker, arguments: &[&str]) -> Vec<String> {
    let ended = broker.command(&[&["release"], arguments].concat()).await;
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout
}

#[apply(on_both_engines!)]
async fn a_restored_database_presents_nothing_until_it_is_released(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    let names = twenty_connections(&broker).await;
    broker.execute(BACK_UP).await;
    // Half of the refresh tokens in the backup are spent by now.
    let spent = |name: &str| name.ends_with('0') || name.ends_with('1');
    for name in names.iter().filter(|name| spent(name)) {
        assert_eq!(broker.refresh(name).await.status, StatusCode::OK, "{name}");
    }
    broker.halt().await;
    restore_a_day_later(&broker).await;
    let before = posts(&broker);
    for _ in 0..2 {
        broker.restart(|_| {}).await;
        assert_eq!(states(&broker).await, all("quarantined", 20));
        let view = broker.view("amocrm-0").await;
        assert_eq!(view["reason"], "database_restored", "{view}");
        for name in &names {
            let token = broker.token(name).await;
            assert_eq!(token.status, StatusCode::OK, "{name}");
            assert_eq!(token.json()["stale"], true, "{name}");
        }
        press_everything(&broker, &names).await;
    }
    // A day and more later every token has ended, and everything is due.
    broker.advance(Duration::from_hours(24 * 8)).await;
    press_everything(&broker, &names).await;
    let token = broker.token("amocrm-3").await;
    assert_eq!(token.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(token.json()["code"], "provider_unavailable");
    let health = broker.operator(Method::GET, "/health", None).await.json();
    let notes = health["notes"].to_string();
    assert!(notes.contains("20 × quarantined") && notes.contains("release --plan"), "{notes}");
    assert_eq!(posts(&broker), before);

    let plan = release(&broker, &["--plan"]).await;
    assert_eq!(plan.len(), 21, "{plan:#?}");
    let line = |name: &str| plan.iter().find(|line| line.starts_with(name)).unwrap();
    assert!(line("amocrm-0").contains("presents its refresh token once"), "{plan:#?}");
    assert!(line("avito-0").ends_with("resumes"), "{plan:#?}");
    press_everything(&broker, &names).await;
    assert_eq!(posts(&broker), before, "a plan releases nothing");

    let canary = release(&broker, &["amocrm-3"]).await;
    assert_eq!(canary.len(), 3, "{canary:#?}");
    assert!(canary[2].starts_with("released: 1"), "{canary:#?}");
    assert_eq!(broker.refresh_due().await, 1);
    assert_eq!(posts(&broker), before + 1);
    assert_eq!(broker.view("amocrm-3").await["generation"], 2);

    release(&broker, &["--all"]).await;
    assert_eq!(broker.refresh_due().await, 19);
    for name in &names {
        let view = broker.view(name).await;
        if spent(name) && !name.starts_with("avito") {
            assert_eq!(view["state"], "needs_consent", "{view}");
            assert!(view["reason"].is_string(), "{view}");
        } else {
            assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(2)));
            assert_eq!(broker.token(name).await.json()["stale"], false, "{name}");
        }
    }
    let released = states(&broker).await;
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, released, "what was released stays so");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_restore_under_a_running_replica_is_noticed(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    broker.execute(BACK_UP).await;
    assert_eq!(broker.refresh("amocrm-shop").await.status, StatusCode::OK);
    broker.idle().await;
    // The look after a grant may have missed it, while the one before was under way.
    broker.broker().sync().await.unwrap();
    let store = broker.broker().store();
    let claim = async |attempt: &str| {
        let record = store.record("amocrm-shop").await.unwrap().unwrap();
        store.claim(&record, attempt, None, Duration::ZERO).await.unwrap()
    };
    assert!(claim("before").await.held().is_some());
    restore_a_day_later(&broker).await;
    assert_eq!(
        claim("after").await,
        Claim::Rejected(ClaimRejected::DatabaseChanged),
        "claimed before anybody looked"
    );
    let before = posts(&broker);
    broker.advance(Duration::from_hours(30)).await;
    press_everything(&broker, &["amocrm-shop".to_owned()]).await;
    let view = broker.view("amocrm-shop").await;
    assert_eq!((&view["state"], &view["generation"]), (&json!("quarantined"), &json!(1)));
    assert_eq!(posts(&broker), before);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_restore_that_another_replica_noticed_is_taken_over(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    broker.execute(BACK_UP).await;
    assert_eq!(broker.refresh("divar-shop").await.status, StatusCode::OK);
    broker.idle().await;
    restore_a_day_later(&broker).await;
    let store = broker.broker().store();
    let found = store.identity().await.unwrap();
    assert_eq!(store.quarantine(&found, 1, "database_restored").await.unwrap(), Some(1));
    assert_eq!(store.quarantine(&found, 1, "database_restored").await.unwrap(), None, "twice");
    broker.broker().sync().await.unwrap();
    let view = broker.view("divar-shop").await;
    assert_eq!((&view["state"], &view["generation"]), (&json!("quarantined"), &json!(1)));
    assert_eq!(store.identity().await.unwrap().position.quarantines, 1);
    release(&broker, &["--all"]).await;
    assert_eq!(broker.refresh_due().await, 1);
    assert_eq!(broker.view("divar-shop").await["generation"], 2, "memory keeps step");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_a_failover_forgot_is_stored_again(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    let names = ["amocrm-shop", "divar-shop", "admitad-own"];
    broker.connect(names[0], Simulated::Amocrm).await;
    broker.connect(names[1], Simulated::Divar).await;
    broker.create(names[2], "admitad").await;
    broker.execute(BACK_UP).await;
    // The last moments: two refreshes of one connection, one of another, none of the third.
    for name in [names[0], names[0], names[1]] {
        assert_eq!(broker.refresh(name).await.status, StatusCode::OK);
    }
    broker.idle().await;
    for restart in [false, true] {
        let before = posts(&broker);
        if restart {
            broker.halt().await;
            broker.execute(RESTORE).await;
            broker.restart(|_| {}).await;
        } else {
            // The standby that is promoted never had them.
            broker.execute(RESTORE).await;
            broker.broker().sync().await.unwrap();
        }
        // Nothing is refreshed before an operator has looked.
        assert_eq!(states(&broker).await, all("quarantined", 3));
        press_everything(&broker, &names.map(str::to_owned)).await;
        assert_eq!(posts(&broker), before);
    }
    release(&broker, &["--all"]).await;
    broker.make_due().await;
    broker.broker().sync().await.unwrap();
    assert_eq!(broker.refresh_due().await, 3);
    for name in names {
        let token = broker.token(name).await.json();
        assert_eq!(
            (&token["connection"], &token["stale"]),
            (&json!(name), &json!(false)),
            "{token}"
        );
    }
    assert_eq!(states(&broker).await, all("active", 3), "nothing is lost");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_was_deleted_is_not_stored_again(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    assert_eq!(broker.refresh("amocrm-shop").await.status, StatusCode::OK);
    broker.idle().await;
    // Another replica does it, and has nothing of what lies in this one's folder.
    let store = broker.broker().store();
    let record = store.record("amocrm-shop").await.unwrap().unwrap();
    assert!(store.require_manual_removal(record.connection.id, None).await.unwrap());
    broker.execute("UPDATE identity SET global_seq = global_seq - 1").await;
    let looked = timeout(Duration::from_secs(30), broker.broker().sync()).await;
    looked.expect("it is tried for ever").unwrap();
    assert_eq!(broker.view("amocrm-shop").await["state"], "revoked");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_row_that_went_back_is_not_refreshed(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for name in ["divar-shop", "divar-other"] {
        broker.connect(name, Simulated::Divar).await;
    }
    broker.execute(BACK_UP).await;
    assert_eq!(broker.refresh("divar-shop").await.status, StatusCode::OK);
    broker.idle().await;
    let before = posts(&broker);
    // Somebody who can write the database puts one row back, and nobody remembers the other.
    broker
        .execute(
            "UPDATE grants SET generation = 1, access = s.access, refresh = s.refresh
             FROM saved_grants s WHERE s.connection_id = grants.connection_id
                 AND grants.generation = 2;
         DELETE FROM spent_tokens; UPDATE connections SET refresh_at = created_at",
        )
        .await;
    for file in fs::read_dir(broker.state("stored")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    broker.refresh_due().await;
    assert_eq!(posts(&broker), before + 1, "the other one is refreshed");
    assert_eq!(broker.token("divar-shop").await.json()["generation"], 2, "what lives is served");
    let store = broker.broker().store();
    let record = store.record("divar-shop").await.unwrap().unwrap();
    assert_eq!(record.connection.state.as_str(), "suspect");
    assert_eq!(record.connection.reason.as_deref(), Some("went_back"));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn another_database_is_not_taken_for_the_one_last_served(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    broker.halt().await;
    broker.execute("UPDATE identity SET deployment = 'another'").await;
    broker.restart(|_| {}).await;
    let view = broker.view("divar-shop").await;
    assert_eq!(
        (&view["state"], &view["reason"]),
        (&json!("quarantined"), &json!("database_exchanged"))
    );
    release(&broker, &["--all"]).await;
    broker.restart(|_| {}).await;
    assert_eq!(broker.refresh_due().await, 1);
    assert_eq!(broker.view("divar-shop").await["generation"], 2);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_copy_for_another_deployment_is_refused_until_it_is_adopted(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let named = |name: &'static str| {
        move |settings: &mut toml::Table| {
            settings.insert("deployment".to_owned(), name.into());
        }
    };
    broker.restart(named("production")).await;
    broker.restart(named("production")).await;
    broker.halt().await;
    // The same rows, opened by staging, whose state directory knows nothing of them.
    fs::remove_file(broker.state("watermark")).unwrap();
    let before = posts(&broker);
    broker.make_due().await;
    named("staging")(&mut broker.settings);
    for arguments in [["serve"].as_slice(), &["release", "--all"]] {
        let refused = broker.command(arguments).await;
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        let complaint = refused.stderr.join("\n");
        assert!(complaint.contains("belongs to `production`, not to `staging`"), "{complaint}");
    }
    release(&broker, &["--adopt"]).await;
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, all("quarantined", 1));
    press_everything(&broker, &["amocrm-shop".to_owned()]).await;
    assert_eq!(posts(&broker), before);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn one_quarantine_is_enough_for_all_replicas(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    broker.execute(BACK_UP).await;
    assert_eq!(broker.refresh("divar-shop").await.status, StatusCode::OK);
    broker.halt().await;
    // What another replica saw, which comes back only after the release.
    let other = fs::read(broker.state("watermark")).unwrap();
    restore_a_day_later(&broker).await;
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, all("quarantined", 1));
    release(&broker, &["divar-shop"]).await;
    broker.halt().await;
    let ours = fs::read(broker.state("watermark")).unwrap();
    fs::write(broker.state("watermark"), other).unwrap();
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, all("active", 1));
    // The same backup once more is a restore again.
    broker.halt().await;
    restore_a_day_later(&broker).await;
    fs::write(broker.state("watermark"), ours).unwrap();
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, all("quarantined", 1));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn nobody_consents_or_confirms_in_quarantine(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    let account = broker.account(Simulated::Divar);
    broker.connect("divar-shop", Simulated::Divar).await;
    let open = broker.link("divar-shop", "divar", json!({})).await;
    broker.consent("divar-new", "divar", json!({})).await;
    assert_eq!(broker.view("divar-new").await["state"], "pending_confirm");
    let never = broker.link("divar-never", "divar", json!({})).await;
    broker.halt().await;
    broker.execute("UPDATE identity SET deployment = 'another'").await;
    broker.restart(|_| {}).await;
    let before = posts(&broker);

    for name in ["divar-shop", "divar-new"] {
        let body = json!({ "connection": name });
        let refused = broker.operator(Method::POST, "/v1/consent-links", Some(body)).await;
        assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&format!("token-broker release {name}")), "{detail}");
    }
    let pressed = Person::new(&broker).press(&open).await;
    assert_eq!(pressed.status, StatusCode::CONFLICT, "{pressed:?}");
    assert!(pressed.text.contains("on hold"), "{pressed:?}");
    let confirm = async || broker.confirm("divar-new", &account).await;
    assert_eq!(confirm().await.status, StatusCode::CONFLICT);
    assert_eq!(posts(&broker), before);
    // What held nothing is not in quarantine.
    assert_eq!(Person::new(&broker).press(&never).await.status, StatusCode::SEE_OTHER);

    let plan = release(&broker, &["--all"]).await.join("\n");
    assert!(plan.contains("waits for a consent or its confirmation"), "{plan}");
    broker.broker().sync().await.unwrap();
    assert_eq!(broker.view("divar-new").await["state"], "pending_confirm");
    assert_eq!(confirm().await.status, StatusCode::OK);
    assert_eq!(Person::new(&broker).press(&open).await.status, StatusCode::SEE_OTHER);
    broker.stop().await;
}

/// The number of stored grants that the watermark knows of.
fn noted(broker: &TestBroker) -> Value {
    let watermark = fs::read(broker.state("watermark")).unwrap();
    serde_json::from_slice::<Value>(&watermark).unwrap()["seq"].clone()
}

#[apply(on_both_engines!)]
async fn the_watermark_follows_the_database(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    assert_eq!(noted(&broker), 0);
    broker.create("avito-own", "avito").await;
    broker.idle().await;
    assert_eq!(noted(&broker), 1);
    broker.connect("divar-shop", Simulated::Divar).await;
    broker.idle().await;
    assert_eq!(noted(&broker), 2);
    assert_eq!(broker.refresh("divar-shop").await.status, StatusCode::OK);
    broker.idle().await;
    assert_eq!(noted(&broker), 3);
    // What other replicas store is seen too, at the end at the latest.
    broker.execute("UPDATE identity SET global_seq = 7").await;
    broker.halt().await;
    assert_eq!(noted(&broker), 7);
    // A new replica has seen nothing, and begins like any other.
    fs::remove_file(broker.state("watermark")).unwrap();
    broker.restart(|_| {}).await;
    assert_eq!(noted(&broker), 7);
    assert_eq!(states(&broker).await, all("active", 2));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_is_not_quarantined_is_not_released(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let nothing = "no connection is quarantined: there is nothing to release";
    assert_eq!(release(&broker, &["--all"]).await, [nothing]);
    assert_eq!(release(&broker, &["--plan"]).await, [nothing]);
    for (name, expected) in [
        ("avito-own", "connection `avito-own` is active, not quarantined: there is nothing"),
        ("avito-two", "there is no connection `avito-two`"),
    ] {
        let ended = broker.command(&["release", name]).await;
        assert_eq!(ended.status.code(), Some(64), "{ended:?}");
        assert!(ended.stderr[0].contains(expected), "{ended:?}");
    }
    assert_eq!(broker.view("avito-own").await["state"], "active");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_plan_changes_nothing(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    broker.settings.insert("deployment".to_owned(), "production".into());
    let named = async || broker.number("SELECT count(*) FROM meta WHERE key = 'deployment'").await;
    release(&broker, &["--plan"]).await;
    assert_eq!(named().await, 0, "a look gave the database a name");
    release(&broker, &["--all"]).await;
    assert_eq!(named().await, 1);
    broker.settings.insert("deployment".to_owned(), "staging".into());
    let refused = broker.command(&["release", "--plan"]).await;
    assert!(refused.stderr.concat().contains("belongs to `production`"), "{refused:?}");
    // As a program finds it that is newer than the database.
    broker.execute("UPDATE _sqlx_migrations SET version = -version").await;
    for command in [&["release", "--plan"][..], &["operators", "list"]] {
        let refused = broker.command(command).await;
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        assert!(refused.stderr.concat().contains("token-broker migrate"), "{refused:?}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn the_database_of_an_earlier_build_is_refused_by_every_command(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    broker.execute("UPDATE _sqlx_migrations SET checksum = 'another text'").await;
    broker.halt().await;
    for command in [
        &["serve"][..],
        &["migrate"],
        &["check"],
        &["keys", "status"],
        &["keys", "rotate"],
        &["operators", "list"],
        &["release", "--plan"],
    ] {
        let refused = broker.command(command).await;
        let said: Vec<_> =
            refused.stderr.iter().filter(|line| line.contains("earlier build")).collect();
        let told =
            said.len() == 1 || refused.stdout.iter().any(|line| line.contains("earlier build"));
        assert!(told, "{command:?}: {refused:?}");
        if command != ["check"] {
            assert_eq!(refused.status.code(), Some(64), "{command:?}: {refused:?}");
        }
    }
}

fn sqlite_file(database: &TestDatabase) -> PathBuf {
    database.plain_url().strip_prefix("sqlite:").unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_put_back_is_known() {
    let database = TestDatabase::sqlite().await;
    let file = sqlite_file(&database);
    let backup = file.with_extension("backup");
    database.store.close().await;
    let mut broker = TestBroker::start(database).await;
    broker.connect("kommo-shop", Simulated::Kommo).await;
    broker.halt().await;
    fs::copy(&file, &backup).unwrap();
    broker.restart(|_| {}).await;
    assert_eq!(states(&broker).await, all("active", 1));
    assert_eq!(broker.refresh("kommo-shop").await.status, StatusCode::OK);
    let before = posts(&broker);
    broker.halt().await;
    assert!(!file.with_extension("db-wal").exists(), "the database was not closed");
    fs::copy(&backup, &file).unwrap();
    broker.restart(|_| {}).await;
    press_everything(&broker, &["kommo-shop".to_owned()]).await;
    assert_eq!(states(&broker).await, all("quarantined", 1));
    assert_eq!(posts(&broker), before);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watermark_that_cannot_be_read_stops_the_start() {
    let database = TestDatabase::sqlite().await;
    let broker = TestBroker::start(database).await;
    broker.halt().await;
    fs::write(broker.state("watermark"), "torn").unwrap();
    let ended = broker.command(&["serve"]).await;
    assert_eq!(ended.status.code(), Some(64), "{ended:?}");
    assert!(ended.stderr.last().unwrap().contains("watermark cannot be read"), "{ended:?}");
    broker.stop().await;
}
