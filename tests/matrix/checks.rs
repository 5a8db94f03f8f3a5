//! Questions about connections that the tests of faults have in common.

use token_broker::{
    broker::Broker,
    simulator::{Kind, Simulated},
};

use crate::support::{broker::TestBroker, database::TestDatabase, deployment::Deployment};

/// A pace that holds up nobody.
pub(crate) const UNPACED: &str = "[providers.profiles.avito.pace]
per_second = 100000
burst = 100000
in_flight = 64
";

/// The number of token requests that have reached Avito.
pub(crate) fn posts(deployment: &Deployment) -> u64 {
    deployment.posts(Simulated::Avito)
}

/// The number of presentations of refresh tokens after their first.
pub(crate) fn replays(deployment: &Deployment) -> u64 {
    let known = deployment.simulator(Simulated::Avito).oracle().known;
    let refresh = known.iter().filter(|known| known.kind == Kind::Refresh);
    refresh.map(|known| known.presented.values().sum::<u64>().saturating_sub(1)).sum()
}

/// The number of connections without a refresh token that works. Each is refreshed once more.
pub(crate) async fn lost(broker: &TestBroker, names: &[String]) -> usize {
    let mut lost = 0;
    broker.broker().sync().await.unwrap();
    for name in names {
        let before = generation(broker.broker(), name).await;
        broker.refresh(name).await;
        lost += usize::from(generation(broker.broker(), name).await != before + 1);
    }
    lost
}

/// The generation of a connection in the database.
pub(crate) async fn generation(broker: &Broker, name: &str) -> i64 {
    broker.store().record(name).await.unwrap().unwrap().generation()
}

/// The number of connections that hold this generation and have no attempt open.
pub(crate) async fn settled_at(
    database: &TestDatabase,
    names: &[String],
    generation: i64,
) -> usize {
    let mut settled = 0;
    for name in names {
        let record = database.store.record(name).await.unwrap().unwrap();
        let open = record.claimed_at.is_some() || record.open_attempts > 0;
        settled += usize::from(!open && record.generation() == generation);
    }
    settled
}
