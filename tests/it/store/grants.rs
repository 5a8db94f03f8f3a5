use std::time::Duration;

use jiff::Timestamp;
use strum::VariantArray as _;
use token_broker::domain::grant::{GrantSlot, SealedGrant};
use token_broker::{
    domain::{
        connection::{Account, Connection, ConnectionId, LastError, State, Vars},
        consent::CONFIRM_LIFE,
        record::Record,
        slug::Slug,
    },
    seal::secret::Digest,
    store::{Claim, ClaimRejected, Commit, Failure, Source, Store, StoreError},
};

use super::{account, connection, grant, pending, stored};
use crate::support::database::{TestDatabase, apply, on_both_engines};

const LEASE: Duration = Duration::from_mins(1);

/// The digest of the refresh token that a generation presents.
fn presents(generation: i64) -> Digest {
    Digest::of_bytes(format!("refresh token {generation}").as_bytes())
}

/// The record as somebody saw it who knows of no more than this many grants.
async fn seen(db: &TestDatabase, id: ConnectionId, generation: i64) -> Record {
    let record = record(db, id).await;
    let grant = record
        .grant
        .clone()
        .map(|held| SealedGrant { slot: GrantSlot::Live { generation }, ..held });
    Record { grant: grant.filter(|_| generation > 0), ..record }
}

async fn claim(db: &TestDatabase, id: ConnectionId, attempt: &str, from: i64) -> Claim {
    let seen = seen(db, id, from).await;
    db.store.claim(&seen, attempt, Some(&presents(from)), LEASE).await.unwrap()
}

fn commit(id: ConnectionId, grant: &SealedGrant) -> Commit<'_> {
    Commit::refreshed(id, grant, Some(grant.expires_at), Some(presents(grant.generation())))
}

async fn held(db: &TestDatabase, name: &str) -> Connection {
    let connection = stored(db, name).await;
    assert!(db.store.durable().commit_grant(&commit(connection.id, &grant(db, 1))).await.unwrap());
    connection
}

async fn record(db: &TestDatabase, id: ConnectionId) -> Record {
    db.store.record_by_id(id).await.unwrap().unwrap()
}

fn error(db: &TestDatabase) -> LastError {
    LastError {
        code: "provider_unavailable".to_owned(),
        message: "The provider answered 503.".to_owned(),
        at: db.clock.now(),
    }
}

fn failure<'a>(
    id: ConnectionId,
    attempt: &'a str,
    state: State,
    error: &'a LastError,
) -> Failure<'a> {
    Failure {
        connection: id,
        from_generation: 0,
        attempt,
        state,
        reason: Some("a reason"),
        error,
        refresh_at: Some(error.at + Duration::from_secs(30)),
        failures: 1,
    }
}

#[apply(on_both_engines!)]
async fn of_two_who_claim_one_wins(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    for round in 0..5 {
        let (one, two) = tokio::join!(claim(&db, id, "one", 0), claim(&db, id, "two", 0));
        let (one, two) = (one.held(), two.held());
        assert!(one.is_some() != two.is_some(), "round {round}");
        assert_eq!(record(&db, id).await.claimed_at, one.or(two));
        db.store.durable().release(id, "one").await.unwrap();
        db.store.durable().release(id, "two").await.unwrap();
    }
}

#[apply(on_both_engines!)]
async fn a_claim_ends_with_its_lease(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    assert!(claim(&db, id, "one", 0).await.held().is_some());
    db.clock.advance(LEASE / 2);
    assert_eq!(claim(&db, id, "two", 0).await, Claim::Rejected(ClaimRejected::Contended));
    db.clock.advance(LEASE / 2);
    assert!(claim(&db, id, "two", 0).await.held().is_some());
    db.store.durable().release(id, "one").await.unwrap();
    assert!(
        claim(&db, id, "three", 0).await.held().is_none(),
        "the first attempt has no say any more"
    );
}

#[apply(on_both_engines!)]
async fn a_claim_needs_the_generation_and_the_state(db: TestDatabase) {
    let id = held(&db, "avito-main").await.id;
    assert!(claim(&db, id, "one", 0).await.held().is_none());
    let mut unknown = record(&db, id).await;
    unknown.connection.id = ConnectionId::new();
    assert!(db.store.claim(&unknown, "one", None, LEASE).await.unwrap().held().is_none());
    for state in State::VARIANTS {
        db.set_state(id, *state, None).await;
        let claimed = claim(&db, id, "one", 1).await;
        assert_eq!(claimed.held().is_some(), state.refreshes(), "{state}");
        db.store.durable().release(id, "one").await.unwrap();
    }
}

#[apply(on_both_engines!)]
async fn a_released_claim_is_free_for_its_own_attempt_only(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    assert!(claim(&db, id, "one", 0).await.held().is_some());
    db.store.durable().release(id, "two").await.unwrap();
    assert!(claim(&db, id, "two", 0).await.held().is_none());
    db.store.durable().release(id, "one").await.unwrap();
    assert!(claim(&db, id, "two", 0).await.held().is_some());
}

#[apply(on_both_engines!)]
async fn a_commit_lands_by_generation_and_not_by_lease(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    assert!(claim(&db, id, "slow", 0).await.held().is_some());
    db.clock.advance(LEASE);
    assert!(claim(&db, id, "quick", 0).await.held().is_some());
    // The slow one's answer came after all, and nobody has stored another.
    let slow = grant(&db, 1);
    assert!(db.store.durable().commit_grant(&commit(id, &slow)).await.unwrap());
    let mut quick = grant(&db, 1);
    quick.access = slow.refresh.clone().unwrap();
    assert!(!db.store.durable().commit_grant(&commit(id, &quick)).await.unwrap());
    let stands = record(&db, id).await.grant.unwrap();
    assert_eq!(format!("{stands:?}"), format!("{slow:?}"));
    assert_eq!((stands.access, stands.refresh), (slow.access, slow.refresh));
    assert!(!db.store.durable().commit_grant(&commit(id, &grant(&db, 3))).await.unwrap());
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
}

#[apply(on_both_engines!)]
async fn of_many_commits_from_one_generation_one_lands(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let first = grant(&db, 1);
    let attempt = commit(id, &first);
    let commits = (0..10).map(|_| db.store.durable().commit_grant(&attempt));
    let landed = futures_util::future::join_all(commits).await;
    assert_eq!(landed.into_iter().filter(|landed| *landed.as_ref().unwrap()).count(), 1);
    assert_eq!(record(&db, id).await.grant.unwrap().generation(), 1);
}

#[apply(on_both_engines!)]
async fn a_commit_ends_failures_and_claim(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let error = error(&db);
    assert!(claim(&db, id, "one", 0).await.held().is_some());
    let failure = failure(id, "one", State::Uncertain, &error);
    assert!(db.store.durable().record_failure(&failure).await.unwrap());
    assert!(claim(&db, id, "two", 0).await.held().is_some());
    let first = SealedGrant { refresh: None, ..grant(&db, 1) };
    let (account, vars) = (account(), Vars::from([("host".to_owned(), "flowers".to_owned())]));
    let scopes = vec!["items:info".to_owned()];
    let judged = record(&db, id).await.connection;
    let full = Commit {
        source: Source::Consent { judged: &judged },
        account: Some(&account),
        vars: Some(&vars),
        scopes: Some(&scopes),
        token_url: Some("https://provider.example/token"),
        ..commit(id, &first)
    };
    assert!(db.store.durable().commit_grant(&full).await.unwrap());
    let read = record(&db, id).await;
    assert!(read.grant.unwrap().refresh.is_none());
    assert_eq!(read.token_url.as_deref(), full.token_url);
    let read = read.connection;
    assert_eq!((read.state, read.reason, read.failures), (State::Active, None, 0));
    assert_eq!((read.last_error, read.refresh_at), (None, Some(first.expires_at)));
    assert_eq!((read.account, read.vars, read.scopes), (Some(account), vars, scopes));
    assert!(claim(&db, id, "three", 1).await.held().is_some(), "the lease ended with the commit");
}

#[apply(on_both_engines!)]
async fn a_commit_keeps_what_it_does_not_name(db: TestDatabase) {
    let made = held(&db, "avito-main").await;
    let named = account();
    let second = grant(&db, 2);
    let with_account = Commit { account: Some(&named), ..commit(made.id, &second) };
    assert!(db.store.durable().commit_grant(&with_account).await.unwrap());
    assert!(db.store.durable().commit_grant(&commit(made.id, &grant(&db, 3))).await.unwrap());
    let read = record(&db, made.id).await.connection;
    assert_eq!((read.account, read.vars, read.scopes), (Some(named), made.vars, made.scopes));
}

#[apply(on_both_engines!)]
async fn a_commit_lands_only_for_the_account_that_was_judged(db: TestDatabase) {
    let judged = held(&db, "avito-main").await;
    let named = account();
    let (second, third) = (grant(&db, 2), grant(&db, 3));
    assert!(db.store.set_account(judged.id, 1, &named).await.unwrap());
    let other = Account { id: "5678".to_owned(), ..account() };
    for account in [Some(&named), Some(&other), None] {
        let source = Source::Consent { judged: &judged };
        let late = Commit { account, source, ..commit(judged.id, &second) };
        assert!(
            !db.store.durable().commit_grant(&late).await.unwrap(),
            "it was nobody's when it was judged"
        );
    }
    let read = record(&db, judged.id).await;
    assert_eq!((read.generation(), &read.connection.account), (1, &Some(named)));
    let judged = read.connection;
    let source = Source::Consent { judged: &judged };
    let known = Commit { account: Some(&other), source, ..commit(judged.id, &second) };
    assert!(db.store.durable().commit_grant(&known).await.unwrap());
    assert!(
        db.store.durable().commit_grant(&commit(judged.id, &third)).await.unwrap(),
        "nobody judges"
    );
    assert_eq!(record(&db, judged.id).await.connection.account, Some(other));
}

#[apply(on_both_engines!)]
async fn a_commit_does_not_revive_what_is_being_revoked(db: TestDatabase) {
    let id = held(&db, "avito-main").await.id;
    let judged = record(&db, id).await.connection;
    db.set_state(id, State::Revoking, Some("deleted")).await;
    let second = grant(&db, 2);
    let consented = Commit { source: Source::Consent { judged: &judged }, ..commit(id, &second) };
    assert!(
        !db.store.durable().commit_grant(&consented).await.unwrap(),
        "it would end what is to be revoked"
    );
    assert!(db.store.durable().commit_grant(&commit(id, &second)).await.unwrap());
    let read = record(&db, id).await;
    assert_eq!(read.connection.state, State::Revoking);
    assert_eq!(read.connection.reason.as_deref(), Some("deleted"));
    assert_eq!(read.grant.unwrap().generation(), 2, "there is a new grant to revoke");
    db.set_state(id, State::NeedsConsent, Some("revoked")).await;
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 3))).await.unwrap());
    assert_eq!(record(&db, id).await.connection.state, State::Active);
}

#[apply(on_both_engines!)]
async fn a_failure_is_recorded_by_its_own_attempt_only(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let error = error(&db);
    assert!(claim(&db, id, "one", 0).await.held().is_some());
    let foreign = failure(id, "two", State::NeedsConsent, &error);
    assert!(!db.store.durable().record_failure(&foreign).await.unwrap());
    let stale = Failure { from_generation: 1, ..failure(id, "one", State::NeedsConsent, &error) };
    assert!(!db.store.durable().record_failure(&stale).await.unwrap());
    let read = record(&db, id).await.connection;
    assert_eq!((read.state, read.last_error), (State::Active, None), "nothing has changed");

    let mine = failure(id, "one", State::BackingOff, &error);
    assert!(db.store.durable().record_failure(&mine).await.unwrap());
    let read = record(&db, id).await.connection;
    assert_eq!((read.state, read.reason.as_deref()), (State::BackingOff, Some("a reason")));
    assert_eq!((read.refresh_at, read.failures), (mine.refresh_at, 1));
    assert_eq!(read.last_error, Some(error.clone()));
    assert!(!db.store.durable().record_failure(&mine).await.unwrap(), "once");
    assert!(claim(&db, id, "two", 0).await.held().is_some(), "the lease is free");
}

#[apply(on_both_engines!)]
async fn an_unknown_outcome_keeps_the_attempt(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let error = error(&db);
    let intent = presents(0).to_string();
    assert!(claim(&db, id, "attempt-one", 0).await.held().is_some());
    let mine = failure(id, "attempt-one", State::Uncertain, &error);
    assert!(db.store.durable().record_failure(&mine).await.unwrap());
    let contents = db.contents().await;
    assert!(contents.contains("attempt-one") && contents.contains(&intent));
    assert!(claim(&db, id, "attempt-two", 0).await.held().is_some(), "the lease is free");
    let mine = failure(id, "attempt-two", State::NeedsConsent, &error);
    assert!(db.store.durable().record_failure(&mine).await.unwrap());
    assert!(db.contents().await.contains("attempt-two"), "a verdict names its attempt");
}

#[apply(on_both_engines!)]
async fn a_spent_or_refused_refresh_token_is_never_presented_again(db: TestDatabase) {
    let id = held(&db, "avito-main").await.id;
    // Spent: the grant that it brought has another.
    assert!(claim(&db, id, "one", 1).await.held().is_some());
    assert!(!db.store.is_spent(&presents(1)).await.unwrap());
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
    assert!(db.store.is_spent(&presents(1)).await.unwrap());
    let spent = presents(1);
    assert!(
        db.store.claim(&record(&db, id).await, "two", Some(&spent), LEASE).await.unwrap()
            == Claim::Rejected(ClaimRejected::TokenSpent)
    );
    // Kept: the answer brought no other, or the same again.
    assert!(claim(&db, id, "three", 2).await.held().is_some());
    let third = grant(&db, 3);
    let kept = Commit { refresh_hash: Some(presents(2)), ..commit(id, &third) };
    assert!(db.store.durable().commit_grant(&kept).await.unwrap());
    assert!(!db.store.is_spent(&presents(2)).await.unwrap());
    let kept = presents(2);
    assert!(
        db.store
            .claim(&record(&db, id).await, "four", Some(&kept), LEASE)
            .await
            .unwrap()
            .held()
            .is_some()
    );
    // Refused: whatever state the connection comes to.
    let error = error(&db);
    let refused =
        Failure { from_generation: 3, ..failure(id, "four", State::NeedsConsent, &error) };
    assert!(db.store.durable().record_failure(&refused).await.unwrap());
    db.set_state(id, State::Active, None).await;
    assert!(
        db.store.claim(&record(&db, id).await, "five", Some(&kept), LEASE).await.unwrap()
            == Claim::Rejected(ClaimRejected::TokenSpent)
    );
}

#[apply(on_both_engines!)]
async fn a_postponed_connection_is_not_due_before(db: TestDatabase) {
    let id = held(&db, "avito-main").await.id;
    assert!(claim(&db, id, "one", 1).await.held().is_some());
    db.clock.advance(LEASE);
    assert_eq!(due(&db, 10).await, [id], "its claim was abandoned");
    let later = db.clock.now() + Duration::from_hours(1);
    assert!(db.store.defer_refresh(id, later).await.unwrap());
    assert!(due(&db, 10).await.is_empty());
    assert_eq!(record(&db, id).await.open_attempts, 1, "the attempt stays as evidence");
    db.clock.advance(Duration::from_hours(1));
    assert_eq!(due(&db, 10).await, [id]);
    assert!(!db.store.defer_refresh(ConnectionId::new(), later).await.unwrap());
}

#[apply(on_both_engines!)]
async fn the_claims_of_a_replica_that_died_are_ended(db: TestDatabase) {
    let (one, two) = (held(&db, "avito-one").await.id, held(&db, "avito-two").await.id);
    assert!(claim(&db, one, "mine.1", 1).await.held().is_some());
    assert!(claim(&db, two, "mine2.1", 1).await.held().is_some());
    assert_eq!(db.store.expire_leases_of("mine").await.unwrap(), 1);
    assert_eq!(due(&db, 10).await, [one]);
    assert_eq!(db.store.expire_leases_of("mine").await.unwrap(), 0);
}

#[apply(on_both_engines!)]
async fn attempts_with_an_unknown_end_are_counted(db: TestDatabase) {
    let id = held(&db, "avito-main").await.id;
    assert_eq!(record(&db, id).await.open_attempts, 0);
    assert!(claim(&db, id, "one", 1).await.held().is_some());
    assert_eq!(record(&db, id).await.open_attempts, 1);
    // The process died: nobody recorded an end.
    db.clock.advance(LEASE);
    assert!(claim(&db, id, "two", 1).await.held().is_some());
    assert_eq!(record(&db, id).await.open_attempts, 2);
    let error = error(&db);
    let known = Failure { from_generation: 1, ..failure(id, "two", State::BackingOff, &error) };
    assert!(db.store.durable().record_failure(&known).await.unwrap());
    assert_eq!(record(&db, id).await.open_attempts, 1);
    assert!(db.store.durable().commit_grant(&commit(id, &grant(&db, 2))).await.unwrap());
    assert_eq!(record(&db, id).await.open_attempts, 0);
}

#[apply(on_both_engines!)]
async fn a_failure_does_not_undo_a_state_from_elsewhere(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let error = error(&db);
    assert!(claim(&db, id, "one", 0).await.held().is_some());
    db.set_state(id, State::Revoking, Some("deleted")).await;
    let mine = failure(id, "one", State::BackingOff, &error);
    assert!(db.store.durable().record_failure(&mine).await.unwrap());
    let read = record(&db, id).await.connection;
    assert_eq!((read.state, read.reason.as_deref()), (State::Revoking, Some("deleted")));
}

async fn due_of(db: &TestDatabase, clients: &[Slug], limit: u32) -> Vec<ConnectionId> {
    db.store.due(clients, limit).await.unwrap().into_iter().map(|due| due.id).collect()
}

/// What is due of the one client that the tests' connections have.
async fn due(db: &TestDatabase, limit: u32) -> Vec<ConnectionId> {
    due_of(db, &["avito".parse().unwrap()], limit).await
}

#[apply(on_both_engines!)]
async fn the_most_urgent_comes_first(db: TestDatabase) {
    let now = db.clock.now();
    let (mut made, hour) = (Vec::new(), Duration::from_hours(1));
    for (name, ends_in) in [("late", 3 * hour), ("soon", hour), ("middle", 2 * hour)] {
        let id = stored(&db, name).await.id;
        let first = SealedGrant { expires_at: now + ends_in, ..grant(&db, 1) };
        let due = Commit { refresh_at: Some(now), ..commit(id, &first) };
        assert!(db.store.durable().commit_grant(&due).await.unwrap());
        made.push(id);
    }
    let without = stored(&db, "without-a-grant").await.id;
    let later = stored(&db, "later").await.id;
    let tomorrow = now + Duration::from_hours(24);
    let first = grant(&db, 1);
    let scheduled = Commit { refresh_at: Some(tomorrow), ..commit(later, &first) };
    assert!(db.store.durable().commit_grant(&scheduled).await.unwrap());
    let refused = stored(&db, "refused").await.id;
    db.set_state(refused, State::NeedsConsent, None).await;

    let [late, soon, middle] = made[..] else { panic!("three were made") };
    assert_eq!(due(&db, 10).await, [without, soon, middle, late]);
    assert_eq!(due(&db, 2).await, [without, soon]);
    for id in [late, soon, middle, without] {
        assert!(db.store.delete(id).await.unwrap());
    }
    assert!(due(&db, 10).await.is_empty());
    db.clock.advance(Duration::from_hours(24));
    assert_eq!(due(&db, 10).await, [later]);
}

#[apply(on_both_engines!)]
async fn a_client_that_is_not_ours_holds_nobody_up(db: TestDatabase) {
    let other = |client: &str| Connection {
        client: client.parse().unwrap(),
        ..connection(&db, &format!("of-{client}"))
    };
    // Beginnings and ends of a name are other names.
    for client in ["gone", "avi", "vito", "avito-old"] {
        db.store.create(&other(client)).await.unwrap();
    }
    let ours = [stored(&db, "avito-main").await.id, other("kommo").id];
    let kommo = Connection { id: ours[1], ..other("kommo") };
    db.store.create(&kommo).await.unwrap();
    let clients: [Slug; 2] = ["avito".parse().unwrap(), "kommo".parse().unwrap()];
    assert_eq!(due_of(&db, &clients, 2).await, ours);
    assert_eq!(due_of(&db, &clients[..1], 2).await, ours[..1]);
    assert!(due_of(&db, &[], 2).await.is_empty());
}

#[apply(on_both_engines!)]
async fn an_abandoned_claim_is_due(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let first = grant(&db, 1);
    let unscheduled = Commit { refresh_at: None, ..commit(id, &first) };
    assert!(db.store.durable().commit_grant(&unscheduled).await.unwrap());
    assert!(claim(&db, id, "one", 1).await.held().is_some());
    assert!(due(&db, 10).await.is_empty(), "somebody is at it");
    db.clock.advance(LEASE);
    assert_eq!(due(&db, 10).await, [id]);
}

#[apply(on_both_engines!)]
async fn a_pending_grant_waits_beside_a_live_one(db: TestDatabase) {
    let id = held(&db, "avito-main").await.id;
    let before = record(&db, id).await;
    assert!(db.store.durable().put_pending(id, &pending(&db, "one")).await.unwrap());
    let after = record(&db, id).await;
    assert_eq!(after.connection.state, State::Active);
    assert_eq!(format!("{:?}", after.grant), format!("{:?}", before.grant));
    assert_eq!(after.grant.unwrap().access, before.grant.unwrap().access);
    assert!(after.pending.is_some());
    assert!(db.store.drop_pending_until(id, Timestamp::MAX).await.unwrap());
    assert!(!db.store.drop_pending_until(id, Timestamp::MAX).await.unwrap());
    let dropped = record(&db, id).await;
    assert_eq!(dropped.connection.state, State::Active);
    assert!(dropped.pending.is_none());
}

#[apply(on_both_engines!)]
async fn a_pending_grant_changes_no_other_state(db: TestDatabase) {
    let with_grant = held(&db, "held").await.id;
    let without = stored(&db, "fresh").await.id;
    for (id, state) in [(with_grant, State::PendingConsent), (without, State::Revoking)] {
        db.set_state(id, state, None).await;
        assert!(db.store.durable().put_pending(id, &pending(&db, "one")).await.unwrap());
        assert_eq!(record(&db, id).await.connection.state, state);
        assert!(db.store.drop_pending_until(id, Timestamp::MAX).await.unwrap());
        assert_eq!(record(&db, id).await.connection.state, state);
    }
}

#[apply(on_both_engines!)]
async fn a_first_grant_waits_for_confirmation(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    db.set_state(id, State::PendingConsent, None).await;
    assert!(db.store.durable().put_pending(id, &pending(&db, "one")).await.unwrap());
    let second = pending(&db, "two");
    assert!(db.store.durable().put_pending(id, &second).await.unwrap());
    let read = record(&db, id).await;
    assert_eq!(read.connection.state, State::PendingConfirm);
    assert!(read.grant.is_none());
    let waits = read.pending.unwrap();
    assert_eq!(format!("{waits:?}"), format!("{second:?}"));
    assert_eq!(
        (waits.grant.access, waits.grant.refresh),
        (second.grant.access, second.grant.refresh)
    );
    assert!(db.store.drop_pending_until(id, Timestamp::MAX).await.unwrap());
    assert_eq!(record(&db, id).await.connection.state, State::PendingConsent);
}

#[apply(on_both_engines!)]
async fn a_confirmed_grant_goes_live(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    db.set_state(id, State::PendingConsent, None).await;
    let waits = pending(&db, "one");
    db.store.durable().put_pending(id, &waits).await.unwrap();
    let first = SealedGrant { received_at: waits.grant.received_at, ..grant(&db, 1) };
    let judged = record(&db, id).await.connection;
    let source = Source::Consent { judged: &judged };
    let confirmed = Commit { source, account: waits.account.as_ref(), ..commit(id, &first) };
    assert!(db.store.durable().commit_confirmed(&confirmed).await.unwrap());
    let read = record(&db, id).await;
    assert_eq!(read.connection.state, State::Active);
    assert_eq!(read.connection.account, waits.account);
    assert_eq!(read.grant.unwrap().generation(), 1);
    assert!(read.pending.is_none());
    let again = SealedGrant { slot: GrantSlot::Live { generation: 2 }, ..first };
    assert!(!db.store.durable().commit_confirmed(&commit(id, &again)).await.unwrap(), "once");
}

#[apply(on_both_engines!)]
async fn only_the_grant_that_waits_is_confirmed(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    db.set_state(id, State::PendingConsent, None).await;
    let seen = pending(&db, "one");
    db.store.durable().put_pending(id, &seen).await.unwrap();
    db.clock.advance(Duration::from_secs(1));
    let newer = pending(&db, "two");
    db.store.durable().put_pending(id, &newer).await.unwrap();
    let first = SealedGrant { received_at: seen.grant.received_at, ..grant(&db, 1) };
    assert!(!db.store.durable().commit_confirmed(&commit(id, &first)).await.unwrap());
    let read = record(&db, id).await;
    assert_eq!(read.connection.state, State::PendingConfirm, "all of it was taken back");
    assert!(read.grant.is_none() && read.pending.is_some());

    db.clock.advance(CONFIRM_LIFE);
    let late = SealedGrant { received_at: newer.grant.received_at, ..first };
    assert!(!db.store.durable().commit_confirmed(&commit(id, &late)).await.unwrap());
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_unreachable_for_claims_and_commits() {
    let db = TestDatabase::postgres().await;
    let id = stored(&db, "avito-main").await.id;
    let url = format!("{}&options[default_transaction_read_only]=on", db.plain_url());
    let store = Store::connect(&url.into(), db.clock.clone()).await.unwrap();
    let seen = store.record_by_id(id).await.unwrap().unwrap();
    let claimed = store.claim(&seen, "one", None, LEASE).await;
    assert!(matches!(claimed, Err(StoreError::Unreachable(_))), "{claimed:?}");

    let grant = grant(&db, 1);
    let committed = store.durable().commit_grant(&commit(id, &grant)).await;
    assert!(matches!(committed, Err(StoreError::Unreachable(_))), "{committed:?}");
    assert!(
        db.store.durable().commit_grant(&commit(id, &grant)).await.unwrap(),
        "the same commit lands later"
    );
}
