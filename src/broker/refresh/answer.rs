//! The answer to a refresh: its grant is committed, or the failure is recorded.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;

use super::{
    Attempt, Refresher,
    in_flight::RefreshRequest,
    outcome::{self, Outcome, SUPPRESSED_PAUSE},
    schedule::due_at,
};
use crate::{
    audit::{Actor, EventKind},
    broker::{
        BrokerError, RefreshReason,
        limits::{MassRefusal, RefusalWeight},
    },
    domain::{connection::State, grant::OpenGrant, grant_conflict::GrantLineage, record::Record},
    failpoint::Point,
    provider::{Grant, ProviderError, Rotation, Verdict, client::Client},
    seal::secret::{self, Digest},
    store::{self, retry::retry_forever},
};

impl Refresher {
    /// Commits the grant that a refresh brought, then publishes it.
    pub(super) async fn accept(
        self: &Arc<Self>,
        client: &Arc<Client>,
        record: &Record,
        attempt: Attempt,
        grant: Grant,
        sent_at: Timestamp,
        job: &RefreshRequest,
    ) -> Result<(), BrokerError> {
        let connection = &record.connection;
        let next = self.next_grant(record, &attempt, &grant, sent_at);
        let next = self.committer.seal_live(connection.id, record.generation() + 1, &next);
        let (expires_at, refresh_at) = (next.expires_at, due_at(client, connection, &next));
        let publish = || job.publish(Ok(()));
        let reservation = attempt.reservation;
        let committed =
            self.committer.persist_grant(record, next, refresh_at, reservation, publish).await;
        self.process.failpoints.reach(Point::Unpublished).await;
        let after = self.cache.reload(connection.id).await?;
        if let Some(generation) = committed {
            tracing::info!(
                connection.name = %connection.name, provider = %client.profile.name, generation,
                %expires_at, "refreshed"
            );
            let event = self.audit.event(EventKind::RefreshGranted, &Actor::broker());
            let event = self.audit.about_connection(event, connection);
            let event = event.with_grant(Digest::of(&grant.access).fingerprint(), generation);
            self.audit.emit(&event.with_detail(&job.reason().to_string()));
        }
        self.recovery.raise_watermark();
        if after.connection.account.is_none() {
            let (refresher, client, access) = (Arc::clone(self), Arc::clone(client), grant.access);
            let learn = async move { refresher.learn_account(&client, &after, &access).await };
            match job.reason() {
                // The answer to the creation of a connection names its account.
                RefreshReason::Created => learn.await,
                _ => drop(self.process.tasks.spawn(learn)),
            }
        }
        Ok(())
    }

    /// The grant that follows what the connection holds. A refresh token that the answer leaves out
    /// stays as it was (RFC 6749 section 6), unless it was refused.
    fn next_grant(
        &self,
        record: &Record,
        attempt: &Attempt,
        grant: &Grant,
        sent_at: Timestamp,
    ) -> OpenGrant {
        let connection = &record.connection;
        let held = record.grant.as_ref();
        // It was opened a moment ago, to be sent.
        let kept = || {
            let held = held.filter(|_| !attempt.refused)?;
            self.vault.open_refresh(connection.id, held).unwrap_or_default()
        };
        OpenGrant {
            access: grant.access.clone(),
            refresh: grant.refresh.clone().or_else(kept),
            scopes: grant
                .scopes
                .clone()
                .or_else(|| held.map(|held| held.scopes.clone()))
                .unwrap_or_else(|| connection.scopes.clone()),
            received_at: sent_at,
            expires_at: sent_at + grant.expires_in,
            origin: Some(attempt.lineage()),
        }
    }

    /// Asks for the account of a token, where it is not known yet: the client's own, or one that the
    /// provider did not tell at the consent. Never a condition; what was stored since stays.
    async fn learn_account(&self, client: &Client, record: &Record, access: &SecretString) {
        let id = record.connection.id;
        match self.calls.account(client, access, &record.connection.vars).await {
            Ok(Some(account)) => {
                let stored = self.store.set_account(id, record.generation(), &account).await;
                if stored.is_ok_and(|stored| stored) {
                    let _ = self.cache.reload(id).await;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::info!("cannot read the account: {}", error.message),
        }
    }

    /// Records the reason why a refresh brought nothing. The stored tokens stay as they are, but for a
    /// new refresh token that could be taken out of an unusable answer.
    pub(super) async fn reject(
        &self,
        client: &Client,
        record: &Record,
        attempt: Attempt,
        error: ProviderError,
        job: &RefreshRequest,
    ) -> Result<(), BrokerError> {
        let connection = &record.connection;
        let attempt_id = attempt.id.clone();
        let (from_generation, error) = self.keep_salvaged(client, record, attempt, error).await?;
        let mut outcome = Outcome::of(&error.verdict, record);
        let mut weight = RefusalWeight::Final;
        if outcome.state == State::NeedsConsent {
            // An operator who asks while refusals are suppressed gets a verdict; and our own crash
            // explains a refusal better than a mistake of the provider's does.
            if job.reason() != RefreshReason::Operator && !record.has_crashed() {
                weight = self.classify_refusal(client, record).await;
            }
            if matches!(weight, RefusalWeight::Held | RefusalWeight::SuppressionStarted) {
                outcome = Outcome::suppressed();
            } else if self.committer.promote_fallback(record).await {
                self.cache.reload(connection.id).await?;
                return Err(BrokerError::unavailable(
                    "the grant was refused, and another one is tried",
                    Duration::from_secs(1),
                ));
            }
        }
        let failures = connection.failures.saturating_add(1);
        let pause = outcome.pause(&error.verdict, failures, secret::random_seed());
        let last_error = self.last_error(outcome::code(&error), &error.message);
        let state = outcome.state;
        tracing::warn!(
            connection.name = %connection.name, provider = %client.profile.name,
            verdict = ?error.verdict, status = error.status, code = error.code, %state,
            "refresh failed: {}", error.message
        );
        let detail = format!("{}, {}, {state}", outcome::word(&error.verdict), error.code);
        self.audit.emit_for(EventKind::RefreshFailed, &Actor::broker(), connection, &detail);
        let failure = store::Failure {
            connection: connection.id,
            from_generation,
            attempt: &attempt_id,
            state,
            reason: outcome.reason.as_deref(),
            error: &last_error,
            refresh_at: (state != State::NeedsConsent).then(|| last_error.at + pause),
            failures,
        };
        let recorded = retry_forever(|| self.store.durable().record_failure(&failure)).await;
        if weight == RefusalWeight::Believed && self.limits.gate(client).is_suppressing() {
            // Many were refused in the time that it took to write this verdict down.
            self.revert_refusals(client).await;
        }
        let after = self.cache.reload(connection.id).await?;
        if !recorded && after.generation() > from_generation {
            // A consent brought a newer grant meanwhile: the failure is of no interest any more.
            return Ok(());
        }
        Err(match error.verdict {
            Verdict::Refused { .. } if state == State::NeedsConsent => {
                BrokerError::ConsentRequired { reason: outcome.reason.unwrap_or_default() }
            }
            Verdict::Misconfigured => BrokerError::Misconfigured(error.message),
            _ => BrokerError::unavailable(error.message, pause),
        })
    }

    /// Keeps the new refresh token of an unusable answer, with the access token that is held. Returns
    /// the generation that the connection holds then, and the error as it is to be judged.
    async fn keep_salvaged(
        &self,
        client: &Client,
        record: &Record,
        attempt: Attempt,
        mut error: ProviderError,
    ) -> Result<(i64, ProviderError), BrokerError> {
        let (connection, from) = (&record.connection, record.generation());
        let (Some(refresh), Some(held)) = (&error.salvaged_refresh, &record.grant) else {
            return Ok((from, error));
        };
        if attempt.presented == Some(Digest::of(refresh)) {
            return Ok((from, error));
        }
        let open = OpenGrant {
            access: self.vault.open_access(connection.id, held)?,
            refresh: Some(refresh.clone()),
            scopes: held.scopes.clone(),
            received_at: held.received_at,
            expires_at: held.expires_at,
            origin: Some(attempt.lineage()),
        };
        let next = self.committer.seal_live(connection.id, from + 1, &open);
        if client.profile.tokens.rotation == Rotation::Grace {
            // Within the grace the old one brings a whole new pair; after it, this one is left.
            let account = connection.account.as_ref().map(|account| account.id.as_str());
            self.committer.put_fallback(connection.id, account, &next).await;
            return Ok((from, error));
        }
        let due = Some(self.process.clock.now());
        let reservation = attempt.reservation;
        let kept = self.committer.persist_grant(record, next, due, reservation, || {}).await;
        let Some(kept) = kept else { return Ok((from, error)) };
        tracing::warn!("kept the refresh token of an unusable answer");
        if matches!(error.verdict, Verdict::Refused { .. }) {
            // The refused token is not the one that the connection holds by now.
            error.verdict = Verdict::Ambiguous;
        }
        // The commit ended the attempt; the failure is recorded for a new claim. Where another replica
        // was quicker, nothing is recorded.
        let salvaged = self.cache.reload(connection.id).await?;
        let (id, lease) = (&attempt.id, Duration::from_secs(1));
        let _ = retry_forever(|| self.store.claim(&salvaged, id, None, lease)).await;
        Ok((kept, error))
    }

    /// Classifies a refusal. The one that starts the suppression reverts those before it.
    async fn classify_refusal(&self, client: &Client, record: &Record) -> RefusalWeight {
        let weight = self.limits.gate(client).classify_refusal(record.connection.id);
        if weight == RefusalWeight::SuppressionStarted {
            self.revert_refusals(client).await;
        }
        weight
    }

    async fn revert_refusals(&self, client: &Client) {
        let provider = &client.profile.name;
        let until = self.process.clock.now() + SUPPRESSED_PAUSE;
        let reverted = retry_forever(|| {
            let clients = self.clients.at_provider(provider);
            self.store.revert_refusals(clients, MassRefusal::WINDOW, until)
        })
        .await;
        tracing::warn!(reverted, %provider, "refusals were reverted: they may be a mistake");
        let event = self.audit.event(EventKind::VerdictsTakenBack, &Actor::broker());
        let event = event.at_provider(provider.as_str()).with_detail(&reverted.to_string());
        self.audit.emit(&event);
    }
}

impl Attempt {
    fn lineage(&self) -> GrantLineage {
        GrantLineage { parent: self.presented, asked_at: self.claimed_at }
    }
}
