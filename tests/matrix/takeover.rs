//! The process dies for good, and another replica on the same database goes on when the lease ends.

use std::time::Duration;

use token_broker::failpoint::Point;
use tokio::time::Instant;

use crate::{
    killed_process::{Stop, judge, presentations, unrecoverable},
    report::{is_long, short_or_long},
    rotation_class::Class,
    scenario::Scenario,
    support::database::TestDatabase,
};

/// The time limit of a token request. A lease is 20 s longer.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);

async fn take_over(stop: Stop, class: Class) {
    let database = TestDatabase::postgres().await;
    let count = short_or_long(5, 100);
    let (scenario, mut dying) = Scenario::start(database, class, count, TOKEN_TIMEOUT).await;
    let views = scenario.views(&dying).await;
    dying.stop().await;
    let before = scenario.oracle();
    stop.reach(&scenario, &mut dying).await;
    dying.kill().await;
    let died = Instant::now();
    let unrecoverable = unrecoverable(&before, &scenario.oracle(), stop);
    scenario.provider().clear_faults();

    let mut heir = scenario.replica_process().await;
    let settled = scenario.settled(&heir, &views, died).await;
    let presentations = presentations(&before, &scenario.oracle());
    let (lost, row) = judge(&scenario, &settled, &unrecoverable, &presentations);
    row.report(&format!("SIGKILL, {stop}, {}, taken over by another replica", class.name));
    scenario.assert_usable(&heir, &lost).await;
    scenario.assert_served(&heir, &before).await;
    heir.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_goes_on() {
    take_over(Stop::Unanswered, Class::GRACE_NEWEST).await;
    if is_long() {
        take_over(Stop::At(Point::Claimed), Class::GRACE_NEWEST).await;
        take_over(Stop::At(Point::Claimed), Class::SINGLE_USE).await;
        take_over(Stop::Unanswered, Class::SINGLE_USE).await;
    }
}
