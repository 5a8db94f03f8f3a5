//! Background loops: due refreshes (the same refresh as a reader's), the cache, revocations,
//! deletion of expired rows, and shipping of audit events. Each has its own pace, so that none
//! waits for another.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;

/// The interval for due connections and changes made elsewhere.
const TICK: Duration = Duration::from_secs(2);

/// The time for which notifications are gathered after a look at them.
const BURST: Duration = Duration::from_millis(100);

/// The interval for deleting expired rows.
const PURGE_TICK: Duration = Duration::from_mins(1);

/// The interval for shipping audit events to the database.
const SHIP_TICK: Duration = Duration::from_secs(1);

/// Due connections that one look may start. They wait for a permit of their provider, so a provider
/// with many is no hindrance to the others.
const MAX_DUE: u32 = 1_000;

/// Revocations that one look may start at each provider.
const MAX_REVOCATIONS: u32 = 20;

/// Runs all loops until `shutdown`.
pub async fn run(broker: Arc<Broker>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = refresh(&broker) => {}
        () = sync_cache(&broker, TICK) => {}
        () = purge(&broker) => {}
        () = ship(&broker) => {}
        () = revoke(&broker) => {}
    }
}

async fn refresh(broker: &Arc<Broker>) {
    let mut ticks = every(TICK);
    loop {
        ticks.tick().await;
        if let Err(error) = broker.start_due(MAX_DUE).await {
            tracing::warn!(%error, "cannot list due refreshes");
        }
    }
}

/// Keeps the cache in step with the store, for ever: on every notification, and at every tick,
/// because a notification may be lost.
pub async fn sync_cache(broker: &Broker, tick: Duration) {
    let hint = Notify::new();
    tokio::join!(broker.store().listen(&hint), sync(broker, tick, &hint));
}

async fn sync(broker: &Broker, tick: Duration, hint: &Notify) {
    let mut ticks = every(tick);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = hint.notified() => {}
        }
        if let Err(error) = broker.sync().await {
            tracing::warn!(%error, "cannot bring the cache up to date");
        }
        sleep(BURST).await;
    }
}

async fn revoke(broker: &Arc<Broker>) {
    let mut ticks = every(TICK);
    loop {
        ticks.tick().await;
        if let Err(error) = broker.start_revocations(MAX_REVOCATIONS).await {
            tracing::warn!(%error, "cannot list due revocations");
        }
    }
}

async fn purge(broker: &Broker) {
    let mut ticks = every(PURGE_TICK);
    loop {
        ticks.tick().await;
        if let Err(error) = broker.purge().await {
            tracing::warn!(%error, "cannot delete expired rows");
        }
    }
}

async fn ship(broker: &Broker) {
    let mut ticks = every(SHIP_TICK);
    loop {
        ticks.tick().await;
        // Errors are logged once, at their source.
        let _ = broker.ship_events().await;
    }
}

/// An interval in which a step that takes longer delays the next.
fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
