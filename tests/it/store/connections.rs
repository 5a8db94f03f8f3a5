use std::time::Duration;

use jiff::Timestamp;
use token_broker::{
    connection::{Account, Connection, ConnectionId, LastError, State},
    slug::Slug,
    store::{Commit, StoreError},
};

use super::{account, connection, consents, grant, pending, stored};
use crate::support::database::{TestDatabase, on_both_engines};

on_both_engines! {
    a_connection_reads_back_as_it_was_made,
    a_name_is_taken_once,
    connections_come_by_name,
    a_state_can_be_set,
    a_reader_who_polls_sees_every_change,
    an_account_that_is_learned_late_replaces_none,
    deleting_leaves_nothing_sealed,
    a_corrupt_row_is_told_and_not_guessed,
}

async fn a_connection_reads_back_as_it_was_made(db: TestDatabase) {
    let plain = connection(&db, "plain");
    let full = Connection {
        state: State::NeedsConsent,
        reason: Some("revoked".to_owned()),
        account: Some(account()),
        failures: 3,
        last_error: Some(LastError {
            code: "invalid_grant".to_owned(),
            message: "The provider refused the grant.".to_owned(),
            at: db.clock.now(),
        }),
        ..connection(&db, "full")
    };
    for made in [plain, full] {
        db.store.create(&made).await.unwrap();
        let read = db.store.record(made.name.as_str()).await.unwrap().unwrap();
        assert_eq!(format!("{:?}", read.connection), format!("{made:?}"));
        assert!(read.grant.is_none() && read.pending.is_none());
        let by_id = db.store.record_by_id(made.id).await.unwrap().unwrap();
        assert_eq!(format!("{by_id:?}"), format!("{read:?}"));
    }
    assert!(db.store.record("nobody").await.unwrap().is_none());
    assert!(db.store.record_by_id(ConnectionId::new()).await.unwrap().is_none());
}

async fn a_name_is_taken_once(db: TestDatabase) {
    let first = stored(&db, "avito-main").await;
    let error = db.store.create(&connection(&db, "avito-main")).await.unwrap_err();
    assert!(matches!(&error, StoreError::NameTaken(name) if *name == first.name), "{error:?}");
    assert_eq!(db.store.records().await.unwrap().len(), 1);
    db.store.delete(first.id).await.unwrap();
    stored(&db, "avito-main").await;
}

async fn connections_come_by_name(db: TestDatabase) {
    for name in ["b", "a-2", "a", "c"] {
        stored(&db, name).await;
    }
    let records = db.store.records().await.unwrap();
    let mut names: Vec<_> = records.iter().map(|record| record.connection.name.as_str()).collect();
    assert_eq!(names.len(), 4);
    assert!(names.is_sorted(), "{names:?}");
    names.dedup();
    assert_eq!(names.len(), 4);
}

async fn a_state_can_be_set(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    assert!(db.store.set_state(id, State::Suspect, Some("loop")).await.unwrap());
    let read = db.store.record_by_id(id).await.unwrap().unwrap().connection;
    assert_eq!((read.state, read.reason.as_deref()), (State::Suspect, Some("loop")));
    let unknown = ConnectionId::new();
    assert!(!db.store.set_state(unknown, State::Suspect, None).await.unwrap());
    assert!(!db.store.delete(unknown).await.unwrap());
}

async fn a_reader_who_polls_sees_every_change(db: TestDatabase) {
    let quiet = stored(&db, "quiet").await;
    let busy = stored(&db, "busy").await;
    let all = db.store.changed_since(Timestamp::UNIX_EPOCH).await.unwrap();
    assert_eq!(all.records.len(), 2);
    assert!(all.deleted.is_empty());

    db.clock.advance(Duration::from_mins(1));
    let mark = db.store.changed_since(all.mark).await.unwrap().mark;
    let changes = async || {
        let changes = db.store.changed_since(mark).await.unwrap();
        changes.records.iter().map(|record| record.connection.id).collect::<Vec<_>>()
    };
    assert!(changes().await.is_empty(), "nothing has changed since the mark");

    db.store.set_state(busy.id, State::Suspect, None).await.unwrap();
    assert_eq!(changes().await, [busy.id]);
    db.store.delete(quiet.id).await.unwrap();
    let after = db.store.changed_since(mark).await.unwrap();
    assert_eq!(after.deleted, [(quiet.id, quiet.name)]);

    // A step that was under way while changes were read is within the overlap.
    let again = db.store.changed_since(after.mark).await.unwrap();
    assert_eq!(again.records.len(), 1);
}

async fn an_account_that_is_learned_late_replaces_none(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let read = async || db.store.record_by_id(id).await.unwrap().unwrap().connection.account;
    for generation in 1..=2 {
        let held = grant(&db, generation);
        assert!(db.store.commit_grant(&Commit::refreshed(id, &held, None, None)).await.unwrap());
    }
    assert!(!db.store.set_account(id, 1, &account()).await.unwrap(), "a grant was stored since");
    assert_eq!(read().await, None);
    assert!(db.store.set_account(id, 2, &account()).await.unwrap());
    let other = Account { id: "5678".to_owned(), ..account() };
    assert!(!db.store.set_account(id, 2, &other).await.unwrap(), "it is somebody's by now");
    assert_eq!(read().await, Some(account()));
    assert!(!db.store.set_account(ConnectionId::new(), 0, &other).await.unwrap());
}

async fn deleting_leaves_nothing_sealed(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let held = grant(&db, 1);
    let commit = Commit::refreshed(id, &held, None, None);
    assert!(db.store.commit_grant(&commit).await.unwrap());
    assert!(db.store.put_pending(id, &pending(&db, "one")).await.unwrap());
    consents::started(&db, id).await;
    let before = db.contents().await;
    for sealed in ["sealed-access", "sealed-refresh", "sealed-pending", "sealed-verifier"] {
        assert!(before.contains(sealed), "the test sees what is stored: {sealed}");
    }

    assert!(db.store.delete(id).await.unwrap());
    assert!(!db.contents().await.contains("v1.k1"));
    assert!(!db.store.commit_grant(&commit).await.unwrap(), "a late grant has nowhere to go");
    assert!(!db.store.put_pending(id, &pending(&db, "two")).await.unwrap());
}

async fn a_corrupt_row_is_told_and_not_guessed(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    db.execute("UPDATE connections SET state = 'asleep'").await;
    let error = db.store.record("avito-main").await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("the stored `state` of {id} cannot be understood"));
    db.execute("UPDATE connections SET state = 'active', scopes = '{'").await;
    let error = db.store.records().await.unwrap_err();
    assert!(error.to_string().contains("`scopes`"), "{error}");
    db.execute("UPDATE connections SET scopes = '[]', failures = -1").await;
    // It keeps no other from being seen.
    stored(&db, "divar-main").await;
    let changes = db.store.changed_since(Timestamp::UNIX_EPOCH).await.unwrap();
    let names: Vec<_> = changes.records.iter().map(|record| &record.connection.name).collect();
    assert_eq!(names, ["divar-main"].map(|name| name.parse::<Slug>().unwrap()).each_ref());
}
