//! The process dies at random instants while it refreshes without a pause.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use reqwest::Method;
use token_broker::{seal::secret, simulator::Oracle};
use tokio::{
    join,
    time::{Instant, sleep},
};

use crate::{
    killed_process::{judge, presentations},
    report::{Row, short_or_long},
    rotation_class::Class,
    scenario::{Held, Scenario, View},
    support::{database::TestDatabase, replica_process::ReplicaProcess},
};

/// The number of connections that are refreshed side by side.
const CONNECTIONS: usize = 8;

/// The longest that a process lives once it serves.
const LONGEST: u16 = 400;

/// Refreshes every connection again and again, and kills the process in the middle.
async fn kill_some_time(scenario: &Scenario, replica: &mut ReplicaProcess) {
    let random = u16::from_be_bytes(secret::random_bytes::<2>()) % LONGEST;
    let refreshes = scenario.chains.keys().map(|name| {
        let path = format!("/v1/connections/{name}/refresh");
        let replica = &*replica;
        let refresh = move || replica.request(Method::POST, &path, &replica.operator_key).send();
        async move { while refresh().await.is_ok() {} }
    });
    let death = async {
        sleep(Duration::from_millis(random.into())).await;
        replica.program.signal("KILL");
    };
    join!(join_all(refreshes), death);
    replica.program.wait().await;
}

/// The authorisations of connections whose every refresh token that is on our disks is over.
fn unrecoverable(
    scenario: &Scenario,
    held: &BTreeMap<String, Held>,
    at_death: &Oracle,
) -> BTreeSet<usize> {
    let lives = |text: &String| at_death.of(text).is_some_and(|known| known.alive);
    let beyond = held.iter().filter(|(_, held)| !held.refresh_tokens.iter().any(lives));
    beyond.map(|(name, _)| scenario.chains[name]).collect()
}

/// One kill; its row counts the refreshes that were under way.
async fn kill_once(scenario: &mut Scenario, replica: &mut ReplicaProcess) -> Row {
    let before = scenario.oracle();
    kill_some_time(scenario, replica).await;
    let at_death = scenario.oracle();
    let held = scenario.held(replica).await;
    let unrecoverable = unrecoverable(scenario, &held, &at_death);
    let hit: BTreeMap<String, View> =
        held.into_iter().filter_map(|(name, held)| Some((name, held.under_way?))).collect();
    let began = Instant::now();
    replica.start_again().await;
    scenario.assert_served(replica, &before).await;
    let settled = scenario.settled(replica, &hit, began).await;
    let presentations = presentations(&before, &scenario.oracle());
    let (lost, row) = judge(scenario, &settled, &unrecoverable, &presentations);
    scenario.assert_usable(replica, &lost).await;
    scenario.reconnect(replica, &lost).await;
    row
}

async fn kill_at_random(class: Class) {
    let database = TestDatabase::sqlite().await;
    let (mut scenario, mut replica) =
        Scenario::start(database, class, CONNECTIONS, Duration::from_secs(40)).await;
    let mut all = Row::default();
    for _ in 0..short_or_long(10, 200) {
        all += kill_once(&mut scenario, &mut replica).await;
    }
    replica.stop().await;
    assert!(all.runs > 0, "no refresh was ever under way");
    all.report(&format!("SIGKILL, random instants, {}", class.name));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_use() {
    kill_at_random(Class::SINGLE_USE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grace_newest() {
    kill_at_random(Class::GRACE_NEWEST).await;
}
