//! Grants cannot be kept on the disk: none is asked for, what lives is served, and when there is room
//! again the rest follows.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use reqwest::StatusCode;
use token_broker::{failpoint::Point, simulator::SimulatorSettings};
use tokio::time::{Instant, sleep};

use crate::{
    checks::{UNPACED, generation, lost, posts, replays, settled_at},
    database_outage::DatabaseOutage,
    held_points::HeldPoints,
    report::{Row, short_or_long},
    support::{
        broker::{RunOptions, TestBroker},
        database::{TestDatabase, apply, on_both_engines},
        deployment::Deployment,
        wait::until,
    },
};

/// The folder is gone.
fn lose(spool: &Path) {
    fs::remove_dir_all(spool).unwrap();
}

/// It is a folder where nobody may write, not even root.
fn forbid(spool: &Path) {
    lose(spool);
    symlink("/proc", spool).unwrap();
}

/// It is no folder.
fn replace(spool: &Path) {
    lose(spool);
    fs::write(spool, "").unwrap();
}

fn mend(spool: &Path) {
    drop(fs::remove_file(spool));
    fs::create_dir(spool).unwrap();
}

#[apply(on_both_engines!)]
async fn nothing_is_asked_for_that_cannot_be_kept(database: TestDatabase) {
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), UNPACED).await;
    let names = broker.consented(short_or_long(10, 100)).await;
    let spool = broker.state("spool");
    for (round, way) in ["lost", "read-only", "not a folder"].into_iter().enumerate() {
        match way {
            "lost" => lose(&spool),
            "read-only" => forbid(&spool),
            _ => replace(&spool),
        }
        broker.make_due().await;
        let before = posts(&broker);
        for _ in 0..3 {
            assert_eq!(broker.refresh_due().await, names.len(), "{way}");
        }
        let refused = broker.refresh(&names[0]).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{way}: {refused:?}");
        assert_eq!(posts(&broker), before, "{way}: nothing is sent");
        for name in &names {
            let record = broker.broker().store().record(name).await.unwrap().unwrap();
            assert_eq!((record.claimed_at, record.open_attempts), (None, 0), "{way}: {name}");
        }
        broker.all_served(&names).await;
        mend(&spool);
        let back = Instant::now();
        assert_eq!(broker.refresh_due().await, names.len(), "{way}");
        let recovery = vec![back.elapsed()];
        let next = i64::try_from(round).unwrap() + 2;
        for name in &names {
            assert_eq!(generation(broker.broker(), name).await, next, "{way}: {name}");
        }
        let replays = replays(&broker);
        assert_eq!(replays, 0, "{way}");
        Row { runs: names.len(), replays, recovery, ..Row::default() }
            .report(&format!("state directory {way}"));
    }
    assert_eq!(lost(&broker, &names).await, 0);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_spool_that_is_lost_under_way_is_not_relied_on(mut database: TestDatabase) {
    let mut outage = DatabaseOutage::before(&mut database).await;
    let holds = HeldPoints::default();
    let options = RunOptions { failpoints: holds.failpoints(), ..RunOptions::default() };
    let broker = TestBroker::start_with_options(database, UNPACED, options).await;
    let names = broker.consented(10).await;
    holds.hold(Point::Received);
    broker.make_due().await;
    broker.broker().start_due(100).await.unwrap();
    holds.until(10).await;
    lose(&broker.state("spool"));
    outage.begin().await;
    holds.let_go();
    // As long again as it takes to be served from the disk.
    sleep(Duration::from_secs(4)).await;
    for name in &names {
        let token = broker.token(name).await;
        assert_eq!(token.json()["generation"], 1, "nothing is served that a crash would undo");
    }
    outage.end().await;
    let back = Instant::now();
    broker.idle().await;
    let recovery = vec![back.elapsed()];
    for name in &names {
        assert_eq!(generation(broker.broker(), name).await, 2, "{name}");
        assert_eq!(broker.token(name).await.json()["generation"], 2, "{name}");
    }
    mend(&broker.state("spool"));
    let lost = lost(&broker, &names).await;
    assert_eq!(lost, 0);
    let replays = replays(&broker);
    assert_eq!(replays, 0);
    Row { runs: names.len(), lost, replays, recovery, ..Row::default() }
        .report("state directory lost under way, and the database away");
    broker.stop().await;
}

/// Limits the size of files of a process, as a full disk does.
fn limit_files(pid: &str, bytes: &str) {
    let limit = format!("--fsize={bytes}:");
    let limited = Command::new("prlimit").args(["--pid", pid, &limit]).status().unwrap();
    assert!(limited.success(), "{limited}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_for_while_the_disk_is_full() {
    let database = TestDatabase::postgres().await;
    let (deployment, mut broker) = Deployment::start_process(database, UNPACED).await;
    let names = deployment.consented(short_or_long(10, 100)).await;
    let pid = broker.program.pid();
    limit_files(&pid, "32768");
    let before = posts(&deployment);
    deployment.make_due().await;
    for _ in 0..=names.len() {
        // Every one of them, and one of them again.
        broker.program.hear("the state directory cannot be written").await;
    }
    assert_eq!(posts(&deployment), before, "nothing is sent");
    assert_eq!(
        settled_at(&deployment.database, &names, 1).await,
        names.len(),
        "nothing is claimed"
    );
    broker.all_served(&names).await;
    assert_eq!(deployment.spool_files(), 0);
    limit_files(&pid, "unlimited");
    let back = Instant::now();
    until("all are refreshed", async || {
        settled_at(&deployment.database, &names, 2).await == names.len()
    })
    .await;
    let recovery = vec![back.elapsed()];
    assert_eq!(posts(&deployment) - before, names.len() as u64);
    Row { runs: names.len(), recovery, ..Row::default() }.report("state directory full");
}
