//! A replica is told to end, and others go on: what is under way is finished, nothing else is begun.

use token_broker::simulator::{Fault, Kind};
use tokio::time::Instant;

use crate::{
    checks::{ALL_DUE, UNPACED},
    database_outage::Outage,
    fleet::Fleet,
    reader_load::Load,
    report::{Row, short_or_long},
    support::{
        database::{TestDatabase, apply, on_both_engines},
        wait::until,
    },
};

/// How many refreshes are under way at the signal, and how many wait for their turn.
const UNDER_WAY: usize = 30;
const WAITING: usize = 10;

const PACE: &str = "[providers.profiles.avito.pace]
per_second = 100000
burst = 100000
in_flight = 30
";

/// How often refresh tokens were presented again.
fn replays(fleet: &Fleet) -> u64 {
    let known = fleet.avito().oracle().known;
    let refresh = known.iter().filter(|known| known.kind == Kind::Refresh);
    refresh.map(|known| known.presented.values().sum::<u64>().saturating_sub(1)).sum()
}

/// Makes all due and waits until so many are sent, which are answered later.
async fn under_way(fleet: &Fleet, count: usize, milliseconds: u64) {
    fleet.avito().fault(&Fault::Slow { milliseconds }, count);
    let before = fleet.posts();
    fleet.database.execute(ALL_DUE).await;
    until("they are sent", async || fleet.posts() - before == count as u64).await;
}

#[apply(on_both_engines!)]
async fn what_is_under_way_is_finished(database: TestDatabase) {
    let mut fleet = Fleet::start(database, 1, PACE).await;
    let names = fleet.consented(UNDER_WAY + WAITING).await;
    let before = fleet.posts();
    under_way(&fleet, UNDER_WAY, 3_000).await;
    let told = Instant::now();
    let ship = &mut fleet.ships[0];
    ship.program.signal("TERM");
    ship.program.signal("TERM");
    let ended = ship.program.wait().await;
    let recovery = vec![told.elapsed()];
    assert!(ended.success(), "{ended}");
    assert_eq!(fleet.posts() - before, UNDER_WAY as u64, "who waited was not begun");
    assert_eq!(fleet.settled_at(&names, 2).await, UNDER_WAY);
    assert_eq!(fleet.settled_at(&names, 1).await, WAITING, "nothing is left open");
    assert_eq!(fleet.ships[0].spool_files(), 0);

    fleet.ships[0].start().await;
    until("the rest follows", async || fleet.settled_at(&names, 2).await == names.len()).await;
    let replays = replays(&fleet);
    assert_eq!((fleet.posts() - before, replays), (names.len() as u64, 0));
    Row { runs: UNDER_WAY, replays, recovery, ..Row::default() }
        .report("SIGTERM with refreshes under way");
}

#[apply(on_both_engines!)]
async fn a_second_signal_cuts_no_commit(mut database: TestDatabase) {
    let mut outage = Outage::before(&mut database).await;
    let mut fleet = Fleet::start(database, 1, PACE).await;
    let count = 5;
    let names = fleet.consented(count).await;
    under_way(&fleet, count, 2_000).await;
    outage.begin().await;
    let ship = &mut fleet.ships[0];
    ship.program.signal("TERM");
    until("the answers are on the disk", async || ship.spooled() == count).await;
    ship.program.signal("TERM");
    ship.program.signal("INT");
    outage.end().await;
    let told = Instant::now();
    let ended = ship.program.wait().await;
    let recovery = vec![told.elapsed()];
    assert!(ended.success(), "{ended}");
    assert_eq!(fleet.settled_at(&names, 2).await, count, "the commits have landed");
    assert_eq!(fleet.ships[0].spool_files(), 0);
    let replays = replays(&fleet);
    assert_eq!(replays, 0);
    Row { runs: count, replays, recovery, ..Row::default() }
        .report("a second signal during the commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_not_noticed_by_readers() {
    let mut fleet = Fleet::start(TestDatabase::postgres().await, 3, UNPACED).await;
    let names = fleet.consented(short_or_long(20, 200)).await;
    let targets = fleet.targets();
    for target in &targets {
        for name in &names {
            until("it is served everywhere", async || target.read(name).await.is_ok()).await;
        }
    }
    let load = Load::start(targets.clone(), names.clone(), 100);
    let mut recovery = Vec::new();
    for (target, ship) in targets.iter().zip(&mut fleet.ships) {
        fleet.database.execute(ALL_DUE).await;
        let down = Instant::now();
        target.ends(true);
        ship.program.signal("TERM");
        let ended = ship.program.wait().await;
        assert!(ended.success(), "{ended}");
        ship.start().await;
        target.ends(false);
        recovery.push(down.elapsed());
    }
    let (reads, failed) = load.end().await;
    assert!(failed.is_empty(), "{} of {reads} reads: {}", failed.len(), failed[0]);
    let replays = replays(&fleet);
    assert_eq!(replays, 0);
    Row { runs: reads, replays, recovery, ..Row::default() }
        .report("rolling restart of 3 replicas, reads");
}
