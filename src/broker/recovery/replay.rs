//! Startup recovery: replays spooled grants and expires this replica's leases. Also replays the grants
//! that a database which went back has forgotten.

use super::Recovery;
use crate::{
    audit::{Actor, EventKind},
    broker::{BrokerError, refresh::commit::mark_committed},
    domain::grant::SealedGrant,
    os::blocking::blocking,
    seal::Sealed,
    spool::{Entry, SpooledGrant},
};

impl Recovery {
    /// Takes up what a crash of this replica left: stores the grants in the spool, and ends the
    /// claims that nobody is using, so that they are due at once. Called before anything is refreshed.
    ///
    /// # Errors
    ///
    /// When the spool cannot be read, a grant in it needs a key that is missing
    /// ([`BrokerError::Misconfigured`]), or the database does not answer; nothing is lost then.
    pub(crate) async fn recover(&self) -> Result<(), BrokerError> {
        let spooled = self.spooled().await?;
        for (entry, _) in &spooled {
            let SealedGrant { access, refresh, .. } = &entry.grant;
            let unknown = |sealed: &&Sealed| !self.vault.has_key(sealed);
            if let Some(sealed) =
                [Some(access), refresh.as_ref()].into_iter().flatten().find(unknown)
            {
                let key = sealed.key_id().unwrap_or_default();
                return Err(BrokerError::Misconfigured(format!(
                    "sealing key: a received grant in `state_dir` is sealed with key `{key}`, which is \
                     not in the key file: put it back, and take it out after the next rotation"
                )));
            }
        }
        for (entry, spooled_grant) in spooled {
            self.recover_grant(entry, spooled_grant).await?;
        }
        let expired = self.store.expire_leases_of(&self.process.replica).await?;
        if expired > 0 {
            tracing::warn!(expired, "refreshes were under way when this replica last ended");
        }
        Ok(())
    }

    async fn spooled(&self) -> Result<Vec<(Entry, SpooledGrant)>, BrokerError> {
        let spool = self.spool.clone();
        blocking(move || spool.entries()).await.map_err(|error| {
            tracing::error!(%error, "the spool cannot be read");
            BrokerError::Internal
        })
    }

    async fn recover_grant(
        &self,
        entry: Entry,
        spooled_grant: SpooledGrant,
    ) -> Result<(), BrokerError> {
        let id = entry.connection;
        if self.vault.open(id, &entry.grant).is_err() {
            tracing::error!(connection.id = %id, "put aside a grant that does not open");
            spooled_grant.set_aside();
            return Ok(());
        }
        // A start that finds no database fails; it does not wait.
        let known = self.store.record_by_id(id).await?;
        if known.is_none() && !self.store.is_deleted(id).await? {
            tracing::error!(connection.id = %id, "put aside a grant of an unknown connection");
            spooled_grant.set_aside();
            return Ok(());
        }
        if known.is_some() {
            let mut recovered = false;
            if self.committer.commit_or_stash(&entry).await.is_some() {
                tracing::warn!(connection.id = %id, "stored a grant that a crash had left");
                recovered = true;
            }
            let record = self.cache.reload(id).await?;
            if recovered {
                self.audit.emit_for(
                    EventKind::GrantRecovered,
                    &Actor::broker(),
                    &record.connection,
                    "",
                );
            }
            mark_committed(spooled_grant).await;
        } else {
            spooled_grant.remove();
        }
        Ok(())
    }

    /// Stores again what this replica has stored and a database that went back has forgotten: the
    /// last grants of one that failed over to a standby, for which nothing else makes up. What is
    /// quarantined stays so.
    pub(crate) async fn replay_recent_grants(&self) {
        let spool = self.spool.clone();
        let entries = blocking(move || spool.remembered()).await.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the grants that were stored last");
            Vec::new()
        });
        for entry in entries {
            self.committer.replay(&entry).await;
        }
    }
}
