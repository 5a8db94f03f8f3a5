//! Services that read tokens at a steady rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, StatusCode};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::support::api::Api;

/// A replica that is read from.
#[derive(Clone)]
pub(crate) struct Target {
    api: Api,
    ending: Arc<AtomicBool>,
}

impl Target {
    pub(crate) fn new(api: &Api) -> Self {
        Self { api: api.clone(), ending: Arc::default() }
    }

    /// From now on it may refuse connections, but not answer with an error; or no longer.
    pub(crate) fn ends(&self, ends: bool) {
        self.ending.store(ends, Ordering::SeqCst);
    }

    /// Reads a token; an error where there is none.
    pub(crate) async fn read(&self, name: &str) -> Result<(), String> {
        let was_ending = self.ending.load(Ordering::SeqCst);
        let path = format!("/v1/connections/{name}/token");
        match self.api.request(Method::GET, &path, &self.api.service_key).send().await {
            Ok(answer) if answer.status() == StatusCode::OK => Ok(()),
            Ok(answer) => Err(format!("{name}: {} {:?}", answer.status(), answer.text().await)),
            Err(_) if was_ending || self.ending.load(Ordering::SeqCst) => Ok(()),
            Err(error) => Err(format!("{name}: {error:?}")),
        }
    }
}

/// A running load.
pub(crate) struct Load {
    stop: CancellationToken,
    running: JoinSet<(usize, Vec<String>)>,
}

impl Load {
    /// Reads the tokens of these connections in turn from these replicas in turn.
    pub(crate) fn start(targets: Vec<Target>, names: Vec<String>, per_second: u32) -> Self {
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(run(targets, names, per_second, stop.clone()));
        Self { stop, running }
    }

    /// The number of reads, and the errors of those that failed.
    pub(crate) async fn end(mut self) -> (usize, Vec<String>) {
        self.stop.cancel();
        self.running.join_next().await.unwrap().unwrap()
    }
}

async fn run(
    targets: Vec<Target>,
    names: Vec<String>,
    per_second: u32,
    stop: CancellationToken,
) -> (usize, Vec<String>) {
    let mut reads = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        if stop.run_until_cancelled(ticks.tick()).await.is_none() {
            break;
        }
        let target = targets[number % targets.len()].clone();
        let name = names[number % names.len()].clone();
        reads.spawn(async move { target.read(&name).await });
    }
    let results = reads.join_all().await;
    let count = results.len();
    (count, results.into_iter().filter_map(Result::err).collect())
}
