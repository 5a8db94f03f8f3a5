//! What follows an answer to a refresh: the grant is kept, or the reason why there is none.

use std::{io, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::{task::spawn_blocking, time::sleep};

use super::{Broker, BrokerError, ReceivedGrant};
use crate::{
    client::Client,
    clock::SinceBoot,
    connection::{
        Connection, ConnectionId, GrantType, HeldGrant, LastError, Record, State, backoff,
        refresh_at,
    },
    provider::{Grant, ProviderError, Rotation, Verdict},
    seal::Place,
    secret::{self, Digest},
    spool::{Entry, Slot},
    store::{self, StoreError},
};

/// How long to leave our own misconfiguration alone before trying again.
const MISCONFIGURED_PAUSE: Duration = Duration::from_mins(1);

/// One refresh under way, with the room for what it brings.
pub(super) struct Attempt {
    pub(super) id: String,
    pub(super) slot: Slot,
    /// The digest of the refresh token that is presented.
    pub(super) spent: Option<Digest>,
    /// The provider has refused that token.
    pub(super) refused: bool,
    /// The claim is no ground for sending any more after this.
    pub(super) send_before: SinceBoot,
}

/// Takes a step of the store, for as long as it takes: what was learned from a provider exists
/// nowhere else and is never dropped because the database is away.
pub(super) async fn until_stored<T, F>(step: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match step().await {
            Ok(done) => return done,
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "what a provider answered is not stored yet; trying again"
            ),
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

impl Broker {
    /// Stores a grant that a refresh brought, then publishes it.
    pub(super) async fn store_refreshed(
        &self,
        client: &Client,
        record: &Record,
        attempt: Attempt,
        grant: &Grant,
        sent_at: Timestamp,
    ) -> Result<Record, BrokerError> {
        let connection = &record.connection;
        let (next, refresh_hash) = self.next_grant(record, &attempt, grant, sent_at);
        let stored = self.store_grant(client, record, &next, refresh_hash, attempt.slot).await;
        let after = self.reload(connection.id).await?;
        if !stored {
            // The connection holds a newer grant: a consent, most likely. That one stands.
            return Ok(after);
        }
        tracing::info!(
            connection = %connection.name, provider = %client.profile.name,
            generation = next.generation, expires_at = %next.expires_at, "refreshed"
        );
        Ok(after)
    }

    /// The grant that follows what the connection holds, with the digest of its refresh token. One
    /// that the answer leaves out stays as it was (RFC 6749 section 6), unless it was refused.
    fn next_grant(
        &self,
        record: &Record,
        attempt: &Attempt,
        grant: &Grant,
        sent_at: Timestamp,
    ) -> (HeldGrant, Option<Digest>) {
        let connection = &record.connection;
        let kept = match (&grant.refresh, &record.grant) {
            // It was opened a moment ago, to be sent.
            (None, Some(held)) if !attempt.refused => {
                self.open_refresh(connection.id, held).unwrap_or_default()
            }
            _ => None,
        };
        let scopes = grant
            .scopes
            .clone()
            .or_else(|| record.grant.as_ref().map(|held| held.scopes.clone()))
            .unwrap_or_else(|| connection.scopes.clone());
        let refresh = grant.refresh.as_ref().or(kept.as_ref());
        let received = ReceivedGrant {
            access: &grant.access,
            refresh,
            scopes,
            received_at: sent_at,
            expires_at: sent_at + grant.expires_in,
        };
        let next = self.seal_grant(connection.id, record.generation() + 1, received);
        (next, refresh.map(Digest::of))
    }

    fn open_refresh(
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
            .map_err(|_| BrokerError::Integrity)
    }

    /// Puts a received grant where a crash cannot reach it, then into the database, for as long as
    /// that takes. False when the connection holds another grant by now; this one is put aside then.
    async fn store_grant(
        &self,
        client: &Client,
        record: &Record,
        next: &HeldGrant,
        refresh_hash: Option<Digest>,
        slot: Slot,
    ) -> bool {
        let refresh_at = due_at(client, &record.connection, next);
        let entry = Entry { connection: record.connection.id, grant: next.clone(), refresh_at };
        let commit = store::Commit {
            connection: record.connection.id,
            grant: next,
            refresh_at,
            account: None,
            vars: None,
            scopes: None,
            refresh_hash,
        };
        let kept = spawn_blocking(move || slot.keep(&entry)).await;
        let kept = match kept.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::error!(%error, "a received grant is in memory only until it is committed");
                None
            }
        };
        let stored = until_stored(|| self.store.commit_grant(&commit)).await;
        match kept {
            Some(kept) if stored => kept.forget(),
            Some(kept) => {
                tracing::error!("a received grant was put aside: the connection holds another");
                kept.set_aside();
            }
            None => {}
        }
        stored
    }

    /// Records why a refresh brought nothing. The stored tokens stay as they are, but for a new
    /// refresh token that could be taken out of an unusable answer.
    pub(super) async fn record_failure(
        &self,
        client: &Client,
        record: &Record,
        attempt: Attempt,
        error: ProviderError,
    ) -> Result<(), BrokerError> {
        let connection = &record.connection;
        let Attempt { id: attempt, slot, spent, .. } = attempt;
        let mut from = record.generation();
        if let (Some(refresh), Some(held)) = (&error.salvaged_refresh, &record.grant)
            && spent != Some(Digest::of(refresh))
            // Within a grace the old one brings a whole new pair.
            && client.profile.tokens.rotation != Rotation::Grace
        {
            let next = self.salvage(connection.id, held, refresh)?;
            let refresh_hash = Some(Digest::of(refresh));
            if self.store_grant(client, record, &next, refresh_hash, slot).await {
                tracing::warn!("kept the refresh token of an unusable answer");
                // That ended the attempt; what is recorded below belongs to a new one.
                from = next.generation;
                let lease = Duration::from_secs(1);
                until_stored(|| self.store.claim(connection.id, &attempt, from, None, lease)).await;
            }
        }
        let failures = connection.failures.saturating_add(1);
        let mut seed = [0; 2];
        seed.copy_from_slice(&secret::random_bytes::<2>());
        let pause = match &error.verdict {
            Verdict::Misconfigured => MISCONFIGURED_PAUSE,
            Verdict::Busy { retry_after: Some(after) } => {
                (*after).max(backoff(failures, u16::from_be_bytes(seed)))
            }
            _ => backoff(failures, u16::from_be_bytes(seed)),
        };
        let now = self.clock.now();
        let (state, reason) = state_after(&error.verdict, record);
        let last_error = LastError {
            code: match error.verdict {
                Verdict::Misconfigured => "provider_misconfigured".to_owned(),
                _ => error.code.clone(),
            },
            message: error.message.clone(),
            at: now,
        };
        let next = (state != State::NeedsConsent).then(|| now + pause);
        tracing::warn!(
            connection = %connection.name, provider = %client.profile.name, verdict = ?error.verdict,
            status = error.status, code = error.code, state = %state, "refresh failed: {}", error.message
        );
        let failure = store::Failure {
            connection: connection.id,
            from_generation: from,
            attempt: &attempt,
            state,
            reason: reason.as_deref(),
            error: &last_error,
            refresh_at: next,
            failures,
        };
        let recorded = until_stored(|| self.store.record_failure(&failure)).await;
        let after = self.reload(connection.id).await?;
        if !recorded && after.generation() > from {
            // A consent brought a newer grant meanwhile: the failure is of no interest any more.
            return Ok(());
        }
        Err(match error.verdict {
            Verdict::Refused { .. } if state == State::NeedsConsent => {
                BrokerError::ConsentRequired { reason: reason.unwrap_or_default() }
            }
            Verdict::Misconfigured => BrokerError::Misconfigured(error.message),
            _ => BrokerError::Unavailable { reason: error.message, retry_after: pause },
        })
    }

    /// The held access token with a new refresh token.
    fn salvage(
        &self,
        id: ConnectionId,
        held: &HeldGrant,
        refresh: &SecretString,
    ) -> Result<HeldGrant, BrokerError> {
        let record = id.to_string();
        let place = Place { record: &record, field: "access", generation: held.generation };
        let access = self.keyring.open(place, &held.access).map_err(|_| BrokerError::Integrity)?;
        let received = ReceivedGrant {
            access: &access,
            refresh: Some(refresh),
            scopes: held.scopes.clone(),
            received_at: held.received_at,
            expires_at: held.expires_at,
        };
        Ok(self.seal_grant(id, held.generation + 1, received))
    }

    /// There is nothing to present, or nothing that may be presented again. While the access token
    /// lives it is served; when it has ended, a person must consent.
    pub(super) async fn await_consent(
        &self,
        record: &Record,
        reason: &str,
    ) -> Result<(), BrokerError> {
        let id = record.connection.id;
        match record.grant.as_ref().map(|grant| grant.expires_at) {
            Some(end) if end > self.clock.now() => self.store.postpone(id, end).await?,
            _ => self.store.set_state(id, State::NeedsConsent, Some(reason)).await?,
        };
        self.reload(id).await?;
        Err(BrokerError::ConsentRequired { reason: reason.to_owned() })
    }

    /// Takes up what a crash of this replica left: stores the grants in the spool, and ends the
    /// claims that nobody is using, so that they are due at once. Called before anything is refreshed.
    ///
    /// # Errors
    ///
    /// When the spool cannot be read or the database does not answer; nothing is lost then.
    pub async fn recover(&self) -> Result<(), BrokerError> {
        self.recover_spool().await?;
        let abandoned = self.store.abandon(&self.replica).await?;
        if abandoned > 0 {
            tracing::warn!(abandoned, "refreshes were under way when this replica last ended");
        }
        Ok(())
    }

    async fn recover_spool(&self) -> Result<(), BrokerError> {
        let spool = self.spool.clone();
        let entries = spawn_blocking(move || spool.entries()).await;
        let entries = entries.unwrap_or_else(|error| Err(io::Error::other(error)));
        let entries = entries.map_err(|error| {
            tracing::error!(%error, "the spool cannot be read");
            BrokerError::Internal
        })?;
        for (entry, kept) in entries {
            let Entry { connection, grant, refresh_at } = &entry;
            let Ok(refresh) = self.open_refresh(*connection, grant) else {
                tracing::error!(connection.id = %connection, "put aside a grant that does not open");
                kept.set_aside();
                continue;
            };
            let refresh_hash = refresh.as_ref().map(Digest::of);
            let commit = store::Commit {
                connection: *connection,
                grant,
                refresh_at: *refresh_at,
                account: None,
                vars: None,
                scopes: None,
                refresh_hash,
            };
            if self.store.commit_grant(&commit).await? {
                tracing::warn!(connection.id = %connection, "stored a grant that a crash had left");
                kept.forget();
            } else if self.holds(*connection, grant).await? {
                kept.forget();
            } else {
                tracing::error!(connection.id = %connection, "put a grant aside: another is held");
                kept.set_aside();
            }
            self.reload(*connection).await.map(drop).or_else(|error| match error {
                // The connection was deleted meanwhile.
                BrokerError::Revoked => Ok(()),
                error => Err(error),
            })?;
        }
        Ok(())
    }

    /// Whether the database has exactly this grant already.
    async fn holds(&self, id: ConnectionId, grant: &HeldGrant) -> Result<bool, BrokerError> {
        let held = self.store.record_by_id(id).await?.and_then(|record| record.grant);
        Ok(held.is_some_and(|held| held.access == grant.access))
    }
}

/// When to look at the connection again: when its token should be refreshed, or, where that is not
/// possible, when it ends.
pub(super) fn due_at(
    client: &Client,
    connection: &Connection,
    grant: &HeldGrant,
) -> Option<Timestamp> {
    let refreshes = grant.refresh.is_some() && client.profile.grants.refresh_token.is_some();
    if refreshes || connection.grant_type == GrantType::ClientCredentials {
        refresh_at(connection.id, grant)
    } else {
        Some(grant.expires_at)
    }
}

/// Where a failed refresh leaves the connection. Our own misconfiguration leaves it where it was,
/// and no grant that nobody consented to ever needs consent.
fn state_after(verdict: &Verdict, record: &Record) -> (State, Option<String>) {
    let connection = &record.connection;
    match verdict {
        Verdict::Refused { reason } if connection.grant_type == GrantType::AuthorizationCode => {
            // An earlier presentation that nobody knows the end of explains the refusal: the
            // provider has replaced the token, and its answer was lost on the way.
            let lost = record.open_attempts > 0;
            let reason = if lost { "lost_in_rotation" } else { reason };
            (State::NeedsConsent, Some(reason.to_owned()))
        }
        Verdict::Misconfigured => (connection.state, connection.reason.clone()),
        Verdict::Ambiguous => (State::Uncertain, None),
        Verdict::Refused { .. } | Verdict::Busy { .. } | Verdict::NotSent | Verdict::Retry => {
            (State::BackingOff, None)
        }
    }
}
