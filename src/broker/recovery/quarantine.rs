//! A restored or copied database is quarantined before anything is refreshed from it.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::MutexGuard;

use super::watermark::LastSeen;
use crate::{
    audit::{Actor, EventKind},
    broker::{Broker, BrokerError},
    domain::{
        connection::{Connection, State},
        database_identity::{Comparison, Identity, Mismatch, compare},
    },
    store::StoreError,
};

impl Broker {
    /// Looks whether the database is the one that this replica last saw, and no older. If it is not,
    /// all that it would refresh is quarantined before this returns. Takes note of what it sees.
    ///
    /// # Errors
    ///
    /// When the database does not answer; nothing is noted then.
    pub async fn check_database(&self) -> Result<(), StoreError> {
        let seen = self.watermark.lock().await;
        self.look(seen).await
    }

    /// Takes note of a grant that was stored a moment ago.
    pub(crate) fn raise_watermark(self: &Arc<Self>) {
        let broker = Arc::clone(self);
        self.tasks.spawn(async move {
            // Many grants may be stored at once: the next look notes those that this one misses.
            let Ok(seen) = broker.watermark.try_lock() else { return };
            if let Err(error) = broker.look(seen).await {
                tracing::debug!(%error, "the watermark stays a moment behind the database");
            }
        });
    }

    async fn look(&self, mut seen: MutexGuard<'_, LastSeen>) -> Result<(), StoreError> {
        let mut found = self.store.identity().await?;
        match compare(seen.watermark.as_ref(), &found) {
            Comparison::First | Comparison::Same => {}
            Comparison::Failover => {
                tracing::warn!("a standby of the database was promoted");
                self.replay_recent_grants().await;
            }
            Comparison::Noticed => {
                tracing::warn!("another replica has quarantined the database");
                self.replay_recent_grants().await;
                self.rebuild_cache().await?;
            }
            Comparison::Mismatched(doubt) => {
                let before = seen.watermark.as_ref().map_or(0, |seen| seen.position.quarantines);
                let quarantines = before.max(found.position.quarantines) + 1;
                if !self.quarantine(doubt, &found, quarantines).await? {
                    // Another replica did it at this moment, as the next look finds.
                    return Ok(());
                }
                found.position.quarantines = quarantines;
                if doubt != Mismatch::Clone {
                    self.replay_recent_grants().await;
                }
                self.rebuild_cache().await?;
            }
        }
        if let (None, Some(system)) = (&found.home, &found.system) {
            self.store.remember_cluster(system).await?;
        }
        seen.raise(&found).await;
        if let Some(seen) = &seen.watermark {
            self.store.expect(seen);
        }
        Ok(())
    }

    /// False when another replica did it first.
    async fn quarantine(
        &self,
        doubt: Mismatch,
        found: &Identity,
        quarantines: i64,
    ) -> Result<bool, StoreError> {
        let stopped = self.store.quarantine(found, quarantines, doubt.reason()).await?;
        if stopped.is_some() {
            let record = self.record(EventKind::ConnectionsQuarantined, &Actor::broker());
            self.note(&record.with_detail(doubt.reason()));
        }
        match stopped {
            None => return Ok(false),
            Some(0) => tracing::warn!("{doubt}; it holds nothing to refresh"),
            Some(connections) => tracing::error!(
                connections,
                "{doubt}. ALL CONNECTIONS ARE QUARANTINED: live tokens are served, nothing is \
                 refreshed until `token-broker release CONNECTION` or `--all`; see `token-broker \
                 release --plan` first"
            ),
        }
        Ok(true)
    }

    /// Takes everything from the store again: what memory holds may be ahead of it.
    async fn rebuild_cache(&self) -> Result<(), StoreError> {
        let all = self.store.changed_since(Timestamp::UNIX_EPOCH).await?;
        self.memory.clear();
        for record in all.records {
            self.cache_record(record).await;
        }
        Ok(())
    }
}

/// Nobody consents or confirms for a connection that is quarantined: what it would replace may be
/// live elsewhere.
pub(crate) fn ensure_not_quarantined(connection: &Connection) -> Result<(), BrokerError> {
    if connection.state != State::Quarantined {
        return Ok(());
    }
    Err(BrokerError::Conflict(format!(
        "connection `{}` is quarantined because the database looks restored or copied; an operator \
         must release it first: `token-broker release {0}`",
        connection.name
    )))
}
