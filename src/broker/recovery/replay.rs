//! What outlived something: grants that a crash left in the spool, and those that a database which went
//! back has forgotten.

use std::io;

use tokio::task::spawn_blocking;

use crate::{
    audit::{By, Kind},
    broker::{
        Broker, BrokerError,
        refresh::commit::settle,
    },
    domain::connection::{HeldGrant, State},
    seal::{Sealed, secret::Digest},
    spool::{Entry, SpooledGrant},
    store::{Commit, retry::retry_forever},
};

impl Broker {
    /// Takes up what a crash of this replica left: stores the grants in the spool, and ends the
    /// claims that nobody is using, so that they are due at once. Called before anything is refreshed.
    ///
    /// # Errors
    ///
    /// When the spool cannot be read, a grant in it needs a key that is missing
    /// ([`BrokerError::Misconfigured`]), or the database does not answer; nothing is lost then.
    pub async fn recover(&self) -> Result<(), BrokerError> {
        let spooled = self.spooled().await?;
        for (entry, _) in &spooled {
            let HeldGrant { access, refresh, .. } = &entry.grant;
            let unknown = |sealed: &&Sealed| !self.keyring.has_key(sealed);
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
        for (entry, kept) in spooled {
            self.recover_grant(entry, kept).await?;
        }
        let abandoned = self.store.expire_leases_of(&self.replica).await?;
        if abandoned > 0 {
            tracing::warn!(abandoned, "refreshes were under way when this replica last ended");
        }
        Ok(())
    }

    async fn spooled(&self) -> Result<Vec<(Entry, SpooledGrant)>, BrokerError> {
        let spool = self.spool.clone();
        let entries = spawn_blocking(move || spool.entries()).await;
        entries.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
            tracing::error!(%error, "the spool cannot be read");
            BrokerError::Internal
        })
    }

    async fn recover_grant(&self, entry: Entry, kept: SpooledGrant) -> Result<(), BrokerError> {
        let id = entry.connection;
        let opens = self.open_access(id, &entry.grant).and(self.open_refresh(id, &entry.grant));
        if opens.is_err() {
            tracing::error!(connection.id = %id, "put aside a grant that does not open");
            kept.set_aside();
            return Ok(());
        }
        // A start that finds no database fails; it does not wait.
        let known = self.store.record_by_id(id).await?;
        if known.is_none() && !self.store.is_deleted(id).await? {
            tracing::error!(connection.id = %id, "put aside a grant of an unknown connection");
            kept.set_aside();
            return Ok(());
        }
        if known.is_some() {
            let mut recovered = false;
            if self.place(&entry).await.is_some() {
                tracing::warn!(connection.id = %id, "stored a grant that a crash had left");
                recovered = true;
            }
            let record = self.refresh_cache(id).await?;
            if recovered {
                self.note_of(Kind::GrantRecovered, &By::broker(), &record.connection, "");
            }
            settle(kept).await;
        } else {
            kept.remove();
        }
        Ok(())
    }

    /// Stores again what this replica has stored and a database that went back has forgotten: the
    /// last grants of one that failed over to a standby, for which nothing else makes up. What is
    /// quarantined stays so.
    pub(crate) async fn replay_recent_grants(&self) {
        let spool = self.spool.clone();
        let remembered = spawn_blocking(move || spool.remembered()).await;
        let remembered = remembered.unwrap_or_else(|error| Err(io::Error::other(error)));
        let entries = remembered.unwrap_or_else(|error| {
            tracing::error!(%error, "what was stored last cannot be read");
            Vec::new()
        });
        for entry in entries {
            self.replay_grant(&entry).await;
        }
    }

    async fn replay_grant(&self, entry: &Entry) {
        let Entry { connection: id, account, grant, refresh_at } = entry;
        while let Some(record) = retry_forever(|| self.store.record_by_id(*id)).await {
            let now_of = record.connection.account.as_ref().map(|account| &account.id);
            let before = record.generation() + 1;
            let revoked = record.connection.state == State::Revoked;
            if revoked || grant.generation < before || account.as_ref() != now_of {
                return;
            }
            let Ok(next) = self.reseal(*id, grant, before) else {
                tracing::error!(connection.id = %id, "a grant that was stored does not open");
                return;
            };
            let refresh_hash =
                self.open_refresh(*id, &next).ok().flatten().as_ref().map(Digest::of);
            let commit = Commit::refreshed(*id, &next, *refresh_at, refresh_hash);
            if retry_forever(|| self.store.durable().commit_grant(&commit)).await {
                tracing::warn!(connection.id = %id, "stored a grant again that was forgotten");
                return;
            }
        }
    }
}
