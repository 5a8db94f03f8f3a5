use std::time::Duration;

use token_broker::{
    connection::{ConnectionId, LastError, State},
    rotation::Origin,
    seal::Sealed,
    secret::Digest,
    store::{Commit, Escrowed},
};
use uuid::Uuid;

use super::{account, grant, stored};
use crate::support::database::{TestDatabase, on_both_engines};

on_both_engines! {
    nobody_is_given_up_who_was_refreshed_meanwhile,
    what_was_given_up_unasked_is_not_taken_back,
    a_grant_in_escrow_waits_a_week_for_its_turn,
    a_new_consent_ends_what_lies_in_escrow,
}

fn commit(id: ConnectionId, grant: &token_broker::connection::HeldGrant) -> Commit<'_> {
    Commit::refreshed(id, grant, Some(grant.expires_at), None)
}

fn lost(db: &TestDatabase) -> LastError {
    let (code, message) = ("lost_in_rotation".to_owned(), "A sentence.".to_owned());
    LastError { code, message, at: db.clock.now() }
}

pub(super) fn escrowed(db: &TestDatabase, id: ConnectionId, mark: &str) -> Escrowed {
    let now = db.clock.now();
    Escrowed {
        id: Uuid::now_v7(),
        connection: id,
        generation: 2,
        access: Sealed::from_stored(format!("v1.k1.access-{mark}")),
        refresh: Sealed::from_stored(format!("v1.k1.refresh-{mark}")),
        refresh_hash: Digest::of_bytes(mark.as_bytes()),
        scopes: Vec::new(),
        received_at: now,
        expires_at: now + Duration::from_hours(1),
        origin: Some(Origin { parent: None, asked_at: now }),
    }
}

async fn nobody_is_given_up_who_was_refreshed_meanwhile(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let record = async || db.store.record_by_id(id).await.unwrap().unwrap();
    assert!(db.store.commit_grant(&commit(id, &grant(&db, 1))).await.unwrap());
    let seen = record().await;
    // Somebody else claims it: what was seen is no ground for a verdict, nor for another schedule.
    let lease = Duration::from_mins(1);
    assert!(db.store.claim(&seen, "other", None, lease).await.unwrap().is_some());
    let until = Some(db.clock.now() + Duration::from_hours(9));
    let why = lost(&db);
    for until in [None, until] {
        assert!(!db.store.give_up_refreshing(&seen, until, &why).await.unwrap());
        assert!(!db.store.give_up_refreshing(&record().await, until, &why).await.unwrap());
    }
    // And brings a grant.
    assert!(db.store.commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
    assert!(!db.store.give_up_refreshing(&seen, None, &why).await.unwrap());
    let untouched = record().await.connection;
    assert_eq!((untouched.state, untouched.reason), (State::Active, None));
    // Whoever sees things as they are may conclude.
    assert!(db.store.give_up_refreshing(&record().await, until, &why).await.unwrap());
    assert_eq!(record().await.connection.state, State::Active);
    assert!(db.store.give_up_refreshing(&record().await, None, &why).await.unwrap());
    let given_up = record().await.connection;
    assert_eq!(
        (given_up.state, given_up.reason.as_deref()),
        (State::NeedsConsent, Some("lost_in_rotation"))
    );
    assert_eq!(given_up.last_error, Some(why));
}

async fn what_was_given_up_unasked_is_not_taken_back(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let record = async || db.store.record_by_id(id).await.unwrap().unwrap();
    assert!(db.store.commit_grant(&commit(id, &grant(&db, 1))).await.unwrap());
    let presented = Digest::of_bytes(b"refresh token 1");
    let claimed = db.store.claim(&record().await, "lost", Some(&presented), Duration::ZERO).await;
    assert!(claimed.unwrap().is_some());
    assert!(db.store.give_up_refreshing(&record().await, None, &lost(&db)).await.unwrap());
    db.store.bury(id, &presented).await.unwrap();
    let clients = ["avito".parse().unwrap()];
    let (within, until) = (Duration::from_mins(10), db.clock.now());
    assert_eq!(db.store.take_back_verdicts(&clients, within, until).await.unwrap(), 0);
    assert_eq!(record().await.connection.state, State::NeedsConsent);
    assert!(db.store.is_buried(&presented).await.unwrap());
}

async fn a_grant_in_escrow_waits_a_week_for_its_turn(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let (older, newer) = (escrowed(&db, id, "older"), {
        db.clock.advance(Duration::from_secs(1));
        escrowed(&db, id, "newer")
    });
    let of_nobody = escrowed(&db, ConnectionId::new(), "nobody's");
    for grant in [&newer, &older, &of_nobody] {
        db.store.put_in_escrow(grant).await.unwrap();
    }
    // The same refresh token again is the same grant.
    db.store.put_in_escrow(&escrowed(&db, id, "newer")).await.unwrap();
    let first = db.store.escrowed(id).await.unwrap().unwrap();
    assert_eq!(format!("{first:?}"), format!("{newer:?}"));
    db.store.bury(id, &newer.refresh_hash).await.unwrap();
    assert_eq!(
        db.store.escrowed(id).await.unwrap().unwrap().id,
        older.id,
        "the refused one is passed over"
    );
    db.store.leave_escrow(older.id).await.unwrap();
    assert!(db.store.escrowed(id).await.unwrap().is_none());
    assert_eq!(db.store.purge_expired().await.unwrap().escrow, 0);
    db.clock.advance(Duration::from_hours(7 * 24));
    assert_eq!(db.store.purge_expired().await.unwrap().escrow, 1);
}

async fn a_new_consent_ends_what_lies_in_escrow(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    db.store.put_in_escrow(&escrowed(&db, id, "old")).await.unwrap();
    assert!(db.store.commit_grant(&commit(id, &grant(&db, 1))).await.unwrap());
    assert!(db.store.escrowed(id).await.unwrap().is_some(), "a refresh leaves it");
    let (second, who) = (grant(&db, 2), account());
    let consented = Commit { account: Some(&who), ..commit(id, &second) };
    assert!(db.store.commit_grant(&consented).await.unwrap());
    assert!(db.store.escrowed(id).await.unwrap().is_none(), "it may be another account's");
}
