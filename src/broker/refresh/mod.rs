//! The refresh of a connection, the same for readers, operators and the background.
//!
//! A refresh token is presented here and, where a code exchange returned only a refresh token, by
//! [`CodeExchange`](super::consent::CodeExchange). The protocol, in the order of [`Refresher::attempt`]:
//!
//! 1. Admission ([`Refresher::admit`]): for the background a permit; then circuit breakers, mass
//!    refusal and rate.
//! 2. Reload: the record as the store has it now.
//! 3. Plan: what to do with it ([`plan`](plan::plan), pure), as far as the record tells.
//! 4. Request ([`Refresher::request`]): the tokens are opened, the refresh token is looked up among
//!    the spent ones, and the request is made.
//! 5. Claim ([`Refresher::claim`]): room in the spool, then a lease with the intent, committed.
//! 6. Send ([`Refresher::send`]): one bounded POST, no database connection held.
//! 7. Commit: the grant goes to the spool, then into the store by compare-and-set on the generation it
//!    was made from ([`Committer::persist_grant`]).
//! 8. Publish ([`Refresher::accept`]): only then readers have it. While the database is silent for
//!    more than two seconds, a grant that is in the spool is published before it is stored.
//! 9. Or the failure is [judged](outcome) and recorded ([`Refresher::reject`]).
//!
//! One refresh of a connection runs at a time in a process ([`SingleFlight`]), and one at all: the
//! lease is a row in the store.
//!
//! May use: the store, the spool, the vault, the cache, the clients, the limiters, the provider calls,
//! recovery and the audit log. Used by the readers of tokens, by operators and by the background.

mod answer;
pub(crate) mod commit;
mod in_flight;
pub(crate) mod outcome;
pub(crate) mod plan;
pub(crate) mod schedule;
mod wait_for_peer;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

pub(crate) use self::in_flight::SingleFlight;
use self::{
    commit::Committer,
    in_flight::RefreshRequest,
    plan::{Facts, NoRefreshToken, Plan, Present, plan, without_refresh_token},
    schedule::{SEND_WINDOW, lease},
};
use super::{
    BrokerError, RefreshReason,
    audit::AuditLog,
    cache::Cache,
    clients::Clients,
    limits::{Limits, Permit, Shut},
    process::Process,
    provider_calls::ProviderCalls,
    recovery::Recovery,
    vault::Vault,
};
use crate::{
    audit::{Actor, EventKind},
    clock::BootInstant,
    domain::{
        broker_code,
        connection::{GrantType, LastError, State},
        record::Record,
    },
    failpoint::Point,
    provider::{
        CurrentTokens, Grant, OutboundRequest, ProviderError, RequestError, Verdict,
        client::Client, request,
    },
    seal::secret::Digest,
    spool::Reservation,
    store::{Claim, ClaimRejected, Store, retry::retry_forever},
};

/// The time for which a refresh is left alone that could not even be begun.
const UNBEGUN_PAUSE: Duration = Duration::from_mins(1);

/// The time for which a suspect connection is left alone, unless somebody looks at it.
const SUSPECT_PAUSE: Duration = Duration::from_hours(1);

/// Refreshes connections.
#[derive(Debug)]
pub(crate) struct Refresher {
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) calls: Arc<ProviderCalls>,
    pub(crate) committer: Arc<Committer>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) process: Arc<Process>,
}

/// One refresh that holds the claim.
struct Attempt {
    id: String,
    /// The room in the spool for the grant that it brings.
    reservation: Reservation,
    /// The digest of the refresh token that is presented.
    presented: Option<Digest>,
    /// The provider has refused that token.
    refused: bool,
    /// When it was claimed, on the database's clock.
    claimed_at: Timestamp,
    /// The claim is no ground for sending after this.
    send_before: BootInstant,
}

/// A claim, or the reason why there is none.
enum Claimed {
    Held(Attempt),
    Rejected(ClaimRejected),
}

/// A request that is ready, or the reason why there is none.
#[expect(clippy::large_enum_variant, reason = "it is taken apart where it is made")]
enum Prepared {
    Request(Request),
    Nothing(NoRefreshToken),
}

/// A request to refresh a connection.
struct Request {
    outbound: OutboundRequest,
    /// The digest of the refresh token that it presents.
    presents: Option<Digest>,
}

impl Refresher {
    /// One attempt, in order. Every step may end it; the list is the protocol.
    async fn attempt(self: &Arc<Self>, job: &RefreshRequest) -> Result<(), BrokerError> {
        let client = match self.clients.of_connection(&job.client) {
            Ok(client) => Arc::clone(client),
            Err(error) => return self.defer(job, error).await,
        };
        let admitted = self.process.draining.run_until_cancelled(self.admit(&client, job)).await;
        let _permit = admitted.ok_or_else(BrokerError::being_stopped)??;
        let found = self.store.record_by_id(job.connection).await?;
        let record = found.ok_or(BrokerError::Revoked)?;
        let facts = Facts {
            now: self.process.clock.now(),
            reason: job.reason(),
            stale_generation: job.stale_generation,
            cached_generation: self.cache.generation_of(&record.connection),
        };
        let lease = lease(&client.profile, record.connection.grant_type);
        let plan = plan(&record, &client.profile, &facts);
        match plan {
            Plan::UpToDate => {
                self.cache.insert(record).await;
                return Ok(());
            }
            Plan::RolledBack => return self.repair_rollback(&record).await,
            Plan::EndpointChanged => return self.block_endpoint(&client, &record).await,
            Plan::CrashLoop | Plan::GiveUp(_) | Plan::Send(_) => {}
        }
        self.accept_endpoint(&client, &record).await?;
        if plan == Plan::CrashLoop {
            return self.stop_crash_loop(&record, lease, job).await;
        }
        let request = match self.request(&client, &record, plan).await {
            Ok(Prepared::Request(request)) => request,
            Ok(Prepared::Nothing(why)) => {
                return Box::pin(self.give_up(&record, why, lease, job)).await;
            }
            Err(error) => {
                if matches!(error, BrokerError::Integrity) {
                    self.cache.insert(record).await;
                }
                return self.defer(job, error).await;
            }
        };
        let mut attempt = match self.claim(&record, request.presents, lease).await? {
            Claimed::Held(attempt) => attempt,
            Claimed::Rejected(ClaimRejected::Contended) => {
                return self.wait_for_other_replica(&record, lease, job.reason()).await;
            }
            Claimed::Rejected(ClaimRejected::TokenSpent) => {
                return self.reload_after_spent(&record).await;
            }
            Claimed::Rejected(ClaimRejected::DatabaseChanged) => {
                return Err(BrokerError::unavailable(
                    "the database is not as this replica last saw it",
                    Duration::from_secs(5),
                ));
            }
        };
        let sent_at = self.process.clock.now();
        let reply = self.send(&client, &record, &mut attempt, request.outbound).await;
        self.limits.gate(&client).record_response(&client.name, job.connection, &reply);
        match reply {
            Ok(grant) => self.accept(&client, &record, attempt, grant, sent_at, job).await,
            Err(error) => Box::pin(self.reject(&client, &record, attempt, error, job)).await,
        }
    }

    /// Waits for the refresh's turn at its provider. Whoever waits for it in person needs no permit.
    async fn admit(&self, client: &Client, job: &RefreshRequest) -> Result<Option<Permit>, Shut> {
        let gate = self.limits.gate(client);
        let permit = match job.priority {
            None => None,
            Some(priority) => tokio::select! {
                permit = gate.permit(priority) => Some(permit),
                () = job.brought_forward() => None,
            },
        };
        gate.enter(&client.name, job.reason()).await?;
        Ok(permit)
    }

    /// Defers a refresh that cannot even be begun. It stays due, and in the background must not stand
    /// in the way of those that can be refreshed.
    async fn defer(&self, job: &RefreshRequest, error: BrokerError) -> Result<(), BrokerError> {
        tracing::error!(%error, "cannot begin the refresh");
        // A passing failure, as a missing key here, is no reason to keep others from trying.
        if job.reason() == RefreshReason::Due && !matches!(error, BrokerError::Unavailable { .. }) {
            let until = self.process.clock.now() + UNBEGUN_PAUSE;
            self.store.defer_refresh(job.connection, until).await?;
        }
        Err(error)
    }

    /// Replays what this replica remembers of a row that went back. A row that stays behind is
    /// suspect: its refresh token is spent.
    async fn repair_rollback(&self, record: &Record) -> Result<(), BrokerError> {
        let connection = &record.connection;
        self.recovery.replay_recent_grants().await;
        let again = self.cache.reload(connection.id).await?;
        if again.generation() > record.generation() {
            return Err(BrokerError::unavailable(
                "a grant that the database had forgotten was stored again",
                Duration::from_secs(1),
            ));
        }
        let message = "the database holds an older grant than the one last seen";
        tracing::error!(
            connection.name = %connection.name, "{message}; nothing is refreshed from it"
        );
        let error = self.last_error(broker_code::WENT_BACK, message);
        self.suspend(record, State::Suspect, broker_code::WENT_BACK, Some(&error)).await?;
        Err(BrokerError::unavailable(message, SUSPECT_PAUSE))
    }

    /// Leaves a connection alone whose tokens another token endpoint issued.
    async fn block_endpoint(&self, client: &Client, record: &Record) -> Result<(), BrokerError> {
        let message = format!(
            "its tokens were issued at {}, and the profile says {} now; an operator who refreshes \
             the connection accepts that",
            record.token_url.as_deref().unwrap_or_default(),
            client.profile.token.url.as_str()
        );
        tracing::error!(connection.name = %record.connection.name, "{message}");
        let error = self.last_error(broker_code::TOKEN_URL_CHANGED, &message);
        self.suspend(record, State::EndpointChanged, broker_code::TOKEN_URL_CHANGED, Some(&error))
            .await?;
        self.cache.reload(record.connection.id).await?;
        Err(BrokerError::Misconfigured(message))
    }

    /// Lets what the connection holds be presented at the profile's token endpoint from now on. Where
    /// that is another one than before, an operator has asked for it.
    async fn accept_endpoint(&self, client: &Client, record: &Record) -> Result<(), BrokerError> {
        let token_url = client.profile.token.url.as_str();
        if record.token_url.as_deref() != Some(token_url) {
            self.store.accept_endpoint(record.connection.id, token_url).await?;
        }
        Ok(())
    }

    /// Leaves a connection alone whose last attempts all ended without a word.
    async fn stop_crash_loop(
        &self,
        record: &Record,
        lease: Duration,
        job: &RefreshRequest,
    ) -> Result<(), BrokerError> {
        tracing::error!(
            connection.name = %record.connection.name,
            "the last attempts to refresh it ended without a word: it is left alone for an hour"
        );
        let suspended = self.suspend(record, State::Suspect, "crashes", None).await?;
        self.cache.reload(record.connection.id).await?;
        if suspended {
            return Err(BrokerError::unavailable(
                "attempts to refresh the connection have ended without a word",
                SUSPECT_PAUSE,
            ));
        }
        self.wait_for_other_replica(record, lease, job.reason()).await
    }

    async fn suspend(
        &self,
        record: &Record,
        state: State,
        reason: &str,
        error: Option<&LastError>,
    ) -> Result<bool, BrokerError> {
        let until = self.process.clock.now() + SUSPECT_PAUSE;
        Ok(self.store.suspend_refresh(record, state, reason, error, until).await?)
    }

    fn last_error(&self, code: &str, message: &str) -> LastError {
        let at = self.process.clock.now();
        LastError { code: code.to_owned(), message: message.to_owned(), at }
    }

    /// Gives up a connection that has nothing to present, or nothing that may be presented again.
    /// While the access token lives it is served; when it has ended, a person must consent. Where the
    /// connection is not as it was seen, another replica refreshes it, or has.
    async fn give_up(
        &self,
        record: &Record,
        why: NoRefreshToken,
        lease: Duration,
        job: &RefreshRequest,
    ) -> Result<(), BrokerError> {
        let error = self.last_error(why.code(), why.sentence());
        let lives = record.grant.as_ref().map(|grant| grant.expires_at);
        let until = lives.filter(|end| *end > error.at);
        let given_up = self.store.give_up_refresh(record, until, &error).await?;
        let after = self.cache.reload(record.connection.id).await?.connection;
        if !given_up {
            return self.wait_for_other_replica(record, lease, job.reason()).await;
        }
        let detail = format!("not sent, {}, {}", why.code(), after.state);
        self.audit.emit_for(EventKind::RefreshFailed, &Actor::broker(), &after, &detail);
        Err(BrokerError::ConsentRequired { reason: why.code().to_owned() })
    }

    /// The request that follows from the plan. Tokens that do not open, and a request that cannot be
    /// made, are told before anything else. None where nothing may be presented: whether the refresh
    /// token is spent, the plan does not know.
    async fn request(
        &self,
        client: &Client,
        record: &Record,
        plan: Plan,
    ) -> Result<Prepared, BrokerError> {
        let refresh = self.refresh_request(client, record)?;
        let plan = match (plan, &refresh) {
            (Plan::Send(Present::RefreshToken), Some((_, presents)))
                if self.store.is_spent(presents).await? =>
            {
                without_refresh_token(record, NoRefreshToken::Spent)
            }
            (plan, _) => plan,
        };
        match (plan, refresh) {
            (Plan::Send(Present::RefreshToken), Some((outbound, presents))) => {
                Ok(Prepared::Request(Request { outbound, presents: Some(presents) }))
            }
            (Plan::GiveUp(why), _) => Ok(Prepared::Nothing(why)),
            _ => client_credentials(client, record).map(Prepared::Request),
        }
    }

    /// The request that presents the refresh token, and that token's digest; none where there is none.
    fn refresh_request(
        &self,
        client: &Client,
        record: &Record,
    ) -> Result<Option<(OutboundRequest, Digest)>, BrokerError> {
        let connection = &record.connection;
        let offered = client.profile.grants.refresh_token.is_some();
        let Some(grant) = record.grant.as_ref().filter(|_| offered) else { return Ok(None) };
        if grant.refresh.is_none() {
            return Ok(None);
        }
        let open = self.vault.open(connection.id, grant).inspect_err(|_| {
            tracing::error!("a stored token does not open");
        })?;
        let Some(refresh) = &open.refresh else { return Ok(None) };
        let held = CurrentTokens { refresh, access: &open.access };
        let outbound = request::refresh(client, held, &client.redirect_uri, &connection.vars)
            .map_err(|error| misconfigured(&error))?;
        Ok(Some((outbound, Digest::of(refresh))))
    }

    /// Makes room for the grant and claims the connection, in this order: what cannot be kept is not
    /// asked for.
    async fn claim(
        &self,
        record: &Record,
        presented: Option<Digest>,
        lease: Duration,
    ) -> Result<Claimed, BrokerError> {
        let Process { replica, clock, failpoints, .. } = &*self.process;
        let id = format!("{replica}.{}", Uuid::now_v7());
        let reservation = self.committer.reserve(&id).await.map_err(|error| {
            tracing::error!(%error, "cannot begin a refresh: the state directory cannot be written");
            BrokerError::unavailable(
                "the state directory cannot be written",
                Duration::from_secs(10),
            )
        })?;
        failpoints.reach(Point::Unclaimed).await;
        let send_before = clock.since_boot() + SEND_WINDOW;
        let connection = record.connection.id;
        let claimed = match self.store.claim(record, &id, presented.as_ref(), lease).await {
            Ok(claimed) => claimed,
            Err(error) => {
                // It may stand all the same. Nothing was sent, and nobody else will ever know.
                let _ = self.store.durable().release(connection, &id).await;
                return Err(error.into());
            }
        };
        let claimed_at = match claimed {
            Claim::Held(claimed_at) => claimed_at,
            Claim::Rejected(rejected) => return Ok(Claimed::Rejected(rejected)),
        };
        failpoints.reach(Point::Claimed).await;
        if clock.since_boot() >= send_before {
            self.store.durable().release(connection, &id).await?;
            return Err(BrokerError::unavailable(
                "the claim took too long to be safe to use",
                Duration::from_secs(1),
            ));
        }
        Ok(Claimed::Held(Attempt {
            id,
            reservation,
            presented,
            refused: false,
            claimed_at,
            send_before,
        }))
    }

    /// Sends the request, once. A client that asks for itself asks again without its refresh token
    /// where the provider refuses that: nobody consented to the grant, and the refused token counts as
    /// spent.
    async fn send(
        &self,
        client: &Client,
        record: &Record,
        attempt: &mut Attempt,
        outbound: OutboundRequest,
    ) -> Result<Grant, ProviderError> {
        let reply = self.calls.token(client, outbound, Some(attempt.send_before)).await;
        let direct = record.connection.grant_type == GrantType::ClientCredentials;
        if direct
            && let Some(refused) = &attempt.presented
            && reply.as_ref().is_err_and(refuses_the_token)
        {
            retry_forever(|| self.store.durable().mark_spent(record.connection.id, refused)).await;
            attempt.refused = true;
            if let Ok(request) = client_credentials(client, record) {
                return self.calls.token(client, request.outbound, None).await;
            }
        }
        reply
    }
}

/// The request of a client for a token of its own.
fn client_credentials(client: &Client, record: &Record) -> Result<Request, BrokerError> {
    let connection = &record.connection;
    request::client_credentials(client, &connection.scopes, &connection.vars)
        .map(|outbound| Request { outbound, presents: None })
        .map_err(|error| misconfigured(&error))
}

/// True if the provider declined for a reason that may lie in the refresh token: reason enough for a
/// client that can ask for itself.
fn refuses_the_token(error: &ProviderError) -> bool {
    let declined = error.status.is_some_and(|status| (400..500).contains(&status));
    matches!(error.verdict, Verdict::Refused { .. }) || error.verdict == Verdict::Retry && declined
}

fn misconfigured(error: &RequestError) -> BrokerError {
    BrokerError::Misconfigured(error.to_string())
}
