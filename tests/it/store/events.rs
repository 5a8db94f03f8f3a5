use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use token_broker::{
    audit::{Actor, AuditEvent, EventKind, StoredEvent},
    domain::connection::ConnectionId,
};
use tokio::task::JoinSet;

use crate::support::database::{TestDatabase, apply, on_both_engines};

fn record(now: Timestamp) -> AuditEvent {
    let peer = "192.0.2.7".parse().unwrap();
    AuditEvent::new(EventKind::TokenIssued, &Actor::new("service billing", Some(peer)), now)
        .about(ConnectionId::new(), &"avito-main".parse().unwrap())
        .at_provider("avito")
        .with_grant("00112233aabbccdd", 7)
        .with_detail("after_rejected")
}

fn records(db: &TestDatabase, count: usize) -> Vec<AuditEvent> {
    (0..count).map(|_| record(db.clock.now())).collect()
}

fn held(events: Vec<StoredEvent>) -> Vec<AuditEvent> {
    events.into_iter().map(|event| event.record).collect()
}

#[apply(on_both_engines!)]
async fn events_read_back_in_their_order(db: TestDatabase) {
    let mut all = records(&db, 500);
    all.push(AuditEvent::new(EventKind::Configuration, &Actor::broker(), db.clock.now()));
    assert!(db.store.events(0, 10).await.unwrap().is_empty());
    db.store.insert_events(&all[..500]).await.unwrap();
    db.store.insert_events(&all[500..]).await.unwrap();
    db.store.insert_events(&[]).await.unwrap();
    assert_eq!(held(db.store.events(0, 1_000).await.unwrap()), all);
    let mut read = Vec::new();
    let mut after = 0;
    loop {
        let page = db.store.events(after, 200).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.seq;
        read.extend(held(page));
    }
    assert_eq!(read, all);
}

#[apply(on_both_engines!)]
async fn a_record_is_kept_once(db: TestDatabase) {
    let all = records(&db, 6);
    db.store.insert_events(&all[..4]).await.unwrap();
    db.store.insert_events(&all[2..]).await.unwrap();
    db.store.insert_events(&all).await.unwrap();
    assert_eq!(held(db.store.events(0, 100).await.unwrap()), all);
}

#[apply(on_both_engines!)]
async fn a_reader_misses_nothing_that_others_write(db: TestDatabase) {
    let (writers, batches, size) = (4, 15, 3);
    let mut writing = JoinSet::new();
    for _ in 0..writers {
        let (store, now) = (db.store.clone(), db.clock.now());
        writing.spawn(async move {
            for _ in 0..batches {
                let batch: Vec<_> = (0..size).map(|_| record(now)).collect();
                store.insert_events(&batch).await.unwrap();
            }
        });
    }
    let mut seen = BTreeSet::new();
    let mut after = 0;
    loop {
        let done = writing.is_empty();
        while writing.try_join_next().is_some_and(|joined| {
            joined.unwrap();
            true
        }) {}
        let page = db.store.events(after, 7).await.unwrap();
        match page.last() {
            Some(last) => after = last.seq,
            None if done => break,
            None => {}
        }
        assert!(page.iter().all(|event| seen.insert(event.record.id)), "each once");
    }
    assert_eq!(seen.len(), writers * batches * size);
}

#[apply(on_both_engines!)]
async fn old_events_are_forgotten(db: TestDatabase) {
    let day = Duration::from_hours(24);
    let old = records(&db, 3);
    db.store.insert_events(&old).await.unwrap();
    db.clock.advance(day * 89);
    let newer = records(&db, 2);
    db.store.insert_events(&newer).await.unwrap();
    assert_eq!(db.store.purge_events(day * 90).await.unwrap(), 0);
    db.clock.advance(day);
    assert_eq!(db.store.purge_events(day * 90).await.unwrap(), 3);
    let left = db.store.events(0, 100).await.unwrap();
    assert_eq!(left[0].seq, 4, "a place is never given again");
    assert_eq!(held(left), newer);
}
