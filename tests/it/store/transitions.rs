use std::time::Duration;

use token_broker::domain::grant::{GrantSlot, SealedGrant};
use token_broker::{
    domain::{
        connection::{Account, ConnectionId, LastError, State},
        grant_conflict::GrantLineage,
        record::Record,
    },
    seal::{Sealed, secret::Digest},
    store::{Commit, FallbackGrant, Source},
};
use uuid::Uuid;

use super::{account, grant, stored};
use crate::support::database::{TestDatabase, apply, on_both_engines};

fn commit(id: ConnectionId, grant: &SealedGrant) -> Commit<'_> {
    Commit::refreshed(id, grant, Some(grant.expires_at), None)
}

async fn record(db: &TestDatabase, id: ConnectionId) -> Record {
    db.store.record_by_id(id).await.unwrap().unwrap()
}

fn lost(db: &TestDatabase) -> LastError {
    let (code, message) = ("lost_in_rotation".to_owned(), "A sentence.".to_owned());
    LastError { code, message, at: db.clock.now() }
}

pub(super) fn fallback(db: &TestDatabase, id: ConnectionId, mark: &str) -> FallbackGrant {
    let now = db.clock.now();
    FallbackGrant {
        id: Uuid::now_v7(),
        connection: id,
        refresh_hash: Digest::of_bytes(mark.as_bytes()),
        grant: SealedGrant {
            slot: GrantSlot::Fallback { generation: 2 },
            access: Sealed::from_stored(format!("v1.k1.access-{mark}")),
            refresh: Some(Sealed::from_stored(format!("v1.k1.refresh-{mark}"))),
            scopes: Vec::new(),
            received_at: now,
            expires_at: now + Duration::from_hours(1),
            origin: Some(GrantLineage { parent: None, asked_at: now }),
        },
    }
}

fn of_generation(fallback: FallbackGrant, generation: i64) -> FallbackGrant {
    let slot = GrantSlot::Fallback { generation };
    FallbackGrant { grant: SealedGrant { slot, ..fallback.grant }, ..fallback }
}

#[apply(on_both_engines!)]
async fn nobody_is_given_up_who_was_refreshed_meanwhile(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let record = async || db.store.record_by_id(id).await.unwrap().unwrap();
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 1))).await.unwrap());
    let seen = record().await;
    // Somebody else claims it: what was seen is no ground for a verdict, nor for another schedule.
    let lease = Duration::from_mins(1);
    assert!(db.store.claim(&seen, "other", None, lease).await.unwrap().held().is_some());
    let until = Some(db.clock.now() + Duration::from_hours(9));
    let why = lost(&db);
    for until in [None, until] {
        assert!(!db.store.give_up_refresh(&seen, until, &why).await.unwrap());
        assert!(!db.store.give_up_refresh(&record().await, until, &why).await.unwrap());
    }
    // And brings a grant.
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
    assert!(!db.store.give_up_refresh(&seen, None, &why).await.unwrap());
    let untouched = record().await.connection;
    assert_eq!((untouched.state, untouched.reason), (State::Active, None));
    // Whoever sees things as they are may conclude.
    assert!(db.store.give_up_refresh(&record().await, until, &why).await.unwrap());
    assert_eq!(record().await.connection.state, State::Active);
    assert!(db.store.give_up_refresh(&record().await, None, &why).await.unwrap());
    let given_up = record().await.connection;
    assert_eq!(
        (given_up.state, given_up.reason.as_deref()),
        (State::NeedsConsent, Some("lost_in_rotation"))
    );
    assert_eq!(given_up.last_error, Some(why));
}

#[apply(on_both_engines!)]
async fn what_was_given_up_unasked_is_not_taken_back(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let record = async || db.store.record_by_id(id).await.unwrap().unwrap();
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 1))).await.unwrap());
    let presented = Digest::of_bytes(b"refresh token 1");
    let claimed = db.store.claim(&record().await, "lost", Some(&presented), Duration::ZERO).await;
    assert!(claimed.unwrap().held().is_some());
    assert!(db.store.give_up_refresh(&record().await, None, &lost(&db)).await.unwrap());
    db.store.durable().mark_spent(id, &presented).await.unwrap();
    let clients = ["avito".parse().unwrap()];
    let (within, until) = (Duration::from_mins(10), db.clock.now());
    assert_eq!(db.store.revert_refusals(&clients, within, until).await.unwrap(), 0);
    assert_eq!(record().await.connection.state, State::NeedsConsent);
    assert!(db.store.is_spent(&presented).await.unwrap());
}

#[apply(on_both_engines!)]
async fn a_grant_in_escrow_waits_a_week_for_its_turn(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let (older, newer) = (fallback(&db, id, "older"), {
        db.clock.advance(Duration::from_secs(1));
        fallback(&db, id, "newer")
    });
    let of_nobody = fallback(&db, ConnectionId::new(), "nobody's");
    for grant in [&newer, &older, &of_nobody] {
        assert!(db.store.durable().put_fallback(grant, None).await.unwrap());
    }
    // The same refresh token again is the same grant.
    assert!(db.store.durable().put_fallback(&fallback(&db, id, "newer"), None).await.unwrap());
    let first = db.store.fallback(id).await.unwrap().unwrap();
    assert_eq!(format!("{first:?}"), format!("{newer:?}"));
    db.store.durable().mark_spent(id, &newer.refresh_hash).await.unwrap();
    assert_eq!(
        db.store.fallback(id).await.unwrap().unwrap().id,
        older.id,
        "the refused one is passed over"
    );
    db.store.durable().drop_fallback(older.id).await.unwrap();
    assert!(db.store.fallback(id).await.unwrap().is_none());
    assert_eq!(db.store.purge_expired().await.unwrap().fallback_grants, 0);
    db.clock.advance(Duration::from_hours(7 * 24));
    assert_eq!(db.store.purge_expired().await.unwrap().fallback_grants, 1);
}

#[apply(on_both_engines!)]
async fn a_new_consent_ends_what_lies_in_escrow(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    assert!(db.store.durable().put_fallback(&fallback(&db, id, "old"), None).await.unwrap());
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 1))).await.unwrap());
    assert!(db.store.fallback(id).await.unwrap().is_some(), "a refresh leaves it");
    // Whether the provider says whose it is, or not.
    let second = grant(&db, 2);
    let judged = record(&db, id).await.connection;
    let consented = Commit { source: Source::Consent { judged: &judged }, ..commit(id, &second) };
    assert!(db.store.durable().commit_grant(&consented).await.unwrap());
    assert!(db.store.fallback(id).await.unwrap().is_none(), "it may be another account's");
}

#[apply(on_both_engines!)]
async fn what_was_asked_for_before_a_consent_is_kept_for_its_account_only(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let (who, other) = (account(), Account { id: "5678".to_owned(), ..account() });
    for (round, (now, of, kept)) in [
        (None, None, false),
        (None, Some(&who), false),
        (Some(&who), None, false),
        (Some(&who), Some(&who), true),
        (Some(&other), Some(&who), false),
        (Some(&other), Some(&other), true),
    ]
    .into_iter()
    .enumerate()
    {
        let held = record(&db, id).await;
        let generation = held.generation() + 1;
        let next = grant(&db, generation);
        let source = Source::Consent { judged: &held.connection };
        let consented = Commit { source, account: now, ..commit(id, &next) };
        assert!(db.store.durable().commit_grant(&consented).await.unwrap());
        // Its refresh wanted the place that the consent has taken.
        let late = of_generation(fallback(&db, id, &round.to_string()), generation);
        let of = of.map(|account| account.id.as_str());
        assert_eq!(db.store.durable().put_fallback(&late, of).await.unwrap(), kept, "{round}");
        assert_eq!(db.store.fallback(id).await.unwrap().is_some(), kept, "{round}");
        assert_eq!(db.store.is_spent(&late.refresh_hash).await.unwrap(), !kept, "{round}");
        // What was asked for since is of the same authorisation.
        let mark = format!("since {round}");
        let since = of_generation(fallback(&db, id, &mark), generation + 1);
        assert!(db.store.durable().put_fallback(&since, None).await.unwrap(), "{round}");
        assert!(
            db.store
                .durable()
                .commit_grant(&commit(id, &grant(&db, generation + 1)))
                .await
                .unwrap()
        );
        // A refresh later it is still an older one's.
        let later = of_generation(fallback(&db, id, &format!("later {round}")), generation);
        assert_eq!(db.store.durable().put_fallback(&later, of).await.unwrap(), kept, "{round}");
    }
    // Who is being revoked is revoked with all that comes.
    db.set_state(id, State::Revoking, None).await;
    assert!(db.store.durable().put_fallback(&fallback(&db, id, "too late"), None).await.unwrap());
}
