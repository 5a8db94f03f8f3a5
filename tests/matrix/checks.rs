//! What the faults of databases, replicas and state directories are tried on.

use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use token_broker::{
    broker::Broker,
    simulator::{Endpoint, Kind, Simulated},
};

use crate::support::broker::TestBroker;

/// Makes all connections due.
pub(crate) const ALL_DUE: &str = "UPDATE connections SET refresh_at = created_at";

/// A pace that holds up nobody.
pub(crate) const UNPACED: &str = "[providers.profiles.avito.pace]
per_second = 100000
burst = 100000
in_flight = 64
";

/// Connections of accounts that consented at Avito, whose refresh tokens work once.
pub(crate) async fn consented(broker: &TestBroker, count: usize) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|number| format!("avito-{number}")).collect();
    for name in &names {
        broker.connect(name, Simulated::Avito).await;
    }
    names
}

/// How many token requests have arrived at Avito.
pub(crate) fn posts(broker: &TestBroker) -> u64 {
    let requests = broker.simulator(Simulated::Avito).oracle().requests;
    requests.get(&Endpoint::Token).copied().unwrap_or_default()
}

/// How many presentations of a refresh token followed a first one.
pub(crate) fn replays(broker: &TestBroker) -> u64 {
    let known = broker.simulator(Simulated::Avito).oracle().known;
    let refresh = known.iter().filter(|known| known.kind == Kind::Refresh);
    refresh.map(|known| known.presented.values().sum::<u64>().saturating_sub(1)).sum()
}

/// How many of the connections hold no refresh token that works: each is refreshed once more.
pub(crate) async fn lost(broker: &TestBroker, names: &[String]) -> usize {
    let mut lost = 0;
    broker.broker().sync().await.unwrap();
    for name in names {
        let before = generation(broker.broker(), name).await;
        let path = format!("/v1/connections/{name}/refresh");
        broker.operator(Method::POST, &path, None).await;
        lost += usize::from(generation(broker.broker(), name).await != before + 1);
    }
    lost
}

/// How many grants the connection has held, as the database knows.
pub(crate) async fn generation(broker: &Broker, name: &str) -> i64 {
    broker.store().record(name).await.unwrap().unwrap().generation()
}

/// The same text, open.
#[expect(clippy::disallowed_methods, reason = "the URL of a test database is no secret")]
pub(crate) fn open(url: &SecretString) -> &str {
    url.expose_secret()
}

/// Asserts that each connection serves a live token.
pub(crate) async fn all_served(broker: &TestBroker, names: &[String]) {
    for name in names {
        let token = broker.token(name).await;
        assert_eq!(token.status, StatusCode::OK, "{name}: {token:?}");
    }
}
