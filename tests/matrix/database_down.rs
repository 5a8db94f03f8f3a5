//! The database is away for a while: what lives is served, nothing is begun, and the rest follows
//! when it is back.

use std::time::Duration;

use token_broker::simulator::Simulated;
use tokio::time::{Instant, sleep};

use crate::{
    checks::{UNPACED, generation, lost, posts, replays},
    cuttable_connection::CuttableConnection,
    reader_load::{Load, Target},
    report::{Row, is_long, short_or_long},
    support::{
        broker::{RunOptions, TestBroker},
        database::TestDatabase,
        server::Server,
        wait::until,
    },
};

/// The time after its return within which refreshes must be made again.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// The same where nothing says that it was away: what was asked by then must be given up first.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// All become due when the database is already away.
const DUE_SOON: &str = "UPDATE connections SET refresh_at = (SELECT now_ms FROM clock) + 1500";

/// A broker that refreshes by itself, as in production.
async fn start(database: TestDatabase) -> TestBroker {
    let options = RunOptions { background: true, ..RunOptions::default() };
    TestBroker::start_with_options(database, UNPACED, options).await
}

fn load(broker: &TestBroker, names: &[String]) -> Load {
    let target = Target::new(broker);
    Load::start(vec![target], names.to_vec(), 200)
}

fn outage() -> Duration {
    Duration::from_secs(if is_long() { 60 } else { 4 })
}

/// Asks nothing of the provider while the database is away, and everything soon after.
async fn passes(
    fault: &str,
    broker: TestBroker,
    names: Vec<String>,
    begin: impl FnOnce(),
    end: impl FnOnce(),
    within: Duration,
) {
    let load = load(&broker, &names);
    broker.execute(DUE_SOON).await;
    begin();
    let before = posts(&broker);
    sleep(outage()).await;
    assert_eq!(posts(&broker), before, "nothing is begun without the database");

    let back = Instant::now();
    end();
    until("refreshes are made again", async || posts(&broker) > before).await;
    let first = back.elapsed();
    let all = before + names.len() as u64;
    until("all are refreshed", async || posts(&broker) >= all).await;
    let recovery = vec![first, back.elapsed()];
    let (reads, failed) = load.end().await;
    assert!(failed.is_empty(), "{} of {reads} reads: {}", failed.len(), failed[0]);
    broker.idle().await;
    for name in &names {
        assert_eq!(generation(broker.broker(), name).await, 2, "{name}");
    }
    assert!(first < within, "{first:?}");
    let replays = replays(&broker);
    assert_eq!((posts(&broker), replays), (all, 0));
    let lost = lost(&broker, &names).await;
    assert_eq!(lost, 0);
    Row { runs: names.len(), lost, replays, recovery, ..Row::default() }
        .report(&format!("{fault} {} s, {reads} reads", outage().as_secs()));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_is_not_noticed_by_readers() {
    let mut server = Server::start();
    let broker = start(TestDatabase::postgres_at(server.url()).await).await;
    let names = broker.consented(short_or_long(50, 1_000)).await;
    let server = std::cell::RefCell::new(&mut server);
    let (kill, start) = (|| server.borrow_mut().kill(), || server.borrow_mut().start_again());
    passes("database killed for", broker, names, kill, start, BACK_WITHIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_falls_silent_is_not_noticed_by_readers() {
    let mut database = TestDatabase::postgres().await;
    let line = CuttableConnection::before(&mut database).await;
    let broker = start(database).await;
    let names = broker.consented(short_or_long(50, 1_000)).await;
    let (silence, mend) = (|| line.silence(), || line.mend());
    passes("database silent for", broker, names, silence, mend, HEARD_WITHIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_under_way_when_the_database_is_killed_is_stored() {
    let mut server = Server::start();
    let broker = start(TestDatabase::postgres_at(server.url()).await).await;
    let names = broker.consented(10).await;
    let slow = token_broker::simulator::Fault::Slow { milliseconds: 1_000 };
    broker.simulator(Simulated::Avito).fault(&slow, 10);
    let before = posts(&broker);
    broker.make_due().await;
    until("all are sent", async || posts(&broker) - before == 10).await;
    server.kill();
    for name in &names {
        until("what is on the disk is served", async || {
            broker.token(name).await.json()["generation"] == 2
        })
        .await;
    }
    server.start_again();
    let back = Instant::now();
    let mut recovery = Vec::new();
    for name in &names {
        let store = broker.broker().store();
        until("it is stored", async || {
            store.record(name).await.is_ok_and(|record| record.unwrap().generation() == 2)
        })
        .await;
        recovery.push(back.elapsed());
    }
    broker.idle().await;
    let replays = replays(&broker);
    assert_eq!(replays, 0);
    let lost = lost(&broker, &names).await;
    assert_eq!(lost, 0);
    Row { runs: names.len(), lost, replays, recovery, ..Row::default() }
        .report("database killed before the answer");
    broker.stop().await;
}
