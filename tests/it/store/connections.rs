use std::time::Duration;

use jiff::Timestamp;
use strum::VariantArray as _;
use token_broker::{
    domain::{
        connection::{Account, Connection, ConnectionId, LastError, State},
        slug::Slug,
    },
    store::{Commit, StoreError},
};

use super::{account, connection, consents, grant, pending, stored};
use crate::support::database::{TestDatabase, apply, on_both_engines};

#[apply(on_both_engines!)]
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

#[apply(on_both_engines!)]
async fn a_name_is_taken_once(db: TestDatabase) {
    let first = stored(&db, "avito-main").await;
    let error = db.store.create(&connection(&db, "avito-main")).await.unwrap_err();
    assert!(matches!(&error, StoreError::NameTaken(name) if *name == first.name), "{error:?}");
    assert_eq!(db.store.records().await.unwrap().len(), 1);
    db.store.delete(first.id).await.unwrap();
    stored(&db, "avito-main").await;
}

#[apply(on_both_engines!)]
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

#[apply(on_both_engines!)]
async fn only_what_is_held_is_marked_as_unreadable(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let state = async || db.store.record_by_id(id).await.unwrap().unwrap().connection.state;
    for generation in 1..=2 {
        let held = grant(&db, generation);
        let commit = Commit::refreshed(id, &held, None, None);
        assert!(db.store.durable().commit_grant(&commit).await.unwrap());
    }
    // Somebody read the first and saw that it does not open: the second may well do.
    assert!(!db.store.mark_unreadable(id, 1).await.unwrap());
    assert!(!db.store.mark_unreadable(ConnectionId::new(), 2).await.unwrap());
    assert_eq!(state().await, State::Active);
    for &before in State::VARIANTS {
        db.set_state(id, before, Some("a_reason")).await;
        let marked = db.store.mark_unreadable(id, 2).await.unwrap();
        assert_eq!(marked, !before.is_deleted(), "{before}");
        assert_eq!(state().await, if marked { State::IntegrityError } else { before });
    }
    assert!(!db.store.delete(ConnectionId::new()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_is_being_stored_is_not_marked_for_the_one_before() {
    let db = TestDatabase::postgres().await;
    let id = stored(&db, "avito-main").await.id;
    let held = grant(&db, 1);
    assert!(
        db.store.durable().commit_grant(&Commit::refreshed(id, &held, None, None)).await.unwrap()
    );
    let mut storing = db.hold("UPDATE connections SET failures = 0").await;
    let mark = db.store.mark_unreadable(id, 1);
    let store = async {
        while db.number("SELECT COUNT(*) FROM pg_locks WHERE NOT granted").await == 0 {}
        let rest = "UPDATE grants SET generation = 2; COMMIT";
        sqlx::raw_sql(rest).execute(&mut storing).await.unwrap();
    };
    let (marked, ()) = tokio::join!(mark, store);
    assert!(!marked.unwrap());
    let record = db.store.record_by_id(id).await.unwrap().unwrap();
    assert_eq!((record.connection.state, record.generation()), (State::Active, 2));
}

#[apply(on_both_engines!)]
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

    db.store.suspect_reports(busy.id).await.unwrap();
    assert_eq!(changes().await, [busy.id]);
    db.store.delete(quiet.id).await.unwrap();
    let after = db.store.changed_since(mark).await.unwrap();
    assert_eq!(after.deleted, [(quiet.id, quiet.name)]);

    // A step that was under way while changes were read is within the overlap.
    let again = db.store.changed_since(after.mark).await.unwrap();
    assert_eq!(again.records.len(), 1);
}

#[apply(on_both_engines!)]
async fn an_account_that_is_learned_late_replaces_none(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let read = async || db.store.record_by_id(id).await.unwrap().unwrap().connection.account;
    for generation in 1..=2 {
        let held = grant(&db, generation);
        assert!(
            db.store
                .durable()
                .commit_grant(&Commit::refreshed(id, &held, None, None))
                .await
                .unwrap()
        );
    }
    assert!(!db.store.set_account(id, 1, &account()).await.unwrap(), "a grant was stored since");
    assert_eq!(read().await, None);
    assert!(db.store.set_account(id, 2, &account()).await.unwrap());
    let other = Account { id: "5678".to_owned(), ..account() };
    assert!(!db.store.set_account(id, 2, &other).await.unwrap(), "it is somebody's by now");
    assert_eq!(read().await, Some(account()));
    assert!(!db.store.set_account(ConnectionId::new(), 0, &other).await.unwrap());
}

#[apply(on_both_engines!)]
async fn deleting_leaves_nothing_sealed(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let held = grant(&db, 1);
    let commit = Commit::refreshed(id, &held, None, None);
    assert!(db.store.durable().commit_grant(&commit).await.unwrap());
    assert!(db.store.durable().put_pending(id, &pending(&db, "one")).await.unwrap());
    consents::started(&db, id).await;
    let before = db.contents().await;
    for sealed in ["sealed-access", "sealed-refresh", "sealed-pending", "sealed-verifier"] {
        assert!(before.contains(sealed), "the test sees what is stored: {sealed}");
    }

    assert!(db.store.delete(id).await.unwrap());
    assert!(!db.contents().await.contains("v1.k1"));
    assert!(
        !db.store.durable().commit_grant(&commit).await.unwrap(),
        "a late grant has nowhere to go"
    );
    assert!(!db.store.durable().put_pending(id, &pending(&db, "two")).await.unwrap());
}

#[apply(on_both_engines!)]
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
