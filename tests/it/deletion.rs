//! The end of a connection: served no more, revoked at the provider where that can be done, left to a
//! person where it cannot, and never forgotten before.

use std::{fs, sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::{
    domain::{connection::ConnectionId, record::Record},
    seal::{Keyring, add_key, promote_key},
    simulator::{End, Endpoint, Fault, Kind, Known, Simulated},
};
use tokio::task::JoinSet;

use crate::{
    custom_provider, sealing_keys,
    support::{
        broker::TestBroker,
        database::{TestDatabase, apply, on_both_engines},
        person::Person,
    },
};

const ACME: &str = "acme-one";

/// Deletes and gives what became of the tokens.
async fn deleted(broker: &TestBroker, name: &str) -> (StatusCode, String) {
    let answer = broker.delete(name).await;
    (answer.status, answer.json()["revocation"].as_str().unwrap_or_default().to_owned())
}

fn done(revocation: &str) -> (StatusCode, String) {
    let status = if revocation == "revoking" { StatusCode::ACCEPTED } else { StatusCode::OK };
    (status, revocation.to_owned())
}

/// A connection that somebody consented to, at a provider with a revocation endpoint.
async fn connected(database: TestDatabase) -> (TestBroker, tempfile::TempDir) {
    let (broker, folder) = custom_provider::start(database).await;
    broker.connect_any(ACME, "divar").await;
    (broker, folder)
}

async fn revoke_due(broker: &TestBroker) -> usize {
    broker.broker().revoke_due(100).await.unwrap()
}

fn tokens(broker: &TestBroker, kind: Kind) -> Vec<Known> {
    let oracle = broker.simulator(Simulated::Divar).oracle();
    oracle.known.into_iter().filter(|known| known.kind == kind).collect()
}

fn live_refresh_tokens(broker: &TestBroker) -> usize {
    tokens(broker, Kind::Refresh).iter().filter(|known| known.alive).count()
}

fn revocations(broker: &TestBroker) -> u64 {
    let oracle = broker.simulator(Simulated::Divar).oracle();
    oracle.requests.get(&Endpoint::Revocation).copied().unwrap_or_default()
}

async fn record(broker: &TestBroker, name: &str) -> Record {
    broker.broker().store().record(name).await.unwrap().unwrap()
}

/// Every sealed value that the database holds of a connection.
async fn sealed(broker: &TestBroker, name: &str) -> Vec<String> {
    let record = record(broker, name).await;
    let grant = record.grant.into_iter().flat_map(|grant| [Some(grant.access), grant.refresh]);
    let pending = record.pending.into_iter().map(|pending| pending.grant);
    let pending = pending.flat_map(|grant| [Some(grant.access), grant.refresh]);
    let values: Vec<_> = grant.chain(pending).flatten().map(|it| it.as_str().to_owned()).collect();
    let contents = broker.contents().await;
    assert!(values.iter().all(|value| contents.contains(value)), "the test sees what is stored");
    values
}

/// Nothing sealed is left of what was, in the database or beside it; spent tokens stay known.
async fn is_shredded(broker: &TestBroker, was: &[String]) {
    assert!(!was.is_empty());
    let mut found = broker.contents().await;
    for folder in ["spool", "unopened"] {
        for file in fs::read_dir(broker.state(folder)).into_iter().flatten() {
            found.push_str(&String::from_utf8_lossy(&fs::read(file.unwrap().path()).unwrap()));
        }
    }
    assert!(was.iter().all(|value| !found.contains(value)), "a sealed value is left");
    let check = broker.broker().store().meta("sealing_check").await.unwrap().unwrap();
    assert_eq!(found.replace(&check, "").matches("v1.").count(), 0, "a sealed value is left");
    for token in tokens(broker, Kind::Refresh) {
        assert!(found.contains(&token.fingerprint), "refresh token {} is not buried", token.id);
    }
}

/// Puts a file beside the database as a crash or a lost key leaves it; another connection's stays.
async fn leave_behind(broker: &TestBroker, name: &str) {
    let id = record(broker, name).await.connection.id;
    fs::create_dir_all(broker.state("unopened")).unwrap();
    for (file, id, access) in [
        ("spool/left", id, "v1.k.left"),
        ("unopened/left", id, "v1.k.left"),
        ("unopened/other", ConnectionId::new(), "other"),
    ] {
        let entry = json!({
            "connection": id.to_string(), "account": null, "generation": 1, "access": access,
            "refresh": null, "scopes": [], "received_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-01T00:00:00Z", "refresh_at": null, "parent": null,
            "asked_at": null,
        });
        fs::write(broker.state(file), entry.to_string()).unwrap();
    }
}

async fn is_gone(broker: &TestBroker, name: &str) {
    assert_eq!(broker.token(name).await.json()["code"], "revoked");
    let path = format!("/v1/connections/{name}");
    let shown = broker.operator(Method::GET, &path, None).await;
    assert_eq!(shown.status, StatusCode::NOT_FOUND, "{shown:?}");
}

async fn is_a_persons_task(broker: &TestBroker, name: &str) {
    let view = broker.view(name).await;
    assert_eq!(
        (&view["state"], &view["reason"]),
        (&json!("revoked"), &json!("remove_at_provider"))
    );
    assert!(view["task"].as_str().unwrap().contains("remove the application"), "{view}");
    assert_eq!((&view["generation"], &view["expires_at"]), (&json!(0), &Value::Null));
    assert_eq!(broker.token(name).await.json()["code"], "revoked");
    let health = broker.health().await;
    assert!(health["notes"].to_string().contains("1 × revoked"), "{health}");
}

#[apply(on_both_engines!)]
async fn a_deleted_connection_is_revoked_and_then_forgotten(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    broker.refresh(ACME).await;
    // The refresh token before this one has a grace, in the simulator.
    broker.advance(Duration::from_secs(121)).await;
    let was = sealed(&broker, ACME).await;
    leave_behind(&broker, ACME).await;
    assert_eq!(deleted(&broker, ACME).await, done("revoking"));
    assert_eq!(broker.token(ACME).await.json()["code"], "revoked");
    assert_eq!(broker.view(ACME).await["state"], "revoking");
    assert_eq!((live_refresh_tokens(&broker), revocations(&broker)), (1, 0));
    assert_eq!(deleted(&broker, ACME).await, done("revoking"), "nothing is different");
    assert_eq!(revoke_due(&broker).await, 1);
    assert_eq!(revocations(&broker), 1);
    let newest = tokens(&broker, Kind::Refresh).pop().unwrap();
    assert_eq!(
        (newest.ended, newest.presented.get(&Endpoint::Revocation)),
        (Some(End::Revoked), Some(&1))
    );
    assert!(tokens(&broker, Kind::Access).iter().all(|token| !token.alive));
    is_gone(&broker, ACME).await;
    is_shredded(&broker, &was).await;
    assert!(broker.state("unopened/other").exists());
    assert_eq!(revoke_due(&broker).await, 0);
    assert_eq!(broker.delete(ACME).await.status, StatusCode::NOT_FOUND);
    broker.connect_any(ACME, "divar").await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_provider_that_asks_for_time_gets_it(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    let was = sealed(&broker, ACME).await;
    let overloaded = Fault::Overloaded { retry_after: "600".to_owned() };
    broker.simulator(Simulated::Divar).fault_revocation(&overloaded, 1);
    deleted(&broker, ACME).await;
    assert_eq!(revoke_due(&broker).await, 1);
    let view = broker.view(ACME).await;
    assert_eq!(
        (&view["state"], &view["last_error"]["code"]),
        (&json!("revoking"), &json!("http_503"))
    );
    let health = broker.health().await;
    assert!(health["notes"].to_string().contains("could not be revoked yet"), "{health}");
    broker.advance(Duration::from_secs(590)).await;
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (0, 1), "it asked for 600 s");
    assert_eq!(sealed(&broker, ACME).await, was, "kept until it is revoked");
    broker.advance(Duration::from_secs(11)).await;
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, 2));
    is_gone(&broker, ACME).await;
    is_shredded(&broker, &was).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_revocation_is_never_given_up(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    let was = sealed(&broker, ACME).await;
    let faults = [
        Fault::ServerError { processed: false },
        Fault::Drop { processed: false },
        Fault::Reset { processed: true },
        Fault::Busy { retry_after: "nonsense".to_owned() },
    ];
    for round in 0..20 {
        broker.simulator(Simulated::Divar).fault_revocation(&faults[round % faults.len()], 1);
    }
    deleted(&broker, ACME).await;
    for round in 1..=20 {
        assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, round));
        assert_eq!(broker.view(ACME).await["state"], "revoking");
        assert_eq!(revoke_due(&broker).await, 0, "it waits a little");
        broker.advance(Duration::from_hours(12)).await;
    }
    assert_eq!(revoke_due(&broker).await, 1);
    is_gone(&broker, ACME).await;
    is_shredded(&broker, &was).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_the_provider_refuses_to_revoke_is_left_to_a_person(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    let was = sealed(&broker, ACME).await;
    broker.simulator(Simulated::Divar).fault_revocation(&Fault::Refused, 1);
    deleted(&broker, ACME).await;
    assert_eq!(revoke_due(&broker).await, 1);
    is_a_persons_task(&broker, ACME).await;
    assert_eq!(broker.view(ACME).await["last_error"]["code"], "http_400");
    is_shredded(&broker, &was).await;
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (0, 1));
    assert_eq!(deleted(&broker, ACME).await, done("acknowledged"));
    is_gone(&broker, ACME).await;
    broker.connect_any(ACME, "divar").await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn without_an_endpoint_it_is_left_to_a_person_at_once(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    let was = sealed(&broker, "divar-shop").await;
    leave_behind(&broker, "divar-shop").await;
    let name = "divar-shop";
    assert_eq!(deleted(&broker, name).await, done("manual"));
    is_a_persons_task(&broker, "divar-shop").await;
    is_shredded(&broker, &was).await;
    broker.restart(|_| {}).await;
    is_a_persons_task(&broker, "divar-shop").await;
    assert_eq!(deleted(&broker, name).await, done("acknowledged"));
    is_gone(&broker, "divar-shop").await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_nobody_granted_is_forgotten_at_once(database: TestDatabase) {
    let (broker, _folder) = custom_provider::start(database).await;
    let link = broker.link(ACME, "divar", json!({ "self": true })).await;
    assert_eq!(deleted(&broker, ACME).await, done("none"));
    let page = Person::new(&broker).get(&link).await;
    assert_eq!(page.status, StatusCode::GONE, "{page:?}");
    is_gone(&broker, ACME).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn everything_that_is_held_is_revoked(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    // A second person consents, and waits to be confirmed.
    let link = broker.link(ACME, "divar", json!({})).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    person.get(&provider).await;
    let form = [("decision", "allow"), ("account", "simulated-user-2")];
    let decided = person.send(Method::POST, &provider, &[], Some(&form)).await;
    person.get(decided.header("location")).await;
    assert_eq!(broker.view(ACME).await["pending_account"]["id"], "simulated-user-2");
    assert_eq!(live_refresh_tokens(&broker), 2);
    let was = sealed(&broker, ACME).await;
    assert_eq!(was.len(), 4);
    // The one is refused, the other must wait: a person is told when all is done.
    let simulator = broker.simulator(Simulated::Divar);
    simulator.fault_revocation(&Fault::Refused, 1);
    simulator.fault_revocation(&Fault::ServerError { processed: false }, 1);
    deleted(&broker, ACME).await;
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, 2));
    assert_eq!(broker.view(ACME).await["state"], "revoking");
    assert_eq!(sealed(&broker, ACME).await.len(), 2);
    // Longer than a grant waits to be confirmed: this one waits to be revoked.
    broker.advance(Duration::from_hours(2)).await;
    broker.broker().purge().await.unwrap();
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, 3));
    assert_eq!(live_refresh_tokens(&broker), 1, "the one that was refused");
    is_a_persons_task(&broker, ACME).await;
    is_shredded(&broker, &was).await;
    broker.stop().await;
}

/// Deletes the connection while its refresh is under way, and gives what that was answered.
async fn delete_under_refresh(broker: &TestBroker, name: &str) -> (StatusCode, String) {
    let slow = Fault::Slow { milliseconds: 500 };
    broker.simulator(Simulated::Divar).fault(&slow, 1);
    let refresh = broker.refresh(name);
    let end = async {
        broker.until_presented(Simulated::Divar).await;
        let answer = deleted(broker, name).await;
        assert_eq!(revoke_due(broker).await, 0, "not while a refresh is under way");
        answer
    };
    let (_, answer) = tokio::join!(refresh, end);
    broker.idle().await;
    assert_eq!(tokens(broker, Kind::Refresh).len(), 2, "the refresh brought another one");
    answer
}

#[apply(on_both_engines!)]
async fn what_a_refresh_under_way_brings_is_revoked_too(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    let first = sealed(&broker, ACME).await;
    assert_eq!(delete_under_refresh(&broker, ACME).await, done("revoking"));
    assert_eq!(broker.token(ACME).await.json()["code"], "revoked");
    let second = sealed(&broker, ACME).await;
    assert_eq!((revoke_due(&broker).await, live_refresh_tokens(&broker)), (1, 0));
    let newest = tokens(&broker, Kind::Refresh).pop().unwrap();
    assert_eq!(newest.presented.get(&Endpoint::Revocation), Some(&1));
    is_gone(&broker, ACME).await;
    is_shredded(&broker, &[first, second].concat()).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_a_refresh_under_way_brings_is_not_stored_for_a_person(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    let name = "divar-shop";
    assert_eq!(delete_under_refresh(&broker, name).await, done("manual"));
    is_a_persons_task(&broker, "divar-shop").await;
    let check = broker.broker().store().meta("sealing_check").await.unwrap().unwrap();
    assert!(!broker.contents().await.replace(&check, "").contains("v1."), "a sealed value is left");
    assert_eq!(broker.spool_files(), 0);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_revocation_that_a_crash_cut_off_is_finished_at_the_next_start(database: TestDatabase) {
    let (mut broker, _folder) = connected(database).await;
    let was = sealed(&broker, ACME).await;
    deleted(&broker, ACME).await;
    // Before the call, and in the middle of it.
    broker.restart(|_| {}).await;
    assert_eq!(broker.token(ACME).await.json()["code"], "revoked");
    let hangs = Fault::Hold { processed: false };
    broker.simulator(Simulated::Divar).fault_revocation(&hangs, 1);
    let mut dying = JoinSet::new();
    dying.spawn({
        let broker = Arc::clone(broker.broker());
        async move { broker.revoke_due(100).await }
    });
    while revocations(&broker) == 0 {
        tokio::task::yield_now().await;
    }
    dying.shutdown().await;
    assert_eq!(revoke_due(&broker).await, 0, "its claim stands");
    broker.restart(|_| {}).await;
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, 2));
    is_gone(&broker, ACME).await;
    is_shredded(&broker, &was).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_profile_that_no_longer_offers_it_leaves_it_to_a_person(database: TestDatabase) {
    let (mut broker, folder) = connected(database).await;
    let was = sealed(&broker, ACME).await;
    deleted(&broker, ACME).await;
    let file = folder.path().join("acme.toml");
    let mut profile: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    profile.remove("revocation").unwrap();
    fs::write(&file, profile.to_string()).unwrap();
    broker.restart(|_| {}).await;
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, 0));
    is_a_persons_task(&broker, ACME).await;
    is_shredded(&broker, &was).await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_deleted_name_is_taken_until_it_is_forgotten(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    let refused = async |words: &str| {
        let new = json!({ "name": ACME, "client": "divar" });
        let made = broker.operator(Method::POST, "/v1/connections", Some(new)).await;
        let link = json!({ "connection": ACME, "client": "divar" });
        let link = broker.operator(Method::POST, "/v1/consent-links", Some(link)).await;
        for answer in [made, link] {
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (StatusCode::CONFLICT, &json!("conflict"))
            );
            assert!(answer.text.contains(words), "{answer:?}");
        }
        let refresh = broker.refresh(ACME).await;
        assert_eq!(refresh.status, StatusCode::CONFLICT, "{refresh:?}");
        let confirm = broker.confirm(ACME, "simulated-user-1").await;
        assert_eq!(confirm.status, StatusCode::CONFLICT, "{confirm:?}");
    };
    // A link that was made before leads nowhere any more.
    let link = broker.link(ACME, "divar", json!({})).await;
    broker.simulator(Simulated::Divar).fault_revocation(&Fault::Refused, 1);
    deleted(&broker, ACME).await;
    refused("the name is free when that is done").await;
    let page = Person::new(&broker).get(&link).await;
    assert_eq!(page.status, StatusCode::GONE, "{page:?}");
    revoke_due(&broker).await;
    refused("delete the connection once more").await;
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_is_sealed_with_a_key_that_we_lack_waits_for_the_key(database: TestDatabase) {
    let (broker, _folder) = connected(database).await;
    // The keys are rotated, and this replica has the old file still.
    let (ours, theirs) = (broker.state("sealing.keys"), broker.state("theirs.keys"));
    fs::copy(&ours, &theirs).unwrap();
    let key = add_key(&theirs).unwrap();
    promote_key(&theirs).unwrap();
    sealing_keys::reseal(broker.broker().store(), &Keyring::read(&theirs).unwrap()).await;
    let was = sealed(&broker, ACME).await;
    assert_eq!(deleted(&broker, ACME).await, done("revoking"));
    for _ in 0..3 {
        assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, 0));
        let view = broker.view(ACME).await;
        assert_eq!(view["state"], "revoking", "{view}");
        assert!(view["last_error"]["message"].as_str().unwrap().contains(&key), "{view}");
        assert_eq!(sealed(&broker, ACME).await, was, "kept until it is revoked");
        broker.advance(Duration::from_mins(10)).await;
    }
    fs::copy(&theirs, &ours).unwrap();
    broker.broker().sync().await.unwrap();
    assert_eq!((revoke_due(&broker).await, revocations(&broker)), (1, 1));
    assert_eq!(live_refresh_tokens(&broker), 0);
    is_gone(&broker, ACME).await;
    is_shredded(&broker, &was).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_stops_serving_at_its_next_look() {
    let database = TestDatabase::postgres().await;
    database.execute("ALTER TABLE connections DISABLE TRIGGER ALL").await;
    let (broker, _folder) = connected(database).await;
    let replica = broker.replica().await;
    assert_eq!(replica.token(ACME).await.status, StatusCode::OK);
    deleted(&broker, ACME).await;
    replica.broker().sync().await.unwrap();
    assert_eq!(replica.token(ACME).await.json()["code"], "revoked");
    // Whoever comes first revokes; the other finds nothing to do.
    let (ours, theirs) =
        tokio::join!(broker.broker().revoke_due(100), replica.broker().revoke_due(100));
    assert!(ours.unwrap() + theirs.unwrap() >= 1);
    assert_eq!(revocations(&broker), 1);
    replica.broker().sync().await.unwrap();
    assert_eq!(replica.token(ACME).await.json()["code"], "revoked");
    broker.broker().sync().await.unwrap();
    is_gone(&broker, ACME).await;
    replica.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_waits_on_the_disk_revives_nothing() {
    let (broker, _folder) = connected(TestDatabase::postgres().await).await;
    broker.simulator(Simulated::Divar).fault(&Fault::Slow { milliseconds: 1_500 }, 1);
    let refresh = broker.refresh(ACME);
    let story = async {
        broker.until_presented(Simulated::Divar).await;
        deleted(&broker, ACME).await;
        let rogue = broker.hold("SELECT 1 FROM connections FOR UPDATE").await;
        // The answer comes, and the grant lies on the disk for longer than it is kept from readers.
        let started = broker.clock.stopwatch();
        while started.elapsed() < Duration::from_secs(5) {
            let token = broker.token(ACME).await;
            assert_eq!(token.json()["code"], "revoked", "{token:?}");
        }
        assert_eq!(record(&broker, ACME).await.generation(), 1, "it is not committed yet");
        assert_eq!(broker.spool_files(), 1);
        drop(rogue);
    };
    tokio::join!(refresh, story);
    broker.idle().await;
    assert_eq!(broker.token(ACME).await.json()["code"], "revoked");
    assert_eq!((revoke_due(&broker).await, live_refresh_tokens(&broker)), (1, 0));
    broker.stop().await;
}
