use std::time::Duration;

use token_broker::domain::grant::SealedGrant;
use token_broker::{
    domain::{
        connection::{ConnectionId, LastError, State},
        record::Record,
    },
    seal::secret::Digest,
    store::{Commit, DeletionStep, Failure, Holding, REMOVE_AT_PROVIDER},
};

use super::{grant, pending, stored, transitions::fallback};
use crate::support::database::{TestDatabase, apply, on_both_engines};

const LEASE: Duration = Duration::from_mins(1);

fn commit(id: ConnectionId, grant: &SealedGrant) -> Commit<'_> {
    Commit::refreshed(id, grant, Some(grant.expires_at), None)
}

async fn held(db: &TestDatabase) -> ConnectionId {
    let id = stored(db, "avito-main").await.id;
    assert!(db.store.durable().commit_grant(&commit(id, &grant(db, 1))).await.unwrap());
    id
}

async fn record(db: &TestDatabase, id: ConnectionId) -> Record {
    db.store.record_by_id(id).await.unwrap().unwrap()
}

#[apply(on_both_engines!)]
async fn what_was_under_way_does_not_undo_a_deletion(db: TestDatabase) {
    let id = held(&db).await;
    let seen = record(&db, id).await;
    assert!(db.store.claim(&seen, "r.one", None, LEASE).await.unwrap().held().is_some());
    assert!(db.store.begin_deletion(id).await.unwrap());
    assert!(!db.store.begin_deletion(id).await.unwrap(), "once");
    let client = &["avito".parse().unwrap()];
    let due = async || db.store.revocations_due(client, 10).await.unwrap().len();
    assert_eq!(due().await, 0, "a refresh is under way");
    assert!(db.store.claim_revocation(id, "r.two", LEASE).await.unwrap().is_none());
    let later = db.clock.now() + Duration::from_hours(1);
    assert!(!db.store.defer_refresh(id, later).await.unwrap());
    let error = LastError { code: "x".to_owned(), message: "y".to_owned(), at: db.clock.now() };
    let failure = Failure {
        connection: id,
        from_generation: 1,
        attempt: "r.one",
        state: State::NeedsConsent,
        reason: Some("revoked"),
        error: &error,
        refresh_at: None,
        failures: 1,
    };
    assert!(db.store.durable().record_failure(&failure).await.unwrap());
    assert_eq!(record(&db, id).await.connection.state, State::Revoking);
    assert_eq!(due().await, 1, "however the refresh ended");
    // An attempt that ended without a word, as somebody saw before the deletion.
    assert!(db.store.claim_revocation(id, "r.two", LEASE).await.unwrap().is_some());
    db.clock.advance(LEASE);
    let seen = record(&db, id).await;
    assert!(
        !db.store.suspend_refresh(&seen, State::Suspect, "crashes", None, later).await.unwrap()
    );
    assert_eq!((record(&db, id).await.connection.state, due().await), (State::Revoking, 1));
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
    assert_eq!((record(&db, id).await.connection.state, due().await), (State::Revoking, 1));
}

#[apply(on_both_engines!)]
async fn what_is_revoked_takes_nothing_in(db: TestDatabase) {
    let id = held(&db).await;
    assert!(db.store.durable().put_pending(id, &pending(&db, "one")).await.unwrap());
    assert!(db.store.durable().put_fallback(&fallback(&db, id, "one"), None).await.unwrap());
    let hash = Digest::of_bytes(b"the refresh token");
    assert!(db.store.require_manual_removal(id, Some(&hash)).await.unwrap());
    assert!(db.store.is_spent(&hash).await.unwrap());
    assert!(!db.contents().await.contains("v1.k1"));
    assert!(!db.store.durable().commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
    assert!(!db.store.durable().commit_confirmed(&commit(id, &grant(&db, 2))).await.unwrap());
    assert!(!db.store.durable().put_pending(id, &pending(&db, "two")).await.unwrap());
    assert!(db.store.durable().put_fallback(&fallback(&db, id, "two"), None).await.unwrap());
    assert!(!db.contents().await.contains("v1.k1"));
    let read = record(&db, id).await.connection;
    assert_eq!((read.state, read.reason.as_deref()), (State::Revoked, Some(REMOVE_AT_PROVIDER)));
    assert!(!db.store.begin_deletion(id).await.unwrap());
    assert!(!db.store.delete_ungranted(id).await.unwrap());
}

#[apply(on_both_engines!)]
async fn a_revocation_ends_only_when_nothing_is_left(db: TestDatabase) {
    let id = held(&db).await;
    assert!(!db.store.delete_ungranted(id).await.unwrap());
    db.store.begin_deletion(id).await.unwrap();
    let claim = async |attempt: &str| {
        db.store.claim_revocation(id, attempt, LEASE).await.unwrap().unwrap().next
    };
    assert_eq!(claim("r.one").await.unwrap().holding, Holding::Grant(1));
    assert!(db.store.claim_revocation(id, "r.two", LEASE).await.unwrap().is_none(), "claimed");
    let shred = async |attempt: &str, holding| {
        db.store.durable().erase_token(id, attempt, holding, None, None).await.unwrap()
    };
    assert!(!shred("r.two", Holding::Grant(1)).await, "only by the claim's own attempt");
    assert!(shred("r.one", Holding::Grant(1)).await);
    assert!(claim("r.three").await.is_none(), "nothing is held");
    // A late grant comes before the end.
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
    assert_eq!(db.store.finish_deletion(id, "r.three").await.unwrap(), DeletionStep::NotYet);
    assert_eq!(claim("r.four").await.unwrap().holding, Holding::Grant(2));
    assert!(shred("r.four", Holding::Grant(2)).await);
    let late = fallback(&db, id, "late");
    assert!(claim("r.five").await.is_none());
    assert!(db.store.durable().put_fallback(&late, None).await.unwrap());
    assert_eq!(db.store.finish_deletion(id, "r.five").await.unwrap(), DeletionStep::NotYet);
    assert_eq!(claim("r.six").await.unwrap().holding, Holding::Fallback(late.id));
    assert!(shred("r.six", Holding::Fallback(late.id)).await);
    assert!(claim("r.seven").await.is_none());
    assert_eq!(db.store.finish_deletion(id, "r.seven").await.unwrap(), DeletionStep::Forgotten);
    assert!(db.store.record_by_id(id).await.unwrap().is_none());
    assert!(db.store.was_deleted("avito-main").await.unwrap());
}
