//! What follows an answer to a refresh: the grant is kept, or the reason why there is none.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;

use super::{
    Attempt, Nothing,
    commit::due_at,
    in_flight::RefreshReason,
};
use crate::{
    audit::{By, Kind},
    broker::{
        Broker, BrokerError, ReceivedGrant,
        limits::mass_refusal::{MassRefusal, RefusalWeight},
    },
    domain::{
        connection::{ConnectionId, GrantType, HeldGrant, LastError, Record, State, backoff},
        grant_conflict::GrantLineage,
    },
    failpoint::Point,
    provider::{Grant, ProviderError, Rotation, Verdict, client::Client},
    seal::secret::{self, Digest},
    store::{self, retry::retry_forever},
};

/// How long to leave our own misconfiguration alone before trying again.
const MISCONFIGURED_PAUSE: Duration = Duration::from_mins(1);

/// How long until a refusal that is one of many is tried again, if no probe succeeds before.
const HELD_PAUSE: Duration = MassRefusal::PROBE;

impl Broker {
    /// Stores a grant that a refresh brought, then publishes it.
    pub(crate) async fn store_refreshed(
        &self,
        client: &Client,
        record: &Record,
        attempt: Attempt,
        grant: &Grant,
        sent_at: Timestamp,
        served: impl FnOnce(),
    ) -> Result<Record, BrokerError> {
        let connection = &record.connection;
        let next = self.next_grant(record, &attempt, grant, sent_at);
        let (expires_at, refresh_at) = (next.expires_at, due_at(client, connection, &next));
        let why = attempt.why;
        let kept = self.keep(record, next, refresh_at, attempt.slot, served).await;
        self.failpoints.reach(Point::Unpublished).await;
        let after = self.refresh_cache(connection.id).await?;
        if let Some(generation) = kept {
            tracing::info!(
                connection = %connection.name, provider = %client.profile.name, generation,
                %expires_at, "refreshed"
            );
            let granted = self.of(self.record(Kind::RefreshGranted, &By::broker()), connection);
            let granted = granted.with_grant(Digest::of(&grant.access).fingerprint(), generation);
            let why = why.borrow().to_string();
            self.note(&granted.with_detail(&why));
        }
        Ok(after)
    }

    /// The grant that follows what the connection holds. A refresh token that the answer leaves out
    /// stays as it was (RFC 6749 section 6), unless it was refused.
    fn next_grant(
        &self,
        record: &Record,
        attempt: &Attempt,
        grant: &Grant,
        sent_at: Timestamp,
    ) -> HeldGrant {
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
        let received = ReceivedGrant {
            access: &grant.access,
            refresh: grant.refresh.as_ref().or(kept.as_ref()),
            scopes,
            received_at: sent_at,
            expires_at: sent_at + grant.expires_in,
            origin: Some(GrantLineage { parent: attempt.spent, asked_at: attempt.asked_at }),
        };
        self.seal_grant(connection.id, record.generation() + 1, received)
    }

    /// Records why a refresh brought nothing. The stored tokens stay as they are, but for a new
    /// refresh token that could be taken out of an unusable answer.
    pub(crate) async fn record_failure(
        &self,
        client: &Client,
        record: &Record,
        attempt: Attempt,
        mut error: ProviderError,
    ) -> Result<(), BrokerError> {
        let connection = &record.connection;
        let Attempt { id: attempt, slot, spent, asked_at, why, .. } = attempt;
        let mut from = record.generation();
        if let (Some(refresh), Some(held)) = (&error.salvaged_refresh, &record.grant)
            && spent != Some(Digest::of(refresh))
        {
            let origin = GrantLineage { parent: spent, asked_at };
            let next = self.salvage(connection.id, held, refresh, origin)?;
            if client.profile.tokens.rotation == Rotation::Grace {
                // Within the grace the old one brings a whole new pair; after it, this one is left.
                let account = connection.account.as_ref().map(|account| account.id.as_str());
                self.put_fallback(connection.id, account, &next).await;
            } else if let Some(kept) =
                self.keep(record, next, Some(self.clock.now()), slot, || {}).await
            {
                tracing::warn!("kept the refresh token of an unusable answer");
                if matches!(error.verdict, Verdict::Refused { .. }) {
                    // What was refused is not what the connection holds by now.
                    error.verdict = Verdict::Ambiguous;
                }
                // That ended the attempt; what is recorded below belongs to a new one.
                from = kept;
                let salvaged = self.refresh_cache(connection.id).await?;
                let lease = Duration::from_secs(1);
                // Where somebody else was quicker, nothing is recorded.
                let _ = retry_forever(|| self.store.claim(&salvaged, &attempt, None, lease)).await;
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
        let verdict = state_after(&error.verdict, record);
        let weight = match verdict {
            // An operator who asks while verdicts are held gets one; and our own crash explains a
            // refusal better than a mistake of the provider's does.
            (State::NeedsConsent, _)
                if *why.borrow() != RefreshReason::Operator && !record.has_crashed() =>
            {
                self.classify_refusal(client, record).await
            }
            _ => RefusalWeight::Final,
        };
        let (state, reason) = match verdict {
            (State::NeedsConsent, _)
                if matches!(weight, RefusalWeight::Held | RefusalWeight::SuppressionStarted) =>
            {
                (State::Suspect, Some("mass_refusal".to_owned()))
            }
            (State::NeedsConsent, _) if self.promote_fallback(record).await => {
                self.refresh_cache(connection.id).await?;
                return Err(BrokerError::Unavailable {
                    reason: "the grant was refused, and another one is tried".to_owned(),
                    retry_after: Duration::from_secs(1),
                });
            }
            verdict => verdict,
        };
        let pause = if state == State::Suspect { HELD_PAUSE } else { pause };
        let last_error = LastError {
            code: match error.verdict {
                Verdict::Misconfigured => LastError::MISCONFIGURED.to_owned(),
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
        let detail = format!("{}, {}, {state}", word(&error.verdict), error.code);
        self.note_of(Kind::RefreshFailed, &By::broker(), connection, &detail);
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
        let recorded = retry_forever(|| self.store.durable().record_failure(&failure)).await;
        if weight == RefusalWeight::Believed && self.gate(client).is_suppressing() {
            // Many were refused in the time that it took to write this verdict down.
            self.revert_refusals(client).await;
        }
        let after = self.refresh_cache(connection.id).await?;
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

    /// What a refusal is worth. The first that is one of too many takes those before it back.
    async fn classify_refusal(&self, client: &Client, record: &Record) -> RefusalWeight {
        let weight = self.gate(client).classify_refusal(record.connection.id);
        if weight == RefusalWeight::SuppressionStarted {
            self.revert_refusals(client).await;
        }
        weight
    }

    async fn revert_refusals(&self, client: &Client) {
        let provider = &client.profile.name;
        let until = self.clock.now() + HELD_PAUSE;
        let taken_back = retry_forever(|| {
            let clients = self.clients_of(provider).map(|client| &client.name);
            self.store.revert_refusals(clients, MassRefusal::WINDOW, until)
        })
        .await;
        tracing::warn!(taken_back, %provider, "verdicts were taken back");
        let record = self.record(Kind::VerdictsTakenBack, &By::broker());
        self.note(&record.at_provider(provider.as_str()).with_detail(&taken_back.to_string()));
    }

    /// The held access token with a new refresh token.
    fn salvage(
        &self,
        id: ConnectionId,
        held: &HeldGrant,
        refresh: &SecretString,
        origin: GrantLineage,
    ) -> Result<HeldGrant, BrokerError> {
        let access = self.open_access(id, held)?;
        let received = ReceivedGrant {
            access: &access,
            refresh: Some(refresh),
            scopes: held.scopes.clone(),
            received_at: held.received_at,
            expires_at: held.expires_at,
            origin: Some(origin),
        };
        Ok(self.seal_grant(id, held.generation + 1, received))
    }

    /// There is nothing to present, or nothing that may be presented again. While the access token
    /// lives it is served; when it has ended, a person must consent: both are said as an error.
    /// Otherwise somebody else refreshes the connection, or has.
    pub(crate) async fn await_consent(
        &self,
        record: &Record,
        nothing: Nothing,
    ) -> Result<(), BrokerError> {
        let now = self.clock.now();
        let lives = record.grant.as_ref().map(|grant| grant.expires_at);
        let until = lives.filter(|end| *end > now);
        let (reason, message) = (nothing.word(), nothing.sentence().to_owned());
        let why = LastError { code: reason.to_owned(), message, at: now };
        let given_up = self.store.give_up_refresh(record, until, &why).await?;
        let after = self.refresh_cache(record.connection.id).await?.connection;
        if given_up {
            let detail = format!("not sent, {reason}, {}", after.state);
            self.note_of(Kind::RefreshFailed, &By::broker(), &after, &detail);
            Err(BrokerError::ConsentRequired { reason: reason.to_owned() })
        } else {
            Ok(())
        }
    }
}

/// The word for a verdict in records.
fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Ambiguous => "ambiguous",
        Verdict::Busy { .. } => "busy",
        Verdict::Misconfigured => "misconfigured",
        Verdict::NotSent => "not sent",
        Verdict::Refused { .. } => "refused",
        Verdict::Retry => "retry",
        Verdict::TooLate => "too late",
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
        Verdict::Refused { .. }
        | Verdict::Busy { .. }
        | Verdict::NotSent
        | Verdict::Retry
        | Verdict::TooLate => (State::BackingOff, None),
    }
}
