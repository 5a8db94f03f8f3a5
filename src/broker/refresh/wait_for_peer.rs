//! A refresh that somebody else was quicker with: what they bring is waited for.

use std::time::Duration;

use tokio::time::sleep;

use super::{being_stopped, in_flight::RefreshReason};
use crate::{
    broker::{Broker, BrokerError},
    domain::connection::{ConnectionId, Record},
};

impl Broker {
    /// Another replica is refreshing: whoever needs its grant waits for as long as its lease may last,
    /// unless this process ends.
    pub(crate) async fn wait_for_other_replica(
        &self,
        id: ConnectionId,
        seen: &Record,
        at_most: Duration,
        why: RefreshReason,
    ) -> Result<(), BrokerError> {
        if why == RefreshReason::Due {
            return Ok(());
        }
        let other = self.closing.run_until_cancelled(self.wait_for_other(id, seen, at_most));
        other.await.unwrap_or_else(|| Err(being_stopped()))
    }

    async fn wait_for_other(
        &self,
        id: ConnectionId,
        seen: &Record,
        at_most: Duration,
    ) -> Result<(), BrokerError> {
        let waited = self.clock.stopwatch();
        while waited.elapsed() < at_most {
            sleep(Duration::from_millis(250)).await;
            let record = self.refresh_cache(id).await?;
            if is_over(&record, seen) {
                return Ok(());
            }
            if record.connection.last_error.as_ref().is_some_and(|error| {
                record.connection.refresh_at.is_some_and(|at| at > self.clock.now())
                    && Duration::try_from(self.clock.now().duration_since(error.at))
                        .is_ok_and(|ago| ago <= waited.elapsed())
            }) {
                break;
            }
        }
        Err(BrokerError::Unavailable {
            reason: "another replica is refreshing this connection".to_owned(),
            retry_after: Duration::from_secs(2),
        })
    }

    /// The refresh token was spent or refused between two looks: somebody has a grant for it, or the
    /// next refresh knows what to do.
    pub(crate) async fn reload_after_spent(
        &self,
        id: ConnectionId,
        seen: &Record,
    ) -> Result<(), BrokerError> {
        if is_over(&self.refresh_cache(id).await?, seen) {
            return Ok(());
        }
        Err(BrokerError::Unavailable {
            reason: "the refresh token was spent a moment ago".to_owned(),
            retry_after: Duration::from_secs(1),
        })
    }
}

/// Whether nobody has to wait for a refresh any more that was needed when the record was `seen`.
fn is_over(record: &Record, seen: &Record) -> bool {
    record.generation() > seen.generation() || !record.connection.state.refreshes()
}
