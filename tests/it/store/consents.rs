use std::time::Duration;

use futures_util::future::join_all;
use sqlx::{PgConnection, Row as _, postgres::PgListener};
use token_broker::{
    domain::{
        caller::{Holder, Operator, new_key},
        connection::{ConnectionId, State},
        consent::{
            CONSENT_LIFE, Consent, ConsentLink, EXCHANGE_LIFE, KeyExchange, LINK_LIFE, LinkId,
            Outcome,
        },
        slug::Slug,
    },
    seal::{Sealed, secret::Digest},
    store::{LinkInserted, Purged},
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{pending, stored};
use crate::support::database::{TestDatabase, apply, on_both_engines};

fn link(db: &TestDatabase, connection: ConnectionId) -> ConsentLink {
    ConsentLink {
        id: LinkId(Uuid::now_v7()),
        connection,
        requested_by: "operator alice".parse().unwrap(),
        scopes: vec!["messenger:read".to_owned()],
        expected_account: Some("1234".to_owned()),
        return_to: Some("https://shop.example/done".parse().unwrap()),
        own_browser: true,
        created_at: db.clock.now(),
        expires_at: db.clock.now() + LINK_LIFE,
        browser: None,
        outcome: None,
        account: None,
        spent_at: None,
    }
}

fn consent(db: &TestDatabase, link: &ConsentLink) -> Consent {
    Consent {
        link: link.id,
        connection: link.connection,
        client: client(),
        redirect_uri: "https://broker.example/callback/avito".to_owned(),
        token_url: "https://api.avito.ru/token".to_owned(),
        scopes: link.scopes.clone(),
        verifier: Some(Sealed::from_stored("v1.k1.sealed-verifier".to_owned())),
        link_secret: Sealed::from_stored("v1.k1.sealed-link-secret".to_owned()),
        started_at: db.clock.now(),
        expires_at: db.clock.now() + CONSENT_LIFE,
    }
}

fn client() -> Slug {
    "avito".parse().unwrap()
}

fn digest(text: &str) -> Digest {
    Digest::of_bytes(text.as_bytes())
}

/// Keeps a link of the operator alice, who is made where she is not known yet.
async fn insert(db: &TestDatabase, link: &ConsentLink, secret: &str) -> LinkInserted {
    let name = &link.requested_by.name;
    let alice = Operator { name: name.clone(), created_at: db.clock.now() };
    let (_, key) = new_key(Holder::Operator, name.clone(), db.clock.now(), None);
    let _ = db.store.create_operator(&alice, &key).await;
    db.store.insert_link(link, &digest(secret), 20).await.unwrap()
}

/// A link that is bound to the browser `mine`, with the secret `link`.
async fn opened(db: &TestDatabase, connection: ConnectionId) -> ConsentLink {
    let link = link(db, connection);
    assert_eq!(insert(db, &link, "link").await, LinkInserted::Kept);
    assert!(db.store.bind_browser(link.id, &digest("mine")).await.unwrap());
    link
}

async fn start(db: &TestDatabase, link: &ConsentLink, state: &str, max_live: i64) -> bool {
    let consent = consent(db, link);
    db.store.start_consent(&consent, &digest(state), &digest("mine"), max_live).await.unwrap()
}

async fn take(db: &TestDatabase, state: &str, browser: &str, client: &Slug) -> Option<Consent> {
    db.store.take_consent(&digest(state), &digest(browser), client).await.unwrap()
}

/// A consent that is under way with the `state` of that name, from the browser `mine`.
pub(super) async fn started(db: &TestDatabase, connection: ConnectionId) -> ConsentLink {
    let link = opened(db, connection).await;
    assert!(start(db, &link, "state", 5).await);
    link
}

#[apply(on_both_engines!)]
async fn a_link_reads_back_as_it_was_made(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let full = link(&db, id);
    let plain = ConsentLink {
        expected_account: None,
        return_to: None,
        own_browser: false,
        ..link(&db, id)
    };
    for (secret, made) in [("one", full), ("two", plain)] {
        assert_eq!(insert(&db, &made, secret).await, LinkInserted::Kept);
        let read = db.store.link(&digest(secret)).await.unwrap().unwrap();
        assert_eq!(format!("{read:?}"), format!("{made:?}"));
    }
    assert!(db.store.link(&digest("three")).await.unwrap().is_none());
    assert!(db.store.insert_link(&link(&db, ConnectionId::new()), &digest("x"), 20).await.is_err());
}

#[apply(on_both_engines!)]
async fn a_link_ends_with_whoever_asked_for_it(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let theirs = started(&db, id).await;
    let of =
        |requester: &str| ConsentLink { requested_by: requester.parse().unwrap(), ..link(&db, id) };
    assert_eq!(insert(&db, &of("operator alic"), "another").await, LinkInserted::Kept);
    assert_eq!(insert(&db, &of("operator alice"), "spent").await, LinkInserted::Kept);
    let spent = db.store.link(&digest("spent")).await.unwrap().unwrap().id;
    db.store
        .durable()
        .finish_link(spent, &digest("spent"), &Outcome::Connected.into())
        .await
        .unwrap();

    assert!(db.store.delete_operator(&theirs.requested_by.name).await.unwrap());
    assert!(db.store.link(&digest("link")).await.unwrap().is_none());
    assert!(take(&db, "state", "mine", &client()).await.is_none(), "what was begun with it");
    assert!(db.store.link(&digest("spent")).await.unwrap().is_some(), "its page says how it went");
    assert!(db.store.link(&digest("another")).await.unwrap().is_some());
    for gone in ["operator alice", "service alice", "service alic"] {
        let late = db.store.insert_link(&of(gone), &digest("late"), 20).await.unwrap();
        assert_eq!(late, LinkInserted::Orphan, "{gone}");
    }
}

#[apply(on_both_engines!)]
async fn the_first_browser_keeps_the_link(db: TestDatabase) {
    let link = opened(&db, stored(&db, "avito-main").await.id).await;
    assert!(db.store.bind_browser(link.id, &digest("mine")).await.unwrap());
    assert!(!db.store.bind_browser(link.id, &digest("theirs")).await.unwrap());
    let read = db.store.link(&digest("link")).await.unwrap().unwrap();
    assert_eq!(read.browser, Some(digest("mine")));
}

#[apply(on_both_engines!)]
async fn a_consent_is_taken_by_its_browser_once(db: TestDatabase) {
    let link = started(&db, stored(&db, "avito-main").await.id).await;
    let other: Slug = "amocrm".parse().unwrap();
    assert!(take(&db, "state", "theirs", &client()).await.is_none());
    assert!(take(&db, "state", "mine", &other).await.is_none());
    assert!(take(&db, "another", "mine", &client()).await.is_none());
    let taken = take(&db, "state", "mine", &client()).await.expect("it was left in place");
    assert_eq!(
        format!("{taken:?}"),
        format!(
            "{:?}",
            Consent {
                started_at: taken.started_at,
                expires_at: taken.expires_at,
                ..consent(&db, &link)
            }
        )
    );
    assert!(take(&db, "state", "mine", &client()).await.is_none());
}

#[apply(on_both_engines!)]
async fn of_many_who_take_one_consent_one_gets_it(db: TestDatabase) {
    started(&db, stored(&db, "avito-main").await.id).await;
    let client = client();
    let attempts = (0..20).map(|_| take(&db, "state", "mine", &client));
    let taken = futures_util::future::join_all(attempts).await;
    assert_eq!(taken.iter().flatten().count(), 1);
}

#[apply(on_both_engines!)]
async fn a_consent_ends(db: TestDatabase) {
    started(&db, stored(&db, "avito-main").await.id).await;
    db.clock.advance(CONSENT_LIFE);
    assert!(take(&db, "state", "mine", &client()).await.is_none());
}

#[apply(on_both_engines!)]
async fn a_link_has_few_attempts_at_once(db: TestDatabase) {
    let link = opened(&db, stored(&db, "avito-main").await.id).await;
    assert!(start(&db, &link, "one", 2).await);
    assert!(start(&db, &link, "two", 2).await);
    assert!(!start(&db, &link, "three", 2).await);
    take(&db, "one", "mine", &client()).await.unwrap();
    assert!(start(&db, &link, "four", 2).await, "one that came back makes room");
    db.clock.advance(CONSENT_LIFE);
    assert!(start(&db, &link, "five", 1).await, "those that ended make room");
}

#[apply(on_both_engines!)]
async fn attempts_at_the_same_time_are_counted_one_by_one(db: TestDatabase) {
    let link = opened(&db, stored(&db, "avito-main").await.id).await;
    let states: Vec<_> = (0..12).map(|index| index.to_string()).collect();
    let starts = states.iter().map(|state| start(&db, &link, state, 5));
    let started = futures_util::future::join_all(starts).await;
    assert_eq!(started.iter().filter(|started| **started).count(), 5);
}

#[apply(on_both_engines!)]
async fn an_ended_or_foreign_link_starts_nothing(db: TestDatabase) {
    let link = opened(&db, stored(&db, "avito-main").await.id).await;
    let consent = consent(&db, &link);
    let theirs = digest("theirs");
    assert!(!db.store.start_consent(&consent, &digest("state"), &theirs, 5).await.unwrap());
    db.clock.advance(LINK_LIFE);
    assert!(!start(&db, &link, "state", 5).await);
    assert!(db.store.link(&digest("link")).await.unwrap().is_some(), "its page can still say so");
}

#[apply(on_both_engines!)]
async fn a_spent_link_starts_and_finishes_nothing(db: TestDatabase) {
    let link = started(&db, stored(&db, "avito-main").await.id).await;
    assert!(start(&db, &link, "other tab", 5).await);
    db.store.durable().finish_link(link.id, &digest("one"), &Outcome::Denied.into()).await.unwrap();
    let read = db.store.link(&digest("link")).await.unwrap().unwrap();
    assert_eq!((read.outcome, read.spent_at), (Some(Outcome::Denied), None));
    assert!(start(&db, &link, "again", 5).await, "denial leads back to the page");

    db.store
        .durable()
        .finish_link(link.id, &digest("one"), &Outcome::Connected.into())
        .await
        .unwrap();
    let read = db.store.link(&digest("link")).await.unwrap().unwrap();
    assert_eq!(read.outcome, Some(Outcome::Connected));
    assert!(read.spent_at.is_some());
    db.store
        .durable()
        .finish_link(link.id, &digest("again"), &Outcome::Denied.into())
        .await
        .unwrap();
    let late = db.store.link(&digest("link")).await.unwrap().unwrap();
    assert_eq!(late.outcome, read.outcome, "what fails later is of no consequence");
    assert!(!start(&db, &link, "once more", 5).await);
    assert!(take(&db, "other tab", "mine", &client()).await.is_none());

    db.clock.advance(Duration::from_mins(1));
    db.store
        .durable()
        .finish_link(link.id, &digest("one"), &Outcome::Connected.into())
        .await
        .unwrap();
    let again = db.store.link(&digest("link")).await.unwrap().unwrap();
    assert_eq!(again.spent_at, read.spent_at);
}

#[apply(on_both_engines!)]
async fn what_a_taken_attempt_may_bring_keeps_its_connection(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let link = opened(&db, id).await;
    for state in ["one", "two", "three"] {
        assert!(start(&db, &link, state, 5).await);
    }
    let take = async |state: &str| take(&db, state, "mine", &client()).await.unwrap();
    take("one").await;
    take("two").await;
    let finish = async |state: &str| {
        db.store
            .durable()
            .finish_link(link.id, &digest(state), &Outcome::Denied.into())
            .await
            .unwrap();
    };
    finish("one").await;
    assert!(!db.store.delete_ungranted(id).await.unwrap(), "the other one is under way");
    finish("two").await;
    take("three").await;
    db.clock.advance(EXCHANGE_LIFE / 2);
    assert!(!db.store.delete_ungranted(id).await.unwrap());
    // A crash has cut it off.
    db.clock.advance(EXCHANGE_LIFE / 2);
    db.store.purge_expired().await.unwrap();
    assert_eq!(db.number("SELECT count(*) FROM code_exchanges").await, 0);
    assert!(db.store.delete_ungranted(id).await.unwrap());
}

fn exchange(db: &TestDatabase, connection: ConnectionId) -> KeyExchange {
    KeyExchange {
        id: Uuid::now_v7(),
        connection,
        client: client(),
        account_host: "flowers.amocrm.ru".to_owned(),
        requested_at: db.clock.now(),
        expires_at: db.clock.now() + Duration::from_mins(20),
    }
}

#[apply(on_both_engines!)]
async fn an_exchange_is_taken_once_by_its_account(db: TestDatabase) {
    let id = stored(&db, "amocrm-main").await.id;
    let take = async |client: &str, host: &str| {
        let pending = db.store.try_exchange(&client.parse().unwrap(), host, 1).await.unwrap()?;
        let ended = async || db.store.end_exchange(pending.id).await.unwrap();
        assert!(ended().await && !ended().await, "once and for good");
        Some(pending)
    };
    let older = exchange(&db, id);
    db.clock.advance(Duration::from_secs(1));
    let newer = exchange(&db, id);
    db.store.insert_exchange(&newer).await.unwrap();
    db.store.insert_exchange(&older).await.unwrap();
    assert!(take("avito", "others.amocrm.ru").await.is_none());
    assert!(take("kommo", "flowers.amocrm.ru").await.is_none());
    let taken = take("avito", "flowers.amocrm.ru").await.unwrap();
    assert_eq!(format!("{taken:?}"), format!("{newer:?}"));
    db.clock.advance(Duration::from_mins(20));
    assert!(take("avito", "flowers.amocrm.ru").await.is_none(), "the older one has ended");
}

#[apply(on_both_engines!)]
async fn an_exchange_is_tried_a_few_times(db: TestDatabase) {
    let id = stored(&db, "amocrm-main").await.id;
    let attempt = async || {
        let tried = db.store.try_exchange(&client(), "flowers.amocrm.ru", 5).await;
        tried.unwrap().map(|tried| tried.id)
    };
    let first = exchange(&db, id);
    db.store.insert_exchange(&first).await.unwrap();
    assert_eq!(attempt().await, Some(first.id));
    let tried = join_all((0..8).map(|_| attempt())).await;
    assert_eq!(tried.into_iter().flatten().count(), 4, "all of those at once are counted");
    // Whoever asks anew starts anew, and what was given up stays given up.
    db.clock.advance(Duration::from_secs(1));
    let next = exchange(&db, id);
    db.store.insert_exchange(&next).await.unwrap();
    for expected in [Some(next.id); 5].into_iter().chain([None]) {
        assert_eq!(attempt().await, expected);
    }
}

#[apply(on_both_engines!)]
async fn what_has_ended_is_forgotten(db: TestDatabase) {
    let connection = stored(&db, "avito-main").await;
    db.set_state(connection.id, State::PendingConsent, None).await;
    started(&db, connection.id).await;
    db.store.insert_exchange(&exchange(&db, connection.id)).await.unwrap();
    db.store.durable().put_pending(connection.id, &pending(&db, "one")).await.unwrap();
    assert_eq!(db.store.purge_expired().await.unwrap(), Purged::default());

    db.clock.advance(Duration::from_hours(1));
    let purged = db.store.purge_expired().await.unwrap();
    assert_eq!(
        purged,
        Purged { consents: 1, pending_grants: 1, exchanges: 1, ..Purged::default() }
    );
    let record = db.store.record_by_id(connection.id).await.unwrap().unwrap();
    assert!(record.pending.is_none());
    assert_eq!(record.connection.state, State::PendingConsent);

    db.clock.advance(LINK_LIFE);
    assert_eq!(db.store.purge_expired().await.unwrap(), Purged::default());
    db.clock.advance(LINK_LIFE);
    assert_eq!(db.store.purge_expired().await.unwrap(), Purged { links: 1, ..Purged::default() });
    assert!(db.store.link(&digest("link")).await.unwrap().is_none());
}

/// Waits until so many sessions wait for what this one holds, or for one that does.
async fn held_up(held: &mut PgConnection, count: i64) {
    let sql = "WITH waiting AS (SELECT pid FROM pg_stat_activity
            WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))
        SELECT count(*) FROM pg_stat_activity WHERE pid IN (SELECT pid FROM waiting)
            OR pg_blocking_pids(pid) && (SELECT array_agg(pid) FROM waiting)";
    while sqlx::raw_sql(sql).fetch_one(&mut *held).await.unwrap().get::<i64, _>(0) < count {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_press_and_a_deletion_take_turns_on_postgres() {
    let db = TestDatabase::postgres().await;
    let id = stored(&db, "avito-main").await.id;
    let link = opened(&db, id).await;
    let tasks = TaskTracker::new();
    let mut held = db.hold("LOCK TABLE consents IN ACCESS EXCLUSIVE MODE").await;
    let (store, consent) = (db.store.clone(), consent(&db, &link));
    let press = tasks.spawn(async move {
        store.start_consent(&consent, &digest("one"), &digest("mine"), 5).await
    });
    held_up(&mut held, 1).await;
    let store = db.store.clone();
    let deletion = tasks.spawn(async move { store.delete_ungranted(id).await });
    held_up(&mut held, 2).await;
    drop(held);
    assert!(press.await.unwrap().unwrap() && deletion.await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_consent_and_of_its_connection_take_turns_on_postgres() {
    let db = TestDatabase::postgres().await;
    let id = stored(&db, "avito-main").await.id;
    let link = started(&db, id).await;
    let tasks = TaskTracker::new();
    // Opens the connection that the end needs: a lock is waited for no longer than a second.
    db.store.durable().end_code_exchange(&digest("nothing")).await.unwrap();
    let mut held = db.hold("SELECT 1 FROM consents FOR UPDATE").await;
    let store = db.store.clone();
    let deletion = tasks.spawn(async move { store.begin_deletion(id).await });
    held_up(&mut held, 1).await;
    let store = db.store.clone();
    let end = tasks.spawn(async move {
        store.durable().finish_link(link.id, &digest("state"), &Outcome::Connected.into()).await
    });
    held_up(&mut held, 2).await;
    drop(held);
    assert!(deletion.await.unwrap().unwrap());
    end.await.unwrap().unwrap();
}

/// A link, a press, a callback and a code exchange change nothing that readers see: no replica is
/// woken.
#[tokio::test]
async fn a_consent_under_way_notifies_nobody() {
    let db = TestDatabase::postgres().await;
    let id = stored(&db, "avito-main").await.id;
    let first = link(&db, id);
    assert_eq!(insert(&db, &first, "first").await, LinkInserted::Kept);
    let mut session = db.session().await;
    let channel = "SELECT 'token_broker_' || md5(current_schema()) AS channel";
    let channel: String = sqlx::query(channel).fetch_one(&mut session).await.unwrap().get(0);
    let mut listener = PgListener::connect(db.plain_url()).await.unwrap();
    listener.listen(&channel).await.unwrap();

    let link = link(&db, id);
    let kept = db.store.insert_link(&link, &digest("link"), 20).await.unwrap();
    assert_eq!(kept, LinkInserted::Kept);
    assert!(db.store.bind_browser(link.id, &digest("mine")).await.unwrap());
    let consent = consent(&db, &link);
    let state = digest("state");
    assert!(db.store.start_consent(&consent, &state, &digest("mine"), 5).await.unwrap());
    let taken = db.store.take_consent(&state, &digest("mine"), &client()).await.unwrap();
    assert!(taken.is_some());
    db.store.begin_code_exchange(&digest("code"), id).await.unwrap();
    db.store.durable().end_code_exchange(&digest("code")).await.unwrap();

    // Notifications arrive in order: the first one is ours, unless a step above has sent one.
    let ours = "SELECT pg_notify($1, 'ours')";
    sqlx::query(ours).bind(&channel).execute(&mut session).await.unwrap();
    assert_eq!(listener.recv().await.unwrap().payload(), "ours");
}
