//! Sealed values in the wrong place, keys that a replica lacks, and a rotation under load.

use std::{fs, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::{
    app::background::sync_cache,
    domain::{
        grant::{GrantSlot, SealedGrant},
        grant_conflict::GrantLineage,
    },
    seal::{Keyring, add_key, promote_key, secret::Digest},
    simulator::{Fault, Kind, Simulated},
    store::{Commit, SEALED_COLUMNS, Store},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    broker::{Replica, TestBroker},
    database::{TestDatabase, apply, on_both_engines},
    process::Program,
};

/// What somebody who can write the database may try, each with the connection that it hits.
const SWAPS: [(&str, &str); 5] = [
    (
        "other-access",
        "UPDATE grants SET access = (SELECT access FROM saved WHERE name = 'donor')
         WHERE connection_id = (SELECT id FROM connections WHERE name = 'other-access')",
    ),
    (
        "other-refresh",
        "UPDATE grants SET refresh = (SELECT refresh FROM saved WHERE name = 'donor')
         WHERE connection_id = (SELECT id FROM connections WHERE name = 'other-refresh')",
    ),
    (
        "other-field",
        "UPDATE grants SET access = refresh, refresh = access
         WHERE connection_id = (SELECT id FROM connections WHERE name = 'other-field')",
    ),
    (
        "other-generation",
        "UPDATE grants SET access = (SELECT access FROM saved WHERE name = 'other-generation'),
            refresh = (SELECT refresh FROM saved WHERE name = 'other-generation')
         WHERE connection_id = (SELECT id FROM connections WHERE name = 'other-generation')",
    ),
    (
        "other-table",
        "UPDATE grants SET access = (SELECT access FROM pending_grants),
            refresh = (SELECT refresh FROM pending_grants)
         WHERE connection_id = (SELECT id FROM connections WHERE name = 'other-table')",
    ),
];

#[apply(on_both_engines!)]
async fn swapped_values_open_nowhere(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for name in SWAPS.map(|(name, _)| name).into_iter().chain(["donor"]) {
        broker.connect(name, Simulated::Divar).await;
    }
    broker
        .execute(
            "CREATE TABLE saved AS SELECT c.name, g.access, g.refresh FROM grants g
             JOIN connections c ON c.id = g.connection_id",
        )
        .await;
    assert_eq!(broker.refresh("other-generation").await.status, StatusCode::OK);
    // A grant that waits for its account to be confirmed.
    broker.consent("waiting", "divar", json!({})).await;
    assert_eq!(broker.view("waiting").await["state"], "pending_confirm");
    let presented = broker.presented(Simulated::Divar, Kind::Refresh);
    for (name, swap) in SWAPS {
        assert_eq!(broker.token(name).await.status, StatusCode::OK, "{name}");
        broker.execute(swap).await;
        broker.execute("UPDATE connections SET changed_at = changed_at + 1").await;
        broker.broker().sync().await.unwrap();
        let refused = broker.token(name).await;
        assert_eq!(refused.json()["code"], "integrity_error", "{name}: {refused:?}");
        assert_eq!(broker.view(name).await["state"], "integrity_error", "{name}");
        assert_ne!(broker.refresh(name).await.status, StatusCode::OK, "{name}");
    }
    // Unnoticed by a look at the store, it is noticed when it is to be used.
    broker
        .execute(
            "UPDATE grants SET refresh = (SELECT refresh FROM saved WHERE name = 'other-field')
             WHERE connection_id = (SELECT id FROM connections WHERE name = 'donor')",
        )
        .await;
    assert_eq!(broker.refresh("donor").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(broker.view("donor").await["state"], "integrity_error");
    assert_eq!(broker.presented(Simulated::Divar, Kind::Refresh), presented);
    broker
        .execute(
            "UPDATE pending_grants SET access = (SELECT access FROM saved WHERE name = 'donor')",
        )
        .await;
    let account = broker.view("waiting").await["pending_account"]["id"].clone();
    let confirmed = broker.confirm("waiting", &account).await;
    assert_eq!(confirmed.json()["code"], "integrity_error", "{confirmed:?}");
    broker.stop().await;
}

/// Seals every stored grant with this ring, as a rotation on another machine does.
pub(crate) async fn reseal(store: &Store, ring: &Keyring) {
    for column in SEALED_COLUMNS {
        let values = store.sealed_otherwise(column, &ring.active_id(), None, 1_000).await.unwrap();
        let anew = values.into_iter().map(|value| {
            let secret = ring.open(value.context(), &value.sealed).unwrap();
            let sealed = ring.seal(value.context(), &secret);
            (value, sealed)
        });
        store.reseal(column, &anew.collect::<Vec<_>>()).await.unwrap();
    }
}

#[apply(on_both_engines!)]
async fn a_key_that_a_replica_lacks_is_no_integrity_error(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let before = broker.token("amocrm-shop").await.json();
    let (ours, theirs) = (broker.state("sealing.keys"), broker.state("theirs.keys"));
    fs::copy(&ours, &theirs).unwrap();
    let key = add_key(&theirs).unwrap();
    promote_key(&theirs).unwrap();
    reseal(broker.broker().store(), &Keyring::read(&theirs).unwrap()).await;
    broker.execute("UPDATE connections SET changed_at = changed_at + 1").await;

    // Not only while the change is new.
    for _ in 0..2 {
        broker.advance(Duration::from_mins(1)).await;
        let token = broker.token("amocrm-shop").await.json();
        assert_eq!(token["fingerprint"], before["fingerprint"], "{token}");
        assert_eq!(broker.view("amocrm-shop").await["state"], "active");
        let health = broker.ask("", Method::GET, "/health", None).await.text;
        assert!(health.contains(&format!("sealed with key `{key}`")), "{health}");
    }
    assert_eq!(broker.refresh("amocrm-shop").await.status, StatusCode::SERVICE_UNAVAILABLE);
    broker.advance(Duration::from_hours(48)).await;
    broker.refresh_due().await;
    let ended = broker.token("amocrm-shop").await;
    assert_eq!(ended.status, StatusCode::SERVICE_UNAVAILABLE, "{ended:?}");
    assert!(ended.text.contains(&key), "{ended:?}");
    assert_eq!(broker.view("amocrm-shop").await["state"], "active");
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (0, 0));

    fs::copy(&theirs, &ours).unwrap();
    assert_eq!(broker.token("amocrm-shop").await.json()["generation"], 2);
    broker.broker().sync().await.unwrap();
    let health = broker.ask("", Method::GET, "/health", None).await.text;
    assert!(!health.contains(&key), "{health}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_grant_that_cannot_be_read_yet_is_not_thrown_away(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let (ours, theirs) = (broker.state("sealing.keys"), broker.state("theirs.keys"));
    fs::copy(&ours, &theirs).unwrap();
    add_key(&theirs).unwrap();
    promote_key(&theirs).unwrap();
    let ring = Keyring::read(&theirs).unwrap();
    let store = broker.broker().store().clone();
    let held = store.record("amocrm-shop").await.unwrap().unwrap();
    let id = held.connection.id.to_string();
    let slot = |generation| GrantSlot::Live { generation };
    let held_refresh = held.grant.as_ref().unwrap().refresh.as_ref().unwrap();
    let parent = Digest::of(&ring.open(slot(1).refresh(&id), held_refresh).unwrap());
    // While a refresh is under way, another replica stores what an earlier one has brought.
    let sibling = SealedGrant {
        slot: GrantSlot::Live { generation: 2 },
        access: ring.seal(slot(2).access(&id), &"the sibling's".into()),
        refresh: Some(ring.seal(slot(2).refresh(&id), &"the sibling's, too".into())),
        origin: Some(GrantLineage {
            parent: Some(parent),
            asked_at: broker.clock.now() - Duration::from_mins(5),
        }),
        ..held.grant.clone().unwrap()
    };
    broker.simulator(Simulated::Amocrm).fault(&Fault::Slow { milliseconds: 1_000 }, 1);
    let other = async {
        broker.until_presented(Simulated::Amocrm).await;
        let commit = Commit::refreshed(held.connection.id, &sibling, None, None);
        assert!(store.durable().commit_grant(&commit).await.unwrap());
    };
    // Ours is on the disk and is served, and waits until the two can be compared.
    let (served, ()) = tokio::join!(broker.refresh("amocrm-shop"), other);
    assert_eq!(served.status, StatusCode::OK, "{served:?}");
    let generation = async || store.record("amocrm-shop").await.unwrap().unwrap().generation();
    assert_eq!(generation().await, 2);
    fs::copy(&theirs, &ours).unwrap();
    broker.idle().await;
    assert_eq!(generation().await, 3);
    assert!(broker.has_fallback("amocrm-shop").await, "the sibling's grant was thrown away");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_rotated_under_reads_and_refreshes_of_two_replicas() {
    const NAMES: [&str; 6] = ["own-0", "own-1", "own-2", "own-3", "amocrm-4", "amocrm-5"];
    let mut broker = TestBroker::start(TestDatabase::postgres().await).await;
    for name in &NAMES[..4] {
        broker.create(name, "admitad").await;
    }
    for name in &NAMES[4..] {
        broker.connect(name, Simulated::Amocrm).await;
    }
    let (ours, theirs) = (broker.state("sealing.keys"), broker.state("theirs.keys"));
    fs::copy(&ours, &theirs).unwrap();
    let replica = broker.replica_with_keys(&theirs).await;
    let old = Keyring::read(&ours).unwrap().active_id();
    let added = broker.command(&["keys", "generate", "--add"]).await;
    assert!(added.status.success(), "{added:?}");
    fs::copy(&ours, &theirs).unwrap();

    let over = CancellationToken::new();
    let story = async {
        let config = broker.config();
        let rotate = ["--config", config.to_str().unwrap(), "keys", "rotate"];
        let mut rotation = Program::start(&rotate, &[]);
        assert!(rotation.line().await.ends_with("seals from now on"));
        // Grants go on being sealed with the old key by the replica, until its file follows.
        rotation.line().await;
        fs::copy(&ours, &theirs).unwrap();
        let rotated = rotation.end().await;
        assert!(rotated.status.success(), "{rotated:?}");
        over.cancel();
    };
    let load = async {
        let reads = join_all(NAMES.map(|name| read(&broker, &replica, name, &over)));
        let refreshes = join_all(NAMES.iter().enumerate().map(|(number, name)| {
            let url = if number % 2 == 0 { &broker.internal_url } else { &replica.internal_url };
            refresh_at(&broker, url, name, &over)
        }));
        let (reads, refreshes) = tokio::join!(reads, refreshes);
        (reads.iter().sum::<u32>(), refreshes.iter().sum::<u32>())
    };
    let (ours_in_step, theirs_in_step) = (broker.broker().clone(), replica.broker().clone());
    let tick = Duration::from_millis(500);
    let (reads, refreshes) = tokio::select! {
        () = sync_cache(&ours_in_step, tick) => unreachable!(),
        () = sync_cache(&theirs_in_step, tick) => unreachable!(),
        ((), done) = async { tokio::join!(story, load) } => done,
    };
    assert!(reads > 100 && refreshes > 12, "{reads} reads, {refreshes} refreshes");

    let status = broker.command(&["keys", "status"]).await.stdout;
    let proof = format!("key {old} is needed by no value");
    assert!(status.last().unwrap().starts_with(&proof), "{status:#?}");
    replica.stop().await;
    let text = fs::read_to_string(&ours).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with(&old));
    fs::write(&ours, kept.collect::<Vec<_>>().join("\n")).unwrap();
    broker.restart(|_| {}).await;
    for name in NAMES {
        assert_eq!(broker.token(name).await.status, StatusCode::OK, "{name}");
        assert_eq!(broker.refresh(name).await.status, StatusCode::OK, "{name}");
    }
    broker.stop().await;
}

/// Reads without a break, from both.
async fn read(broker: &TestBroker, replica: &Replica, name: &str, over: &CancellationToken) -> u32 {
    let mut reads = 0;
    while !over.is_cancelled() {
        for token in [broker.token(name).await, replica.token(name).await] {
            assert_eq!(token.status, StatusCode::OK, "{name}: {token:?}");
            reads += 1;
        }
    }
    reads
}

/// Refreshes without a break, by one of them.
async fn refresh_at(broker: &TestBroker, url: &str, name: &str, over: &CancellationToken) -> u32 {
    let url = format!("{url}/v1/connections/{name}/refresh");
    let mut refreshes = 0;
    while !over.is_cancelled() {
        let request = broker.http.post(&url).bearer_auth(&broker.operator_key);
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        // On a busy machine a step may wait for the database for too long; it is taken again.
        let passing = text.contains("the database cannot be reached");
        assert!(status == StatusCode::OK || passing, "{name}: {text}");
        refreshes += u32::from(status == StatusCode::OK);
    }
    refreshes
}
