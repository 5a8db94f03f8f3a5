//! The refresh: the only function in the program that spends a refresh token.
//!
//! Whoever wants a connection refreshed comes through a [flight](self::in_flight), of which there is
//! one at a time in a process; across replicas the claim is a row in the store. The steps are those
//! of the refresh protocol: claim with intent, committed; one bounded POST with no database
//! connection held; the grant stored by compare-and-set on the generation it was made from; only
//! then published.

pub(crate) mod commit;
pub(crate) mod in_flight;
pub(crate) mod outcome;
pub(crate) mod preflight;
pub(crate) mod wait_for_peer;

use std::{io, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::watch, task::spawn_blocking};
use uuid::Uuid;

use self::{
    in_flight::{RefreshReason, RefreshRequest},
    preflight::SUSPECT_PAUSE,
};
use super::{Broker, BrokerError};
use crate::{
    clock::BootInstant,
    domain::connection::{ConnectionId, GrantType, Record},
    failpoint::Point,
    provider::{
        Grant, Held, OutboundRequest, Profile, ProviderError, RequestError, Rotation, Verdict,
        client::Client, read_grant, request,
    },
    seal::secret::Digest,
    spool::Reservation,
    store::{Claim, ClaimRejected, retry::retry_forever},
};

/// How long after its claim a refresh may still begin to send.
const SEND_WINDOW: Duration = Duration::from_secs(5);

/// How long a commit may take.
const COMMIT_BUDGET: Duration = Duration::from_secs(5);

/// What a lease is longer than all it has to cover.
const LEASE_SLACK: Duration = Duration::from_secs(10);

/// How much longer still it is where presenting a spent token kills its successors.
const FAMILY_CAUTION: Duration = Duration::from_secs(30);

/// How long to leave a refresh alone that could not even be begun.
const UNBEGUN_PAUSE: Duration = Duration::from_mins(1);

/// How long a claim lasts: computed, so that a lease shorter than the calls it covers cannot be
/// written down. A client that asks for itself may ask twice: with its refresh token, then anew.
/// Where a second presentation kills what the first one brought, it is longer for good measure.
#[must_use]
fn lease(profile: &Profile, grant_type: GrantType) -> Duration {
    let calls = match grant_type {
        GrantType::AuthorizationCode => 1,
        GrantType::ClientCredentials => 2,
    };
    let caution = match profile.tokens.rotation {
        Rotation::SingleUseFamily => FAMILY_CAUTION,
        Rotation::Grace | Rotation::None | Rotation::SingleUse => Duration::ZERO,
    };
    SEND_WINDOW + profile.token.timeout * calls + COMMIT_BUDGET + LEASE_SLACK + caution
}

/// One refresh under way.
pub(crate) struct Attempt {
    pub(crate) id: String,
    /// The room for what it brings.
    pub(crate) slot: Reservation,
    /// The digest of the refresh token that is presented.
    pub(crate) spent: Option<Digest>,
    /// The provider has refused that token.
    pub(crate) refused: bool,
    /// When it was claimed, on the database's clock.
    pub(crate) asked_at: Timestamp,
    /// The claim is no ground for sending any more after this.
    pub(crate) send_before: BootInstant,
    /// Who asked for it, as far as is known by now.
    pub(crate) why: watch::Receiver<RefreshReason>,
}

impl Broker {
    /// Refreshes a connection, if it still needs that when its turn has come.
    pub(crate) async fn refresh_once(
        self: &Arc<Self>,
        job: RefreshRequest,
        served: impl FnOnce(),
    ) -> Result<(), BrokerError> {
        let RefreshRequest { id, seen, .. } = job;
        let why = || *job.why.borrow();
        let client = match self.client(&job.client) {
            Ok(client) => Arc::clone(client),
            Err(error) => return self.leave_for_later(id, why(), error).await,
        };
        let turn = self.closing.run_until_cancelled(self.turn(&client, &job));
        let Some(turn) = turn.await else { return Err(being_stopped()) };
        let _place = turn?;
        let Some(record) = self.wanting(id, seen).await? else { return Ok(()) };
        self.check_generation_rollback(&record).await?;
        self.check_token_endpoint(&client, &record, why()).await?;
        if why() != RefreshReason::Operator && self.check_crash_loop(&record).await? {
            return Err(BrokerError::Unavailable {
                reason: "attempts to refresh the connection have ended without a word".to_owned(),
                retry_after: SUSPECT_PAUSE,
            });
        }
        let lease = lease(&client.profile, record.connection.grant_type);
        let request = match self.choose_request(&client, &record).await {
            Ok(Ok(request)) => request,
            Ok(Err(nothing)) => {
                self.await_consent(&record, nothing).await?;
                return self.wait_for_other_replica(id, &record, lease, why()).await;
            }
            Err(error) => {
                if matches!(error, BrokerError::Integrity) {
                    self.cache_record(record).await;
                }
                return self.leave_for_later(id, why(), error).await;
            }
        };
        let mut attempt = match self.begin(&record, request.spends, lease, &job).await? {
            Ok(attempt) => attempt,
            Err(ClaimRejected::Contended) => {
                return self.wait_for_other_replica(id, &record, lease, why()).await;
            }
            Err(ClaimRejected::TokenSpent) => return self.reload_after_spent(id, &record).await,
            Err(ClaimRejected::DatabaseChanged) => {
                return Err(BrokerError::Unavailable {
                    reason: "the database is not as this replica last saw it".to_owned(),
                    retry_after: Duration::from_secs(5),
                });
            }
        };
        let sent_at = self.clock.now();
        let mut reply = self.ask(&client, request.outbound, Some(attempt.send_before)).await;
        if let Err(error) = &reply
            && refuses_the_token(error)
            && record.connection.grant_type == GrantType::ClientCredentials
            && attempt.spent.is_some()
        {
            // Nobody consented to this grant: the client simply asks anew, and the refused token is
            // never presented again.
            if let Some(refused) = &attempt.spent {
                retry_forever(|| self.store.durable().mark_spent(id, refused)).await;
            }
            attempt.refused = true;
            if let Some(anew) = request.anew {
                reply = self.ask(&client, anew, None).await;
            }
        }
        self.gate(&client).record_response(&client.name, id, &reply);
        let grant = match reply {
            Ok(grant) => grant,
            Err(error) => return self.record_failure(&client, &record, attempt, error).await,
        };
        let after =
            self.store_refreshed(&client, &record, attempt, &grant, sent_at, served).await?;
        self.raise_watermark();
        if after.connection.account.is_none() {
            let (broker, access) = (Arc::clone(self), grant.access);
            let learn = async move { broker.learn_account(&client, &after, &access).await };
            match why() {
                // Whoever makes a connection wants to see whose it is.
                RefreshReason::Created => learn.await,
                _ => drop(self.tasks.spawn(learn)),
            }
        }
        Ok(())
    }

    /// The record of a connection, if it still needs the refresh.
    async fn wanting(
        &self,
        id: ConnectionId,
        seen: Option<i64>,
    ) -> Result<Option<Record>, BrokerError> {
        let record = self.store.record_by_id(id).await?.ok_or(BrokerError::Revoked)?;
        let done = match seen {
            Some(seen) => record.generation() > seen,
            // A claim that ran out is due whatever the schedule says.
            None => {
                record.claimed_at.is_none()
                    && record.connection.refresh_at.is_none_or(|at| at > self.clock.now())
            }
        };
        if done || !record.connection.state.refreshes() {
            self.cache_record(record).await;
            return Ok(None);
        }
        Ok(Some(record))
    }

    /// A refresh cannot even be begun. It stays due, and in the background must not stand in the way
    /// of those that can be refreshed.
    async fn leave_for_later(
        &self,
        id: ConnectionId,
        why: RefreshReason,
        error: BrokerError,
    ) -> Result<(), BrokerError> {
        tracing::error!(%error, "the refresh cannot be begun");
        // What passes, as a key that this replica lacks does, is no reason to keep others from trying.
        if why == RefreshReason::Due && !matches!(error, BrokerError::Unavailable { .. }) {
            self.store.defer_refresh(id, self.clock.now() + UNBEGUN_PAUSE).await?;
        }
        Err(error)
    }

    /// Makes room for the grant and claims the connection, in this order: what cannot be kept is
    /// not asked for.
    async fn begin(
        &self,
        record: &Record,
        spent: Option<Digest>,
        lease: Duration,
        request: &RefreshRequest,
    ) -> Result<Result<Attempt, ClaimRejected>, BrokerError> {
        let id = format!("{}.{}", self.replica, Uuid::now_v7());
        let (spool, name) = (self.spool.clone(), id.clone());
        let slot = spawn_blocking(move || spool.reserve(&name)).await;
        let slot = slot.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
            tracing::error!(%error, "no refresh is begun: the state directory cannot be written");
            BrokerError::Unavailable {
                reason: "the state directory cannot be written".to_owned(),
                retry_after: Duration::from_secs(10),
            }
        })?;
        self.failpoints.reach(Point::Unclaimed).await;
        let send_before = self.clock.since_boot() + SEND_WINDOW;
        let connection = record.connection.id;
        let claimed = match self.store.claim(record, &id, spent.as_ref(), lease).await {
            Ok(claimed) => claimed,
            Err(error) => {
                // It may stand all the same. Nothing was sent, and nobody else will ever know.
                let _ = self.store.durable().release(connection, &id).await;
                return Err(error.into());
            }
        };
        let asked_at = match claimed {
            Claim::Held(asked_at) => asked_at,
            Claim::Rejected(lost) => return Ok(Err(lost)),
        };
        self.failpoints.reach(Point::Claimed).await;
        if self.clock.since_boot() >= send_before {
            self.store.durable().release(connection, &id).await?;
            return Err(BrokerError::Unavailable {
                reason: "the claim took too long to be safe to use".to_owned(),
                retry_after: Duration::from_secs(1),
            });
        }
        let why = request.why.clone();
        Ok(Ok(Attempt { id, slot, spent, refused: false, asked_at, send_before, why }))
    }

    /// One request to the token endpoint, as [`Outbound::send`](crate::provider::Outbound::send), and
    /// its answer, read.
    pub(crate) async fn ask(
        &self,
        client: &Client,
        request: OutboundRequest,
        send_before: Option<BootInstant>,
    ) -> Result<Grant, ProviderError> {
        let reply = self.outbound.send(&client.profile, request, send_before).await?;
        self.failpoints.reach(Point::Received).await;
        read_grant(&client.profile, &reply)
    }

    /// What to send, or why nothing can be.
    async fn choose_request(
        &self,
        client: &Client,
        record: &Record,
    ) -> Result<Result<Request, Nothing>, BrokerError> {
        let Some(request) = self.request(client, record)? else {
            return Ok(Err(Nothing::ToPresent));
        };
        let Some(hash) = &request.spends else { return Ok(Ok(request)) };
        let now = self.clock.now();
        let lives = record.grant.as_ref().is_some_and(|grant| grant.expires_at > now);
        let rotation = client.profile.tokens.rotation;
        let may_present = rotation.may_present(record.open_attempts, lives);
        if may_present && !self.store.is_spent(hash).await? {
            Ok(Ok(request))
        } else if record.connection.grant_type == GrantType::ClientCredentials {
            Ok(Ok(Request::anew(client, record)?))
        } else {
            Ok(Err(Nothing::ToPresentAgain))
        }
    }

    /// What to send for this connection, or nothing if it has no way to refresh.
    fn request(&self, client: &Client, record: &Record) -> Result<Option<Request>, BrokerError> {
        let connection = &record.connection;
        let by_itself = connection.grant_type == GrantType::ClientCredentials;
        let unsealed = |error: BrokerError| {
            tracing::error!("a stored token does not open");
            error
        };
        if let Some(grant) = &record.grant
            && client.profile.grants.refresh_token.is_some()
            && let Some(refresh) = self.open_refresh(connection.id, grant).map_err(unsealed)?
        {
            let access = self.open_access(connection.id, grant).map_err(unsealed)?;
            let held = Held { refresh: &refresh, access: &access };
            let outbound = request::refresh(client, held, &client.redirect_uri, &connection.vars)
                .map_err(|error| misconfigured(&error))?;
            // Where it cannot be made, that is told when there is nothing else left to send.
            let anew = by_itself.then(|| Request::anew(client, record)).and_then(Result::ok);
            let anew = anew.map(|request| request.outbound);
            return Ok(Some(Request { outbound, spends: Some(Digest::of(&refresh)), anew }));
        }
        by_itself.then(|| Request::anew(client, record)).transpose()
    }
}

pub(crate) fn being_stopped() -> BrokerError {
    BrokerError::Unavailable {
        reason: "the broker is being stopped".to_owned(),
        retry_after: Duration::from_secs(1),
    }
}

/// A request to refresh a connection.
struct Request {
    outbound: OutboundRequest,
    /// The digest of the refresh token that it spends.
    spends: Option<Digest>,
    /// What is sent when that is refused, by a client that can ask for itself.
    anew: Option<OutboundRequest>,
}

impl Request {
    /// Of a client for a token of its own.
    fn anew(client: &Client, record: &Record) -> Result<Self, BrokerError> {
        let connection = &record.connection;
        request::client_credentials(client, &connection.scopes, &connection.vars)
            .map(|outbound| Self { outbound, spends: None, anew: None })
            .map_err(|error| misconfigured(&error))
    }
}

/// Why nothing can be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Nothing {
    /// There is no refresh token.
    ToPresent,
    /// The refresh token was spent, or presenting it again might kill what lives.
    ToPresentAgain,
}

impl Nothing {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ToPresent => "no_refresh_token",
            Self::ToPresentAgain => "lost_in_rotation",
        }
    }

    /// It in one sentence, for a person.
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::ToPresent => "There is no refresh token: the access token lives to its end.",
            Self::ToPresentAgain => {
                "The refresh token may be spent: it is not presented again, and the access token \
                 lives to its end."
            }
        }
    }
}

/// Whether the provider declined for a reason that may lie in the refresh token: reason enough for a
/// client that can ask for itself.
fn refuses_the_token(error: &ProviderError) -> bool {
    let declined = error.status.is_some_and(|status| (400..500).contains(&status));
    matches!(error.verdict, Verdict::Refused { .. }) || error.verdict == Verdict::Retry && declined
}

fn misconfigured(error: &RequestError) -> BrokerError {
    BrokerError::Misconfigured(error.to_string())
}
