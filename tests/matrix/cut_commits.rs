//! The database goes away between the provider's answer and the commit, or its word about the
//! commit does: nothing is lost, and nothing happens twice.

use std::time::Duration;

use token_broker::{
    failpoint::Point,
    simulator::{Fault, Simulated},
};
use tokio::time::Instant;

use crate::{
    checks::{UNPACED, generation, lost, posts, replays},
    cuttable_connection::{CuttableConnection, Then},
    database_outage::DatabaseOutage,
    held_points::HeldPoints,
    report::{Row, short_or_long},
    support::{
        broker::{RunOptions, TestBroker},
        database::{TestDatabase, apply, on_both_engines},
        wait::until,
    },
};

/// The number of refreshes that each cut hits.
const AT_ONCE: usize = 10;

async fn start(database: TestDatabase, holds: &HeldPoints) -> TestBroker {
    let options = RunOptions { failpoints: holds.failpoints(), ..RunOptions::default() };
    TestBroker::start_with_options(database, UNPACED, options).await
}

#[apply(on_both_engines!)]
async fn an_answer_outlives_the_database(mut database: TestDatabase) {
    let mut outage = DatabaseOutage::before(&mut database).await;
    let holds = HeldPoints::default();
    let broker = start(database, &holds).await;
    let names = broker.consented(AT_ONCE).await;
    let mut recovery = Vec::new();
    let cuts = short_or_long(2, 20);
    for cut in 0..cuts {
        let next = i64::try_from(cut).unwrap() + 2;
        if cut % 2 == 0 {
            in_the_spool(&broker, &holds).await;
        } else {
            before_the_answer(&broker).await;
        }
        outage.begin().await;
        holds.let_go();
        for name in &names {
            until("what is on the disk is served", async || {
                broker.token(name).await.json()["generation"] == next
            })
            .await;
        }
        outage.end().await;
        let back = Instant::now();
        broker.idle().await;
        recovery.extend([back.elapsed(); AT_ONCE]);
        for name in &names {
            assert_eq!(generation(broker.broker(), name).await, next, "{name}");
            assert!(!broker.has_fallback(name).await, "{name}");
        }
        assert_eq!(broker.spool_files(), 0);
        assert_eq!(replays(&broker), 0);
    }
    let slowest = recovery.iter().max().unwrap();
    assert!(*slowest < Duration::from_secs(10), "{slowest:?}");
    let lost = lost(&broker, &names).await;
    assert_eq!(lost, 0);
    let replays = replays(&broker);
    Row { runs: cuts * AT_ONCE, lost, replays, recovery, ..Row::default() }
        .report("database cut between answer and commit");
    broker.stop().await;
}

/// All are due, and their grants are on the disk.
async fn in_the_spool(broker: &TestBroker, holds: &HeldPoints) {
    holds.hold(Point::Spooled);
    broker.make_due().await;
    assert_eq!(broker.broker().start_due(100).await.unwrap(), AT_ONCE);
    holds.until(AT_ONCE).await;
}

/// All are due, the provider has acted, and its answers come a moment later.
async fn before_the_answer(broker: &TestBroker) {
    broker.simulator(Simulated::Avito).fault(&Fault::Slow { milliseconds: 700 }, AT_ONCE);
    broker.make_due().await;
    let before = posts(broker);
    assert_eq!(broker.broker().start_due(100).await.unwrap(), AT_ONCE);
    until("all are sent", async || posts(broker) - before == AT_ONCE as u64).await;
}

/// A broker with one connection whose line to the database the test holds.
async fn on_a_line(holds: &HeldPoints) -> (CuttableConnection, TestBroker) {
    let mut database = TestDatabase::postgres().await;
    let line = CuttableConnection::before(&mut database).await;
    let broker = start(database, holds).await;
    broker.connect("avito-0", Simulated::Avito).await;
    (line, broker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_happened_once() {
    let fault = "answer to the commit of a grant lost";
    Box::pin(commits_are_swallowed(fault, Then::Close, short_or_long(20, 200))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_never_answered_happened_once() {
    let fault = "commit of a grant never answered";
    Box::pin(commits_are_swallowed(fault, Then::FallSilent, short_or_long(1, 5))).await;
}

async fn commits_are_swallowed(fault: &str, then: Then, runs: usize) {
    let holds = HeldPoints::default();
    let (line, broker) = on_a_line(&holds).await;
    let mut recovery = Vec::new();
    for run in 0..runs {
        // The next COMMIT shall be nobody else's.
        broker.idle().await;
        holds.hold(Point::Spooled);
        broker.make_due().await;
        assert_eq!(broker.broker().start_due(100).await.unwrap(), 1);
        holds.until(1).await;
        line.swallow_commit(then);
        holds.let_go();
        let gone = Instant::now();
        broker.idle().await;
        recovery.push(gone.elapsed());
        assert!(line.has_swallowed());
        let next = i64::try_from(run).unwrap() + 2;
        assert_eq!(generation(broker.broker(), "avito-0").await, next);
        assert_eq!(broker.token("avito-0").await.json()["generation"], next);
        assert!(!broker.has_fallback("avito-0").await);
        assert_eq!(broker.spool_files(), 0);
    }
    let replays = replays(&broker);
    assert_eq!(replays, 0);
    let lost = lost(&broker, &["avito-0".to_owned()]).await;
    assert_eq!(lost, 0);
    Row { runs, lost, replays, recovery, ..Row::default() }.report(fault);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_is_lost_is_given_back() {
    let holds = HeldPoints::default();
    let (line, broker) = on_a_line(&holds).await;
    let names = ["avito-0".to_owned()];
    let runs = short_or_long(5, 50);
    for run in 0..runs {
        let before = posts(&broker);
        // The next COMMIT shall be nobody else's.
        broker.idle().await;
        holds.hold(Point::Unclaimed);
        broker.make_due().await;
        assert_eq!(broker.broker().start_due(100).await.unwrap(), 1);
        holds.until(1).await;
        line.swallow_commit(Then::Close);
        holds.let_go();
        broker.idle().await;
        assert!(line.has_swallowed());
        assert_eq!(posts(&broker), before, "a claim that may not stand is not used");
        broker.all_served(&names).await;
        // Nothing was sent, and that is known.
        let record = broker.broker().store().record("avito-0").await.unwrap().unwrap();
        assert_eq!((record.open_attempts, record.crashes, record.claimed_at), (0, 0, None));
        assert_eq!(broker.refresh_due().await, 1);
        let next = i64::try_from(run).unwrap() + 2;
        assert_eq!(generation(broker.broker(), "avito-0").await, next);
    }
    let replays = replays(&broker);
    assert_eq!(replays, 0);
    let lost = lost(&broker, &names).await;
    assert_eq!(lost, 0);
    Row { runs, lost, replays, ..Row::default() }.report("answer to the commit of a claim lost");
    broker.stop().await;
}
