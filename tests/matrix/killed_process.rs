//! The process dies at a point of a refresh, with many of them at that very point, and starts again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use token_broker::{
    failpoint::Point,
    simulator::{Fault, Kind, Oracle},
};
use tokio::time::Instant;

use crate::{
    report::{Row, is_long, short_or_long},
    rotation_class::Class,
    scenario::{Scenario, Settled},
    support::{database::TestDatabase, replica_process::ReplicaProcess, wait::until},
};

/// Enough refusals for the broker to doubt them, if its own death did not explain them.
const MANY: usize = 5;

/// The point of a refresh at which the process dies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// At a point of ours.
    At(Point),
    /// The request is written, and the provider never processes it.
    Unprocessed,
    /// The provider has processed the request, and not a byte of its answer comes.
    Unanswered,
}

impl Stop {
    /// In the order in which a refresh passes them.
    const ALL: [Self; 12] = [
        Self::At(Point::Unclaimed),
        Self::At(Point::Claimed),
        Self::At(Point::Connected),
        Self::Unprocessed,
        Self::At(Point::Written),
        Self::Unanswered,
        Self::At(Point::Answered),
        Self::At(Point::PartlyRead),
        Self::At(Point::Received),
        Self::At(Point::Spooled),
        Self::At(Point::Committed),
        Self::At(Point::Unpublished),
    ];

    /// The point at which the broker holds by itself.
    fn hold(self) -> Option<Point> {
        match self {
            Self::At(point) => Some(point),
            Self::Unprocessed | Self::Unanswered => None,
        }
    }

    /// The fault by which the provider holds the broker.
    fn fault(self) -> Option<Fault> {
        match self {
            Self::At(_) => None,
            Self::Unprocessed => Some(Fault::Hold { processed: false }),
            Self::Unanswered => Some(Fault::Hold { processed: true }),
        }
    }

    /// True if the provider has acted by then.
    fn is_processed(self) -> bool {
        match self {
            Self::At(point) => point >= Point::Written,
            Self::Unprocessed => false,
            Self::Unanswered => true,
        }
    }

    /// True if the provider's answer is on our disk by then.
    fn is_kept(self) -> bool {
        matches!(self, Self::At(point) if point >= Point::Spooled)
    }

    /// Brings every connection's refresh there; the replica is not running.
    pub(crate) async fn reach(self, scenario: &Scenario, replica: &mut ReplicaProcess) {
        let before = scenario.oracle();
        let count = scenario.chains.len();
        if let Some(fault) = self.fault() {
            scenario.provider().fault(&fault, count);
        }
        scenario.make_due().await;
        replica.start_held(self.hold());
        if let Some(point) = self.hold() {
            for _ in 0..count {
                replica.program.hear(&format!("held at {point}")).await;
            }
        }
        if self.is_processed() {
            let issued = || accesses(&scenario.oracle()) == accesses(&before) + count;
            until("the provider has processed all requests", async || issued()).await;
        } else if self.hold().is_none() {
            let arrived = || presentations(&before, &scenario.oracle()).len() == count;
            until("all requests have arrived", async || arrived()).await;
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(point) => write!(f, "{point}"),
            Self::Unprocessed => f.write_str("not processed"),
            Self::Unanswered => f.write_str("not answered"),
        }
    }
}

/// The authorisations that no client could save that died there: of the refresh tokens that it had
/// received none works. Those are the ones from before, and the successor once it is on the disk.
///
/// So nothing is beyond saving before the provider has acted, nor once its answer is kept; between
/// the two only what the class leaves of the old token counts: all of it where it does not rotate,
/// a grace, or nothing.
pub(crate) fn unrecoverable(before: &Oracle, at_death: &Oracle, stop: Stop) -> BTreeSet<usize> {
    let ours = |id| stop.is_kept() || id <= before.known.len();
    let live = at_death.live_refresh_tokens().into_iter();
    let beyond = live.filter(|(_, tokens)| !tokens.iter().any(|token| ours(token.id)));
    beyond.map(|(chain, _)| chain).collect()
}

/// The number of presentations since `before` of each refresh token that was presented.
pub(crate) fn presentations(before: &Oracle, now: &Oracle) -> BTreeMap<usize, u64> {
    let times = |oracle: &Oracle, id: usize| -> u64 {
        oracle.known.get(id - 1).map_or(0, |known| known.presented.values().sum())
    };
    let refresh = now.known.iter().filter(|known| known.kind == Kind::Refresh);
    let times = refresh.map(|known| (known.id, times(now, known.id) - times(before, known.id)));
    times.filter(|(_, times)| *times > 0).collect()
}

/// The number of access tokens ever issued.
pub(crate) fn accesses(oracle: &Oracle) -> usize {
    oracle.known.iter().filter(|known| known.kind == Kind::Access).count()
}

/// Compares what is lost with what nobody could have saved, and makes the row of the table.
pub(crate) fn judge(
    scenario: &Scenario,
    settled: &Settled,
    unrecoverable: &BTreeSet<usize>,
    presentations: &BTreeMap<usize, u64>,
) -> (BTreeSet<String>, Row) {
    let lost = settled.iter().filter(|(_, (view, _))| view.is_lost());
    for (name, (view, _)) in lost.clone() {
        assert_eq!(view.reason.as_deref(), Some("lost_in_rotation"), "{name}");
    }
    let lost: BTreeSet<_> = lost.map(|(name, _)| name.clone()).collect();
    let beyond = scenario.chains.iter().filter(|(_, chain)| unrecoverable.contains(chain));
    let beyond: BTreeSet<_> = beyond.map(|(name, _)| name.clone()).collect();
    assert_eq!(lost, beyond, "lost on the left, beyond saving on the right");
    let most = presentations.values().max();
    assert!(most <= Some(&2), "presented more often than once and again");
    let row = Row {
        runs: settled.len(),
        lost: lost.len(),
        unrecoverable: beyond.len(),
        replays: presentations.values().map(|times| times - 1).sum(),
        recovery: settled.values().map(|(_, took)| *took).collect(),
    };
    (lost, row)
}

/// One cell of the matrix. The replica runs before and after.
async fn kill_at(scenario: &mut Scenario, replica: &mut ReplicaProcess, stop: Stop) -> Row {
    let views = scenario.views(replica).await;
    replica.stop().await;
    let before = scenario.oracle();
    stop.reach(scenario, replica).await;
    replica.kill().await;
    let unrecoverable = unrecoverable(&before, &scenario.oracle(), stop);
    scenario.provider().clear_faults();

    let began = Instant::now();
    replica.start_again().await;
    scenario.assert_served(replica, &before).await;
    let settled = scenario.settled(replica, &views, began).await;
    let presentations = presentations(&before, &scenario.oracle());
    let (lost, row) = judge(scenario, &settled, &unrecoverable, &presentations);
    scenario.assert_usable(replica, &lost).await;
    scenario.assert_served(replica, &before).await;
    scenario.reconnect(replica, &lost).await;
    row
}

async fn kill_at_every_point(database: TestDatabase, engine: &str, class: Class) {
    let count = short_or_long(MANY, 100);
    let (mut scenario, mut replica) =
        Scenario::start(database, class, count, Duration::from_secs(40)).await;
    for stop in Stop::ALL {
        let row = kill_at(&mut scenario, &mut replica, stop).await;
        row.report(&format!("SIGKILL, {stop}, {}, {engine}", class.name));
    }
    replica.stop().await;
}

macro_rules! kills {
    ($($name:ident: $class:ident;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            kill_at_every_point(TestDatabase::sqlite().await, "sqlite", Class::$class).await;
        })+
    };
}

kills! {
    not_rotating: NOT_ROTATING;
    grace_same: GRACE_SAME;
    grace_new: GRACE_NEW;
    grace_newest: GRACE_NEWEST;
    single_use: SINGLE_USE;
    family: FAMILY;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres() {
    let classes: &[Class] = if is_long() { &Class::ALL } else { &[Class::SINGLE_USE] };
    for class in classes {
        kill_at_every_point(TestDatabase::postgres().await, "postgres", *class).await;
    }
}
