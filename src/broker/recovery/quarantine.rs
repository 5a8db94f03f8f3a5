//! Quarantine: a restored or copied database is quarantined before anything is refreshed from it.

use std::sync::Arc;

use tokio::sync::MutexGuard;

use super::{LastSeen, Recovery};
use crate::{
    audit::{Actor, EventKind},
    domain::database_identity::{Comparison, Identity, Mismatch, compare},
    store::StoreError,
};

impl Recovery {
    /// Looks whether the database is the one that this replica last saw, and no older. If it is not,
    /// all that it would refresh is quarantined before this returns. Takes note of what it sees.
    pub(crate) async fn check_database(&self) -> Result<(), StoreError> {
        let seen = self.watermark.lock().await;
        self.verify(seen).await
    }

    /// Takes note of a grant that was stored a moment ago.
    pub(crate) fn raise_watermark(self: &Arc<Self>) {
        let recovery = Arc::clone(self);
        self.process.tasks.spawn(async move {
            // Many grants may be stored at once: the next look notes those that this one misses.
            let Ok(seen) = recovery.watermark.try_lock() else { return };
            if let Err(error) = recovery.verify(seen).await {
                tracing::debug!(%error, "the watermark stays a moment behind the database");
            }
        });
    }

    async fn verify(&self, mut seen: MutexGuard<'_, LastSeen>) -> Result<(), StoreError> {
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
                self.cache.rebuild().await?;
            }
            Comparison::Mismatched(mismatch) => {
                let before = seen.watermark.as_ref().map_or(0, |seen| seen.position.quarantines);
                let quarantines = before.max(found.position.quarantines) + 1;
                if !self.quarantine(mismatch, &found, quarantines).await? {
                    // Another replica did it at this moment, as the next look finds.
                    return Ok(());
                }
                found.position.quarantines = quarantines;
                if mismatch != Mismatch::Clone {
                    self.replay_recent_grants().await;
                }
                self.cache.rebuild().await?;
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
        mismatch: Mismatch,
        found: &Identity,
        quarantines: i64,
    ) -> Result<bool, StoreError> {
        let stopped = self.store.quarantine(found, quarantines, mismatch.reason()).await?;
        if stopped.is_some() {
            let event = self.audit.event(EventKind::ConnectionsQuarantined, &Actor::broker());
            self.audit.emit(&event.with_detail(mismatch.reason()));
        }
        match stopped {
            None => return Ok(false),
            Some(0) => tracing::warn!("{mismatch}; it holds nothing to refresh"),
            Some(connections) => tracing::error!(
                connections,
                "{mismatch}. ALL CONNECTIONS ARE QUARANTINED: live tokens are served, nothing is \
                 refreshed until `token-broker release CONNECTION` or `--all`; see `token-broker \
                 release --plan` first"
            ),
        }
        Ok(true)
    }
}
