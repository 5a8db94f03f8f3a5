//! The real process is stopped (SIGSTOP) with its requests under way, another replica goes on when
//! the leases end, and then it is woken up.

use std::time::Duration;

use token_broker::simulator::Fault;
use tokio::time::Instant;

use crate::{
    killed_process::{accesses, presentations},
    report::{Row, short_or_long},
    rotation_class::Class,
    scenario::{Scenario, View},
    support::{database::TestDatabase, wait::until},
};

/// The time limit of a token request. A lease is 20 s longer.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The answers arrive while the process stands still.
const SLOW: Fault = Fault::Slow { milliseconds: 2_000 };

/// Stops a replica with its requests under way, and wakes it after another has gone on. Nothing is
/// beyond saving: every answer lies in a socket of the stopped one.
async fn stop_and_wake(class: Class) -> Row {
    let count = short_or_long(5, 100);
    let database = TestDatabase::postgres().await;
    let (scenario, mut stopped) = Scenario::start(database, class, count, TOKEN_TIMEOUT).await;
    let views = scenario.views(&stopped).await;
    stopped.stop().await;
    let before = scenario.oracle();
    scenario.provider().fault(&SLOW, count);
    scenario.make_due().await;
    stopped.start_held(None);
    let issued = || accesses(&scenario.oracle()) == accesses(&before) + count;
    until("the provider has processed all requests", async || issued()).await;
    stopped.program.signal("STOP");
    let began = Instant::now();

    let mut heir = scenario.replica_process().await;
    let settled = scenario.settled(&heir, &views, began).await;
    stopped.program.signal("CONT");
    // It finishes what is under way before it ends.
    stopped.stop().await;
    let presentations = presentations(&before, &scenario.oracle());
    // The heir hears of what was committed late, at its next look at the latest.
    until("nobody is lost", async || !scenario.views(&heir).await.values().any(View::is_lost))
        .await;
    let after = scenario.views(&heir).await;
    let lost: Vec<_> = after.values().filter(|view| view.is_lost()).collect();
    for view in &lost {
        assert_eq!(view.reason.as_deref(), Some("lost_in_rotation"), "{view:?}");
    }
    heir.stop().await;
    Row {
        runs: count,
        lost: lost.len(),
        unrecoverable: 0,
        replays: presentations.values().map(|times| times - 1).sum(),
        recovery: settled.values().map(|(_, took)| *took).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_use() {
    let row = stop_and_wake(Class::SINGLE_USE).await;
    assert_eq!(row.lost, 0, "every answer lay in a socket");
    row.report("SIGSTOP past the lease, requests under way, single use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grace_newest() {
    let row = stop_and_wake(Class::GRACE_NEWEST).await;
    assert_eq!(row.lost, 0);
    row.report("SIGSTOP past the lease, requests under way, grace, newest lives");
}
