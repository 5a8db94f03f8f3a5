//! The holder of a lease is held until the lease has expired and another replica has gone on; then
//! it goes on, too.

use std::time::Duration;

use token_broker::failpoint::Point;
use tokio::time::Instant;

use crate::{
    held_points::HeldPoints,
    killed_process::presentations,
    report::{Row, short_or_long},
    rotation_class::Class,
    scenario::Scenario,
    support::{broker::RunOptions, database::TestDatabase},
};

/// The time limit of a token request: longer than it is held here.
const LONG_TIMEOUT: Duration = Duration::from_secs(30);

/// The same where the lease has to end within the grace: it is 20 s longer than the timeout, and 50 s
/// where a second presentation is dangerous.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longer than any lease of these tests and shorter than the grace.
const PAUSE: Duration = Duration::from_secs(55);

/// Pauses the refresh of every connection of the class at a point; the row has what came of it.
async fn pause_at(point: Point, class: Class, timeout: Duration) -> Row {
    let count = short_or_long(5, 100);
    let database = TestDatabase::postgres().await;
    let (scenario, mut replica) = Scenario::start(database, class, count, timeout).await;
    replica.stop().await;
    let before = scenario.oracle();
    scenario.make_due().await;
    let holds = HeldPoints::default();
    holds.hold(point);
    let held = RunOptions { failpoints: holds.failpoints(), ..RunOptions::default() };
    let holder = scenario.replica_with(&scenario.key_file(), held).await;
    let heir = scenario.replica().await;
    let limit = u32::try_from(count).unwrap();
    assert_eq!(holder.broker().start_due(limit).await.unwrap(), count);
    holds.until(count).await;

    scenario.clock.advance(PAUSE);
    heir.broker().refresh_due(limit).await.unwrap();
    holds.let_go();
    let woken = Instant::now();
    holder.idle().await;
    heir.idle().await;
    let took = woken.elapsed();
    holder.stop().await;
    heir.stop().await;
    let presentations = presentations(&before, &scenario.oracle());

    // What is stored is the refresh token that works: it is used once more.
    replica.start_again().await;
    let views = scenario.views(&replica).await;
    let lost = views.iter().filter(|(_, view)| view.is_lost()).count();
    assert_eq!(lost, 0, "{views:#?}");
    scenario.make_due().await;
    let settled = scenario.settled(&replica, &views, Instant::now()).await;
    assert!(settled.values().all(|(view, _)| !view.is_lost()), "{settled:#?}");
    replica.stop().await;
    Row {
        runs: count,
        replays: presentations.values().map(|times| times - 1).sum(),
        recovery: vec![took; count],
        ..Row::default()
    }
}

async fn pause_before_sending(point: Point) {
    let row = pause_at(point, Class::SINGLE_USE, LONG_TIMEOUT).await;
    assert_eq!(row.replays, 0, "sent after the window");
    row.report(&format!("paused past the lease, {point}, before sending"));
}

async fn pause_after_processing(class: Class) {
    let row = pause_at(Point::Received, class, SHORT_TIMEOUT).await;
    row.report(&format!("paused past the lease, after processing, {}", class.name));
}

macro_rules! pauses {
    ($($name:ident: $pause:ident, $class:expr;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $pause($class).await;
        })+
    };
}

pauses! {
    claimed: pause_before_sending, Point::Claimed;
    connected: pause_before_sending, Point::Connected;
    not_rotating: pause_after_processing, Class::NOT_ROTATING;
    grace_same: pause_after_processing, Class::GRACE_SAME;
    grace_new: pause_after_processing, Class::GRACE_NEW;
    grace_newest: pause_after_processing, Class::GRACE_NEWEST;
    single_use: pause_after_processing, Class::SINGLE_USE;
    family_while_the_old_token_lives: pause_after_processing, Class::FAMILY.with_lasting_access();
}
