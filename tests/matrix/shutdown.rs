//! A replica is told to end, and others go on: what is under way is finished, nothing else is begun.

use token_broker::simulator::{Fault, Simulated};
use tokio::time::Instant;

use crate::{
    checks::{UNPACED, posts, replays, settled_at},
    database_outage::DatabaseOutage,
    reader_load::{Load, Target},
    report::{Row, short_or_long},
    support::{
        database::{TestDatabase, apply, on_both_engines},
        deployment::Deployment,
        wait::until,
    },
};

/// The number of refreshes under way at the signal, and of those that wait for their turn.
const UNDER_WAY: usize = 30;
const WAITING: usize = 10;

const PACE: &str = "[providers.profiles.avito.pace]
per_second = 100000
burst = 100000
in_flight = 30
";

/// Makes all due and waits until so many are sent, which are answered later.
async fn under_way(deployment: &Deployment, count: usize, milliseconds: u64) {
    deployment.simulator(Simulated::Avito).fault(&Fault::Slow { milliseconds }, count);
    let before = posts(deployment);
    deployment.make_due().await;
    until("they are sent", async || posts(deployment) - before == count as u64).await;
}

#[apply(on_both_engines!)]
async fn what_is_under_way_is_finished(database: TestDatabase) {
    let (deployment, mut broker) = Deployment::start_process(database, PACE).await;
    let names = deployment.consented(UNDER_WAY + WAITING).await;
    let before = posts(&deployment);
    under_way(&deployment, UNDER_WAY, 3_000).await;
    let told = Instant::now();
    broker.program.signal("TERM");
    broker.program.signal("TERM");
    let ended = broker.program.wait().await;
    let recovery = vec![told.elapsed()];
    assert!(ended.success(), "{ended}");
    assert_eq!(posts(&deployment) - before, UNDER_WAY as u64, "who waited was not begun");
    assert_eq!(settled_at(&deployment.database, &names, 2).await, UNDER_WAY);
    assert_eq!(settled_at(&deployment.database, &names, 1).await, WAITING, "nothing is left open");
    assert_eq!(deployment.spool_files(), 0);

    broker.start_again().await;
    until("the rest follows", async || {
        settled_at(&deployment.database, &names, 2).await == names.len()
    })
    .await;
    let replays = replays(&deployment);
    assert_eq!((posts(&deployment) - before, replays), (names.len() as u64, 0));
    Row { runs: UNDER_WAY, replays, recovery, ..Row::default() }
        .report("SIGTERM with refreshes under way");
}

#[apply(on_both_engines!)]
async fn a_second_signal_cuts_no_commit(mut database: TestDatabase) {
    let mut outage = DatabaseOutage::before(&mut database).await;
    let (deployment, mut broker) = Deployment::start_process(database, PACE).await;
    let count = 5;
    let names = deployment.consented(count).await;
    under_way(&deployment, count, 2_000).await;
    outage.begin().await;
    broker.program.signal("TERM");
    until("the answers are on the disk", async || broker.spooled() == count).await;
    broker.program.signal("TERM");
    broker.program.signal("INT");
    outage.end().await;
    let told = Instant::now();
    let ended = broker.program.wait().await;
    let recovery = vec![told.elapsed()];
    assert!(ended.success(), "{ended}");
    assert_eq!(settled_at(&deployment.database, &names, 2).await, count, "the commits have landed");
    assert_eq!(deployment.spool_files(), 0);
    let replays = replays(&deployment);
    assert_eq!(replays, 0);
    Row { runs: count, replays, recovery, ..Row::default() }
        .report("a second signal during the commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_not_noticed_by_readers() {
    let database = TestDatabase::postgres().await;
    let (deployment, first) = Deployment::start_process(database, UNPACED).await;
    let mut replicas =
        [first, deployment.replica_process().await, deployment.replica_process().await];
    let names = deployment.consented(short_or_long(20, 200)).await;
    let targets: Vec<_> = replicas.iter().map(|replica| Target::new(replica)).collect();
    for target in &targets {
        for name in &names {
            until("it is served everywhere", async || target.read(name).await.is_ok()).await;
        }
    }
    let load = Load::start(targets.clone(), names.clone(), 100);
    let mut recovery = Vec::new();
    for (target, replica) in targets.iter().zip(&mut replicas) {
        deployment.make_due().await;
        let down = Instant::now();
        target.ends(true);
        replica.stop().await;
        replica.start_again().await;
        target.ends(false);
        recovery.push(down.elapsed());
    }
    let (reads, failed) = load.end().await;
    assert!(failed.is_empty(), "{} of {reads} reads: {}", failed.len(), failed[0]);
    let replays = replays(&deployment);
    assert_eq!(replays, 0);
    Row { runs: reads, replays, recovery, ..Row::default() }
        .report("rolling restart of 3 replicas, reads");
}
