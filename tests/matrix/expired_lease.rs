//! The holder of a lease stands still until the lease is over and another replica has gone on; then
//! it wakes up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use token_broker::failpoint::{Failpoints, Hold, Point};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    killed_process::presentations,
    report::{Row, short_or_long},
    rotation_class::Class,
    scenario::World,
    support::{database::TestDatabase, wait::until},
};

/// How long a token request may take: longer than it is held here.
const LONG_TIMEOUT: Duration = Duration::from_secs(30);

/// The same where the lease has to end within the grace: it is 20 s longer than the timeout, and 50 s
/// where a second presentation is dangerous.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longer than any lease of these tests and shorter than the grace.
const PAUSE: Duration = Duration::from_secs(55);

/// Holds refreshes at a point until it is opened.
#[derive(Clone)]
struct Gate {
    point: Point,
    arrived: Arc<AtomicUsize>,
    opened: CancellationToken,
}

impl Gate {
    fn at(point: Point) -> Self {
        Self { point, arrived: Arc::default(), opened: CancellationToken::new() }
    }

    fn failpoints(&self) -> Failpoints {
        let gate = self.clone();
        let hold: Hold = Arc::new(move |point| {
            let gate = gate.clone();
            Box::pin(async move {
                if point == gate.point {
                    gate.arrived.fetch_add(1, Ordering::SeqCst);
                    gate.opened.cancelled().await;
                }
            })
        });
        Failpoints::new(hold)
    }
}

/// Pauses the refresh of every connection of the class at a point; the row has what came of it.
async fn pause_at(point: Point, class: Class, timeout: Duration) -> Row {
    let count = short_or_long(5, 100);
    let database = TestDatabase::postgres().await;
    let (world, mut replica) = World::start(database, class, count, timeout).await;
    replica.stop().await;
    let before = world.oracle();
    world.make_due().await;
    let gate = Gate::at(point);
    let holder = world.in_process(gate.failpoints()).await;
    let heir = world.in_process(Failpoints::default()).await;
    let limit = u32::try_from(count).unwrap();
    assert_eq!(holder.broker.start_due(limit).await.unwrap(), count);
    until("all refreshes are held", async || gate.arrived.load(Ordering::SeqCst) == count).await;

    world.clock().advance(PAUSE);
    heir.broker.refresh_due(limit).await.unwrap();
    gate.opened.cancel();
    let woken = Instant::now();
    holder.end().await;
    heir.end().await;
    let took = woken.elapsed();
    let presentations = presentations(&before, &world.oracle());

    // What is stored is the refresh token that works: it is used once more.
    replica.start(None).await;
    let views = world.views(&replica).await;
    let lost = views.iter().filter(|(_, view)| view.is_lost()).count();
    assert_eq!(lost, 0, "{views:#?}");
    world.make_due().await;
    let settled = world.settled(&replica, &views, Instant::now()).await;
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
