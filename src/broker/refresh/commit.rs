//! The committer: a received grant on its way into the store, through the spool.
//!
//! A received grant is given up only where its connection was deleted, where it may be of another
//! account than the connection's by now, or, beside a grant that is held, where it brings no refresh
//! token or does not open.

use std::{io, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::{
    broker::{cache::Cache, process::Process, vault::Vault},
    domain::{
        connection::{ConnectionId, State},
        grant::{GrantSlot, OpenGrant, SealedGrant},
        grant_conflict::{self, Candidate, Winner},
        record::Record,
    },
    failpoint::Point,
    os::blocking::blocking,
    seal::{OpenError, Sealed},
    spool::{Entry, Reservation, Spool, SpooledGrant},
    store::{Commit, FallbackGrant, Store, retry::retry_forever},
};

/// The time without an answer from the database after which a grant that is on the disk is served.
const SERVED_UNCOMMITTED: Duration = Duration::from_secs(2);

/// Stores received grants.
#[derive(Debug)]
pub(crate) struct Committer {
    store: Store,
    vault: Arc<Vault>,
    cache: Arc<Cache>,
    spool: Spool,
    process: Arc<Process>,
}

impl Committer {
    pub(crate) fn new(
        store: Store,
        vault: Arc<Vault>,
        cache: Arc<Cache>,
        spool: Spool,
        process: Arc<Process>,
    ) -> Self {
        Self { store, vault, cache, spool, process }
    }

    /// Makes room in the spool for the grant of an attempt.
    pub(crate) async fn reserve(&self, attempt: &str) -> io::Result<Reservation> {
        let (spool, name) = (self.spool.clone(), attempt.to_owned());
        blocking(move || spool.reserve(&name)).await
    }

    /// Seals a grant as the connection's own of this generation, and notes when its access token ends.
    pub(crate) fn seal_live(
        &self,
        id: ConnectionId,
        generation: i64,
        grant: &OpenGrant,
    ) -> SealedGrant {
        let sealed = self.vault.seal(id, GrantSlot::Live { generation }, grant);
        self.cache.note_received(id, grant, &sealed);
        sealed
    }

    /// Writes a received grant to the spool, then stores it, for as long as that takes. Returns its
    /// generation; none when the connection keeps another grant, and this one is a fallback or is
    /// given up.
    ///
    /// `publish` is called when the grant is on the disk and the database keeps us waiting: from then
    /// on readers have it.
    pub(crate) async fn persist_grant(
        &self,
        record: &Record,
        next: SealedGrant,
        refresh_at: Option<Timestamp>,
        reservation: Reservation,
        publish: impl FnOnce(),
    ) -> Option<i64> {
        let account = record.connection.account.as_ref().map(|account| account.id.clone());
        let entry = Entry { connection: record.connection.id, account, grant: next, refresh_at };
        let (spooled, entry) = spawn_blocking(move || (reservation.keep(&entry), entry))
            .await
            .expect("writing a file does not panic");
        let spooled = spooled
            .inspect_err(|error| {
                tracing::error!(%error, "a received grant is in memory only until it is committed");
            })
            .ok();
        self.process.failpoints.reach(Point::Spooled).await;
        let committing = self.commit_or_stash(&entry);
        tokio::pin!(committing);
        let committed = match timeout(SERVED_UNCOMMITTED, &mut committing).await {
            Ok(committed) => committed,
            Err(_) if spooled.is_some() && self.cache.holds(&record.connection) => {
                tracing::warn!("the database does not answer: a grant on the disk is served");
                let grant = Some(entry.grant.clone());
                self.cache.insert(Record { grant, ..record.clone() }).await;
                publish();
                committing.await
            }
            Err(_) => committing.await,
        };
        self.process.failpoints.reach(Point::Committed).await;
        if let Some(spooled) = spooled {
            mark_committed(spooled).await;
        }
        committed
    }

    /// Commits a received grant as the connection's own, or keeps it as a fallback grant. Returns its
    /// generation if the connection holds it now.
    pub(crate) async fn commit_or_stash(&self, entry: &Entry) -> Option<i64> {
        let Entry { connection: id, account, grant, refresh_at } = entry;
        let account = account.as_deref();
        let mut next = grant.clone();
        loop {
            if self.commit(*id, &next, *refresh_at).await {
                return Some(next.generation());
            }
            let record = retry_forever(|| self.store.record_by_id(*id)).await?;
            if record.connection.state == State::Revoked {
                tracing::warn!(connection.id = %id, "dropped a late grant of a deleted connection");
                return None;
            }
            let Some(held) = &record.grant else {
                self.put_fallback(*id, account, &next).await;
                return None;
            };
            self.wait_for_key(held.refresh.as_ref().unwrap_or(&held.access)).await;
            let current = record.connection.account.as_ref().map(|account| account.id.as_str());
            if account.is_some() && account != current {
                tracing::warn!(connection.id = %id, "dropped a late grant of another account");
                return None;
            }
            match self.pick_sibling(*id, held, &next) {
                Winner::Same => return Some(held.generation()),
                Winner::Stored => {
                    self.put_fallback(*id, account, &next).await;
                    return None;
                }
                Winner::Late => {
                    tracing::warn!(connection.id = %id, "a later sibling replaces the grant");
                    self.put_fallback(*id, current, held).await;
                    // It opened when it was read, or was sealed by this very process.
                    next = self.reseal_live(*id, &next, record.generation() + 1).ok()?;
                }
            }
        }
    }

    /// Commits a grant on the generation before its own, for as long as the database takes to answer.
    /// False when the connection does not hold that generation.
    async fn commit(
        &self,
        id: ConnectionId,
        grant: &SealedGrant,
        refresh_at: Option<Timestamp>,
    ) -> bool {
        let refresh_hash = self.vault.refresh_hash(id, grant);
        let commit = Commit::refreshed(id, grant, refresh_at, refresh_hash);
        retry_forever(|| self.store.durable().commit_grant(&commit)).await
    }

    /// Stores a grant again that this replica has stored and the database has forgotten, unless the
    /// connection was deleted, holds a newer generation, or is for another account by now.
    pub(crate) async fn replay(&self, entry: &Entry) {
        let Entry { connection: id, account, grant, refresh_at } = entry;
        while let Some(record) = retry_forever(|| self.store.record_by_id(*id)).await {
            let current = record.connection.account.as_ref().map(|account| &account.id);
            let generation = record.generation() + 1;
            let deleted = record.connection.state == State::Revoked;
            if deleted || grant.generation() < generation || account.as_ref() != current {
                return;
            }
            let Ok(next) = self.reseal_live(*id, grant, generation) else {
                tracing::error!(connection.id = %id, "a grant that was stored does not open");
                return;
            };
            if self.commit(*id, &next, *refresh_at).await {
                tracing::warn!(connection.id = %id, "replayed a grant that the database had forgotten");
                return;
            }
        }
    }

    /// Waits until the key file holds the key of a stored value, for as long as it takes: what cannot
    /// be read can neither be compared with a received grant nor be kept beside it.
    async fn wait_for_key(&self, sealed: &Sealed) {
        let mut pause = Duration::from_millis(100);
        while !self.vault.has_key(sealed) {
            let key = sealed.key_id();
            tracing::error!(key, "a received grant waits for a key that the key file lacks");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    fn pick_sibling(&self, id: ConnectionId, held: &SealedGrant, late: &SealedGrant) -> Winner {
        // The text that is stored is the text that was to be: the answer to the commit was lost.
        if held.access == late.access {
            return Winner::Same;
        }
        let candidate = |grant: &SealedGrant| self.vault.refresh_hash(id, grant);
        grant_conflict::pick_winner(
            &Candidate { refresh: candidate(held), origin: held.origin.as_ref() },
            &Candidate { refresh: candidate(late), origin: late.origin.as_ref() },
        )
    }

    /// Keeps a grant of this account that the connection does not hold. One without a refresh token
    /// is of no use, and the refresh token of one that may be of another account counts as spent.
    pub(crate) async fn put_fallback(
        &self,
        id: ConnectionId,
        account: Option<&str>,
        grant: &SealedGrant,
    ) {
        let Ok(open) = self.vault.open(id, grant) else {
            tracing::error!(connection.id = %id, "dropped a late grant that does not open");
            return;
        };
        let Some(refresh_hash) = open.refresh_hash() else { return };
        let slot = GrantSlot::Fallback { generation: grant.generation() };
        let fallback = FallbackGrant {
            id: Uuid::now_v7(),
            connection: id,
            refresh_hash,
            grant: self.vault.seal(id, slot, &open),
        };
        if retry_forever(|| self.store.durable().put_fallback(&fallback, account)).await {
            tracing::warn!(connection.id = %id, "kept a received grant as a fallback");
        } else {
            tracing::warn!(
                connection.id = %id,
                "dropped a late grant: its account is unknown and a newer consent exists"
            );
        }
    }

    /// Gives a connection whose grant was refused its fallback grant, if there is one; it is due at
    /// once.
    pub(crate) async fn promote_fallback(&self, record: &Record) -> bool {
        let id = record.connection.id;
        let Some(fallback) = retry_forever(|| self.store.fallback(id)).await else {
            return false;
        };
        let SealedGrant { access, refresh, .. } = &fallback.grant;
        self.wait_for_key(refresh.as_ref().unwrap_or(access)).await;
        let Ok(next) = self.reseal_live(id, &fallback.grant, record.generation() + 1) else {
            tracing::error!(connection.id = %id, "a fallback grant does not open");
            return false;
        };
        let promoted = self.commit(id, &next, Some(self.process.clock.now())).await;
        if promoted {
            tracing::warn!(connection.id = %id, "a fallback grant replaces a refused one");
            retry_forever(|| self.store.durable().drop_fallback(fallback.id)).await;
        }
        promoted
    }

    /// Seals a grant anew, as the connection's own of this generation.
    pub(crate) fn reseal_live(
        &self,
        id: ConnectionId,
        grant: &SealedGrant,
        generation: i64,
    ) -> Result<SealedGrant, OpenError> {
        Ok(self.seal_live(id, generation, &self.vault.open(id, grant)?))
    }
}

/// Moves a stored grant out of the spool.
pub(crate) async fn mark_committed(spooled: SpooledGrant) {
    // A failure is logged there.
    let _ = spawn_blocking(move || spooled.mark_committed()).await;
}
