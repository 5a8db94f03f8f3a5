//! Background refresh: claims what is due and hands it to the broker, through the same refresh as
//! a reader; and keeps memory in step with the store.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;

/// How often to look for due connections and for changes made elsewhere.
const TICK: Duration = Duration::from_secs(2);

/// How many refreshes a look begins at the most; they run at once.
const BATCH: u32 = 16;

/// How often to forget what has ended, in ticks.
const TICKS_PER_PURGE: u32 = 30;

/// Runs until `shutdown`.
pub async fn run(broker: Arc<Broker>, shutdown: CancellationToken) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count: u32 = 0;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = step(&broker, count.is_multiple_of(TICKS_PER_PURGE)) => {}
        }
        count = count.wrapping_add(1);
    }
}

/// One look. A failure is logged and left to the next.
async fn step(broker: &Arc<Broker>, purge: bool) {
    if let Err(error) = broker.sync().await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "memory is not brought up to date"
        );
    }
    if let Err(error) = broker.refresh_due(BATCH).await {
        tracing::warn!(%error, "what is due could not be read");
    }
    if purge && let Err(error) = broker.purge().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "nothing was purged");
    }
}
