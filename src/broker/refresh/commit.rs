//! A received grant on its way into the database: through the spool, past whatever took its place,
//! and out of the spool again. Nothing here gives a grant up but one that may be of another account
//! than the connection's by now, or of a connection that was deleted.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::{
    broker::{Broker, BrokerError, ReceivedGrant},
    domain::{
        connection::{Connection, ConnectionId, GrantType, HeldGrant, Record, State, refresh_at},
        grant_conflict::{self, Candidate, Winner},
    },
    failpoint::Point,
    provider::client::Client,
    seal::{Place, Sealed, secret::Digest},
    spool::{Entry, Reservation, SpooledGrant},
    store::{Commit, FallbackGrant, retry::retry_forever},
};

/// After how long without an answer from the database a grant that is safe on the disk is served.
const SERVED_UNCOMMITTED: Duration = Duration::from_secs(2);

impl Broker {
    /// Puts a received grant where a crash cannot reach it, then into the database, for as long as
    /// that takes. Returns its generation; none when the connection keeps another grant, and this
    /// one lies in escrow or is given up.
    ///
    /// `served` is called when the grant is on the disk and the database keeps us waiting: from
    /// then on readers have it.
    pub(crate) async fn keep(
        &self,
        record: &Record,
        next: HeldGrant,
        refresh_at: Option<Timestamp>,
        slot: Reservation,
        served: impl FnOnce(),
    ) -> Option<i64> {
        let account = record.connection.account.as_ref().map(|account| account.id.clone());
        let entry = Entry { connection: record.connection.id, account, grant: next, refresh_at };
        let (kept, entry) = spawn_blocking(move || (slot.keep(&entry), entry))
            .await
            .expect("writing a file does not panic");
        let kept = kept
            .inspect_err(|error| {
                tracing::error!(%error, "a received grant is in memory only until it is committed");
            })
            .ok();
        self.failpoints.reach(Point::Spooled).await;
        let placing = self.place(&entry);
        tokio::pin!(placing);
        let placed = match timeout(SERVED_UNCOMMITTED, &mut placing).await {
            Ok(placed) => placed,
            Err(_) if kept.is_some() && self.memory.holds(&record.connection) => {
                tracing::warn!("the database keeps us waiting: a grant on the disk is served");
                let grant = Some(entry.grant.clone());
                self.cache_record(Record { grant, ..record.clone() }).await;
                served();
                placing.await
            }
            Err(_) => placing.await,
        };
        self.failpoints.reach(Point::Committed).await;
        if let Some(kept) = kept {
            settle(kept).await;
        }
        placed
    }

    /// Finds the place of a received grant in the database: the connection's own, or escrow.
    pub(crate) async fn place(&self, entry: &Entry) -> Option<i64> {
        let Entry { connection: id, account, grant, refresh_at } = entry;
        let account = account.as_deref();
        let mut next = grant.clone();
        loop {
            let refresh = self.open_refresh(*id, &next).ok().flatten();
            let refresh_hash = refresh.as_ref().map(Digest::of);
            let commit = Commit::refreshed(*id, &next, *refresh_at, refresh_hash);
            if retry_forever(|| self.store.durable().commit_grant(&commit)).await {
                return Some(next.generation);
            }
            let record = retry_forever(|| self.store.record_by_id(*id)).await?;
            if record.connection.state == State::Revoked {
                tracing::warn!(connection.id = %id, "a late grant of a deleted connection is dropped");
                return None;
            }
            let Some(held) = &record.grant else {
                self.put_fallback(*id, account, &next).await;
                return None;
            };
            self.wait_for_key(held.refresh.as_ref().unwrap_or(&held.access)).await;
            let now_of = record.connection.account.as_ref().map(|account| account.id.as_str());
            if account.is_some() && account != now_of {
                tracing::warn!(connection.id = %id, "a late grant of another account is dropped");
                return None;
            }
            match self.choose(*id, held, &next) {
                Winner::Either => return Some(held.generation),
                Winner::Held => {
                    self.put_fallback(*id, account, &next).await;
                    return None;
                }
                Winner::Late => {
                    tracing::warn!(connection.id = %id, "a later sibling takes the grant's place");
                    self.put_fallback(*id, now_of, held).await;
                    // It opened when it was read, or was sealed by this very process.
                    next = self.reseal(*id, &next, record.generation() + 1).ok()?;
                }
            }
        }
    }

    /// Waits until the key file holds the key of a stored value, for as long as it takes: what cannot
    /// be read can neither be compared with a received grant nor be kept beside it.
    async fn wait_for_key(&self, sealed: &Sealed) {
        let mut pause = Duration::from_millis(100);
        while !self.keyring.has_key(sealed) {
            let key = sealed.key_id();
            tracing::error!(key, "a received grant waits for a key that the key file lacks");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    fn choose(&self, id: ConnectionId, held: &HeldGrant, late: &HeldGrant) -> Winner {
        // The text that is stored is the text that was to be: the answer to the commit went lost.
        if held.access == late.access {
            return Winner::Either;
        }
        let contender = |grant: &HeldGrant| {
            let refresh = self.open_refresh(id, grant).ok().flatten();
            refresh.as_ref().map(Digest::of)
        };
        grant_conflict::keep(
            &Candidate { refresh: contender(held), origin: held.origin.as_ref() },
            &Candidate { refresh: contender(late), origin: late.origin.as_ref() },
        )
    }

    /// Keeps a grant of this account that the connection does not hold. One without a refresh token
    /// is of no use, and one that may be of another account is buried.
    pub(crate) async fn put_fallback(
        &self,
        id: ConnectionId,
        account: Option<&str>,
        grant: &HeldGrant,
    ) {
        let (Ok(access), Ok(Some(refresh))) =
            (self.open_access(id, grant), self.open_refresh(id, grant))
        else {
            return;
        };
        let text = id.to_string();
        let seal = |field, secret| {
            let place = Place { record: &text, field, generation: grant.generation };
            self.keyring.seal(place, secret)
        };
        let escrowed = FallbackGrant {
            id: Uuid::now_v7(),
            connection: id,
            generation: grant.generation,
            access: seal("escrow.access", &access),
            refresh: seal("escrow.refresh", &refresh),
            refresh_hash: Digest::of(&refresh),
            scopes: grant.scopes.clone(),
            received_at: grant.received_at,
            expires_at: grant.expires_at,
            origin: grant.origin.clone(),
        };
        if retry_forever(|| self.store.durable().put_fallback(&escrowed, account)).await {
            tracing::warn!(connection.id = %id, "a received grant lies in escrow");
        } else {
            tracing::warn!(
                connection.id = %id,
                "a late grant of nobody knows whose account is dropped: somebody consented meanwhile"
            );
        }
    }

    /// Gives a connection whose grant was refused the one that lies in escrow for it, if there is
    /// one; it is due at once.
    pub(crate) async fn promote_fallback(&self, record: &Record) -> bool {
        let id = record.connection.id;
        let Some(escrowed) = retry_forever(|| self.store.fallback(id)).await else {
            return false;
        };
        self.wait_for_key(&escrowed.refresh).await;
        let text = id.to_string();
        let open = |field, sealed: &Sealed| {
            let place = Place { record: &text, field, generation: escrowed.generation };
            self.keyring.open(place, sealed)
        };
        let (Ok(access), Ok(refresh)) =
            (open("escrow.access", &escrowed.access), open("escrow.refresh", &escrowed.refresh))
        else {
            tracing::error!(connection.id = %id, "a grant in escrow does not open");
            return false;
        };
        let received = ReceivedGrant {
            access: &access,
            refresh: Some(&refresh),
            scopes: escrowed.scopes.clone(),
            received_at: escrowed.received_at,
            expires_at: escrowed.expires_at,
            origin: escrowed.origin.clone(),
        };
        let next = self.seal_grant(id, record.generation() + 1, received);
        let due_now = Some(self.clock.now());
        let commit = Commit::refreshed(id, &next, due_now, Some(escrowed.refresh_hash));
        let taken = retry_forever(|| self.store.durable().commit_grant(&commit)).await;
        if taken {
            tracing::warn!(connection.id = %id, "a refused grant gives way to the one in escrow");
            retry_forever(|| self.store.durable().drop_fallback(escrowed.id)).await;
        }
        taken
    }

    pub(crate) fn reseal(
        &self,
        id: ConnectionId,
        grant: &HeldGrant,
        generation: i64,
    ) -> Result<HeldGrant, BrokerError> {
        let (access, refresh) = (self.open_access(id, grant)?, self.open_refresh(id, grant)?);
        let received = ReceivedGrant {
            access: &access,
            refresh: refresh.as_ref(),
            scopes: grant.scopes.clone(),
            received_at: grant.received_at,
            expires_at: grant.expires_at,
            origin: grant.origin.clone(),
        };
        Ok(self.seal_grant(id, generation, received))
    }

    pub(crate) fn open_access(
        &self,
        id: ConnectionId,
        held: &HeldGrant,
    ) -> Result<SecretString, BrokerError> {
        let id = id.to_string();
        let place = Place { record: &id, field: "access", generation: held.generation };
        self.keyring.open(place, &held.access).map_err(BrokerError::from)
    }

    pub(crate) fn open_refresh(
        &self,
        id: ConnectionId,
        held: &HeldGrant,
    ) -> Result<Option<SecretString>, BrokerError> {
        let id = id.to_string();
        let place = Place { record: &id, field: "refresh", generation: held.generation };
        held.refresh
            .as_ref()
            .map(|sealed| self.keyring.open(place, sealed))
            .transpose()
            .map_err(BrokerError::from)
    }
}

/// Moves a stored grant out of the spool.
pub(crate) async fn settle(kept: SpooledGrant) {
    // What goes wrong is in the log already.
    let _ = spawn_blocking(move || kept.settle()).await;
}

/// When to look at the connection again: when its token should be refreshed, or its refresh token
/// used lest it die of disuse; where there is none, when the access token ends.
pub(crate) fn due_at(
    client: &Client,
    connection: &Connection,
    grant: &HeldGrant,
) -> Option<Timestamp> {
    let tokens = &client.profile.tokens;
    if grant.refresh.is_some() && client.profile.grants.refresh_token.is_some() {
        let alive = grant.received_at + tokens.keep_alive();
        Some(refresh_at(connection.id, grant).map_or(alive, |at| at.min(alive)))
    } else if connection.grant_type == GrantType::ClientCredentials {
        refresh_at(connection.id, grant)
    } else {
        Some(grant.expires_at)
    }
}
