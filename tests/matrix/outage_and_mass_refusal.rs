//! A provider that fails for ten minutes and then refuses everybody, and one that refuses us: what
//! lives is served all the while, nobody is condemned, and nobody is lost.

use std::time::Duration;

use serde_json::json;
use token_broker::simulator::{Fault, Simulated, SimulatorSettings};

use crate::{
    report::{Row, short_or_long},
    support::{broker::TestBroker, database::TestDatabase},
};

const PACE: &str = "[providers.profiles.avito.pace]\nper_second = 100000\nburst = 100000\n";

struct Outage {
    broker: TestBroker,
    names: Vec<String>,
}

impl Outage {
    /// Connections that are due while their tokens live.
    async fn start(count: usize) -> Self {
        let database = TestDatabase::sqlite().await;
        let broker = TestBroker::start_with(database, SimulatorSettings::default(), PACE).await;
        let names = broker.consented(count).await;
        broker.make_due().await;
        Self { broker, names }
    }

    /// Lets the background work for some minutes; every token is read in each of them.
    async fn pass(&self, minutes: u32) {
        for _ in 0..minutes {
            for _ in 0..3 {
                self.broker.advance(Duration::from_secs(20)).await;
                self.broker.broker().refresh_due(1_000).await.unwrap();
            }
            self.broker.all_served(&self.names).await;
        }
    }

    async fn nobody_is_condemned(&self) {
        for name in &self.names {
            let state = self.broker.view(name).await["state"].clone();
            assert_ne!(state, "needs_consent", "{name}");
        }
    }

    /// The provider is itself again: everybody is refreshed.
    async fn end(self, fault: &str) {
        self.broker.simulator(Simulated::Avito).clear_faults();
        self.pass(20).await;
        let replays = self.broker.simulator(Simulated::Avito).oracle().most_presentations() - 1;
        for name in &self.names {
            let view = self.broker.view(name).await;
            assert_eq!(view["state"], "active", "{view}");
            assert_ne!(view["generation"], json!(1), "{view}");
        }
        let runs = self.names.len();
        Row { runs, replays, ..Row::default() }.report(fault);
        self.broker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_then_refusals_of_everybody() {
    let outage = Outage::start(short_or_long(20, 500)).await;
    let avito = outage.broker.simulator(Simulated::Avito);
    avito.fault(&Fault::ServerError { processed: false }, 100_000);
    outage.pass(10).await;
    avito.clear_faults();
    avito.fault(&Fault::Refused, 100_000);
    outage.pass(15).await;
    outage.nobody_is_condemned().await;
    outage
        .end("5xx for 10 min, then false invalid_grant for 15 min (replays: the most of one token)")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_our_own_credentials() {
    let mut outage = Outage::start(short_or_long(20, 500)).await;
    let mut right = None;
    outage
        .broker
        .restart(|settings| {
            let client = settings["clients"]["avito"].as_table_mut().unwrap();
            right = client.insert("client_secret".into(), "wrong".into());
        })
        .await;
    outage.pass(5).await;
    for name in &outage.names {
        let view = outage.broker.view(name).await;
        assert_eq!((&view["state"], &view["generation"]), (&json!("active"), &json!(1)), "{view}");
    }
    outage
        .broker
        .restart(|settings| settings["clients"]["avito"]["client_secret"] = right.unwrap())
        .await;
    outage.end("invalid_client on our own credentials for 5 min").await;
}
