//! Waits for the replica that holds the lease.

use std::time::Duration;

use tokio::time::sleep;

use super::Refresher;
use crate::{
    broker::{BrokerError, RefreshReason},
    domain::record::Record,
};

impl Refresher {
    /// Another replica is refreshing: whoever needs its grant waits for as long as its lease may last,
    /// unless this process ends.
    pub(super) async fn wait_for_other_replica(
        &self,
        seen: &Record,
        at_most: Duration,
        reason: RefreshReason,
    ) -> Result<(), BrokerError> {
        if reason == RefreshReason::Due {
            return Ok(());
        }
        let settled = self.wait_until_settled(seen, at_most);
        let settled = self.process.draining.run_until_cancelled(settled).await;
        settled.unwrap_or_else(|| Err(BrokerError::being_stopped()))
    }

    async fn wait_until_settled(
        &self,
        seen: &Record,
        at_most: Duration,
    ) -> Result<(), BrokerError> {
        let waited = self.process.clock.stopwatch();
        while waited.elapsed() < at_most {
            sleep(Duration::from_millis(250)).await;
            let record = self.cache.reload(seen.connection.id).await?;
            if is_settled_since(&record, seen) {
                return Ok(());
            }
            if self.has_failed_within(&record, waited.elapsed()) {
                break;
            }
        }
        Err(BrokerError::unavailable(
            "another replica is refreshing this connection",
            Duration::from_secs(2),
        ))
    }

    /// True if a refresh failed within this time, and the connection backs off.
    fn has_failed_within(&self, record: &Record, time: Duration) -> bool {
        let (now, connection) = (self.process.clock.now(), &record.connection);
        let backs_off = connection.refresh_at.is_some_and(|at| at > now);
        let failed_at = connection.last_error.as_ref().map(|error| error.at);
        let ago = failed_at.and_then(|at| Duration::try_from(now.duration_since(at)).ok());
        backs_off && ago.is_some_and(|ago| ago <= time)
    }

    /// The refresh token was spent or refused between the reload and the claim: somebody has a grant
    /// for it, or the next refresh knows what to do.
    pub(super) async fn reload_after_spent(&self, seen: &Record) -> Result<(), BrokerError> {
        if is_settled_since(&self.cache.reload(seen.connection.id).await?, seen) {
            return Ok(());
        }
        Err(BrokerError::unavailable(
            "the refresh token was spent a moment ago",
            Duration::from_secs(1),
        ))
    }
}

/// True if the refresh that was needed when the record was `seen` is needed no more.
fn is_settled_since(record: &Record, seen: &Record) -> bool {
    record.generation() > seen.generation() || !record.connection.state.refreshes()
}
