//! Much to do at once: every refresh token is presented once, the most urgent first, at the pace.

use std::time::Duration;

use reqwest::StatusCode;
use token_broker::simulator::{Fault, Kind, Simulated, SimulatorSettings};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    checks::{UNPACED, generation, lost, posts, replays},
    report::{Row, is_long, short_or_long},
    support::{
        broker::TestBroker,
        database::{TestDatabase, apply, on_both_engines},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_refresh_each_of_many_once() {
    let count = short_or_long(100, 1_000);
    let database = TestDatabase::postgres().await;
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), UNPACED).await;
    let names = broker.consented(count).await;
    let replica = broker.replica().await;
    let before = posts(&broker);
    broker.make_due().await;
    let watch = Instant::now();
    // A claim that took too long on a busy machine is given up before anything is sent, and comes
    // again some seconds later.
    for _ in 0..60 {
        let ours = async { while broker.broker().refresh_due(1_000).await.unwrap() > 0 {} };
        let theirs = async { while replica.broker().refresh_due(1_000).await.unwrap() > 0 {} };
        tokio::join!(ours, theirs);
        if posts(&broker) - before >= count as u64 {
            break;
        }
        broker.advance(Duration::from_secs(5)).await;
    }
    let recovery = vec![watch.elapsed()];
    assert_eq!(posts(&broker) - before, count as u64);
    let replays = replays(&broker);
    assert_eq!(replays, 0);
    for name in &names {
        assert_eq!(generation(replica.broker(), name).await, 2, "{name}");
    }
    let lost = lost(&broker, &names).await;
    assert_eq!(lost, 0);
    Row { runs: count, lost, replays, recovery, ..Row::default() }
        .report("many due at once for 2 replicas");
    replica.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_an_expired_token_cost_one_request() {
    let count = short_or_long(120, 1_000);
    let seconds: &[u64] = if is_long() { &[12, 30] } else { &[3] };
    let database = TestDatabase::postgres().await;
    let broker = TestBroker::start(database).await;
    broker.connect("avito-0", Simulated::Avito).await;
    let replicas = [broker.replica().await, broker.replica().await];
    let mut urls = vec![&broker.internal_url];
    urls.extend(replicas.iter().map(|replica| &replica.internal_url));
    for seconds in seconds {
        broker.advance(Duration::from_hours(25)).await;
        for replica in &replicas {
            replica.broker().sync().await.unwrap();
        }
        let before = posts(&broker);
        let slow = Fault::Slow { milliseconds: seconds * 1_000 };
        broker.simulator(Simulated::Avito).fault(&slow, 1);
        let watch = Instant::now();
        let mut readers = JoinSet::new();
        for number in 0..count {
            let url = format!("{}/v1/connections/avito-0/token", urls[number % urls.len()]);
            let read = broker.http.get(url).bearer_auth(&broker.service_key);
            let read = read.header("prefer", "wait=60").send();
            readers.spawn(async move {
                let answer = read.await.unwrap();
                let status = answer.status();
                (status, answer.text().await.unwrap(), watch.elapsed())
            });
        }
        let answers = readers.join_all().await;
        let refused: Vec<_> =
            answers.iter().filter(|(status, ..)| *status != StatusCode::OK).collect();
        assert!(refused.is_empty(), "{} of {count}: {:?}", refused.len(), refused[0]);
        assert_eq!(posts(&broker) - before, 1);
        let recovery: Vec<_> = answers.into_iter().map(|(.., waited)| waited).collect();
        let replays = replays(&broker);
        assert_eq!(replays, 0);
        Row { runs: count, replays, recovery, ..Row::default() }.report(&format!(
            "readers of one expired token on 3 replicas, answered in {seconds} s"
        ));
    }
    for replica in replicas {
        replica.stop().await;
    }
    broker.stop().await;
}

/// The rank of a connection by the end of its token: no two are alike, and the order is not that of
/// the names.
fn rank(number: usize) -> usize {
    number * 37 % 1_009
}

const ENDS_BY_RANK: &str = "UPDATE grants SET expires_at = received_at + 3600000 + 1000 * ((
    SELECT CAST(substr(name, 7) AS BIGINT) FROM connections WHERE id = connection_id
) * 37 % 1009)";

#[apply(on_both_engines!)]
async fn the_most_urgent_go_first_at_the_pace(database: TestDatabase) {
    const PER_SECOND: usize = 20;
    const BURST: usize = 5;
    const IN_FLIGHT: usize = 8;
    let pace = format!(
        "[providers.profiles.avito.pace]
        per_second = {PER_SECOND}\nburst = {BURST}\nin_flight = {IN_FLIGHT}\n"
    );
    let count = short_or_long(60, 200);
    let mut broker = TestBroker::start_with(database, SimulatorSettings::default(), &pace).await;
    let names = broker.consented(count).await;
    broker.make_due().await;
    broker.execute(ENDS_BY_RANK).await;
    broker.restart(|_| {}).await;
    let watch = Instant::now();
    assert_eq!(broker.broker().refresh_due(1_000).await.unwrap(), count);
    let recovery = vec![watch.elapsed()];

    let known = broker.simulator(Simulated::Avito).oracle().known;
    // One consent followed the other, so the chains are in the order of the names.
    let first = known.iter().map(|known| known.chain).min().unwrap();
    let brought: Vec<_> = known
        .iter()
        .filter(|known| known.kind == Kind::Refresh && known.generation == 2)
        .map(|known| (known.chain - first, known.issued_at.as_millisecond()))
        .collect();
    let mut urgent: Vec<_> = (0..count).collect();
    urgent.sort_by_key(|number| rank(*number));
    // The first to come find the places free.
    for (place, (number, _)) in brought.iter().enumerate().skip(IN_FLIGHT) {
        let due = urgent.iter().position(|urgent| urgent == number).unwrap();
        // Those under way together may overtake each other, the more the busier the machine is.
        assert!(
            place.abs_diff(due) < 4 * IN_FLIGHT,
            "place {place} in place of {due}: {brought:?}"
        );
    }
    let peak = brought
        .iter()
        .map(|(_, at)| brought.iter().filter(|(_, next)| (*at..at + 1_000).contains(next)).count());
    let peak = peak.max().unwrap();
    assert!(peak <= PER_SECOND + BURST + IN_FLIGHT, "{peak} in a second");
    let replays = replays(&broker);
    assert_eq!(replays, 0);
    Row {
        runs: count,
        replays,
        recovery,
        lost: lost(&broker, &names[..5]).await,
        ..Row::default()
    }
    .report(&format!("restart with many due, {peak} requests in the busiest second"));
    broker.stop().await;
}
