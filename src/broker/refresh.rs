//! The refresh: the only function in the program that spends a refresh token.
//!
//! Readers, the background refresher, the operator's button and a new client-credentials
//! connection all come through [`Broker::refresh`]. In a process one refresh of a connection runs
//! at a time; across replicas the claim is a row in the store. The steps are those of the refresh
//! protocol: claim with intent, committed; one bounded POST with no database connection held; the
//! grant stored by compare-and-set on the generation it was made from; only then published.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::sleep;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{Broker, BrokerError, ReceivedGrant};
use crate::{
    client::Client,
    clock::Stopwatch,
    connection::{
        Account, Connection, ConnectionId, GrantType, HeldGrant, LastError, Record, State, backoff,
        refresh_at,
    },
    provider::{
        Grant, Held, OutboundRequest, Profile, ProviderError, RequestError, Rotation, Verdict,
        read_account, read_grant, request,
    },
    seal::Place,
    secret::{self, Digest},
    store,
};

/// How long after its claim a refresh may still begin to send.
const SEND_WINDOW: Duration = Duration::from_secs(5);

/// How long a commit may take.
const COMMIT_BUDGET: Duration = Duration::from_secs(5);

/// What a lease is longer than all it has to cover.
const LEASE_SLACK: Duration = Duration::from_secs(10);

/// How long to leave our own misconfiguration alone before trying again.
const MISCONFIGURED_PAUSE: Duration = Duration::from_mins(1);

/// Why a refresh is made: for the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// A connection without any token yet.
    Created,
    /// The background refresher found it due.
    Due,
    /// An operator asked for it.
    Operator,
    /// A reader needs it.
    Read,
    /// A reader reported that the API refused the token.
    Rejected,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Due => "due",
            Self::Operator => "operator",
            Self::Read => "read",
            Self::Rejected => "rejected",
        })
    }
}

/// A running refresh, to be awaited by any number of callers.
pub(crate) type Flight = Shared<BoxFuture<'static, Result<(), BrokerError>>>;

/// How long a claim lasts: computed, so that a lease shorter than the call it covers cannot be
/// written down.
#[must_use]
pub(super) fn lease(profile: &Profile) -> Duration {
    SEND_WINDOW + profile.token.timeout + COMMIT_BUDGET + LEASE_SLACK
}

/// Takes the flight off the board however it ends, a panic included.
struct Landing {
    broker: Arc<Broker>,
    id: ConnectionId,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.broker.flights.remove(&self.id);
    }
}

impl Broker {
    /// Starts the refresh of a connection, or joins the one that runs. It goes on when its callers
    /// hang up, and shutdown waits for it.
    ///
    /// `seen` is the generation that the caller found wanting: when a newer one is stored by now,
    /// nothing is sent. None refreshes if the schedule still says so.
    pub(crate) fn refresh(
        self: &Arc<Self>,
        id: ConnectionId,
        seen: Option<i64>,
        why: Why,
    ) -> Flight {
        self.flights
            .entry(id)
            .or_insert_with(|| {
                let span = tracing::info_span!("broker.refresh", connection.id = %id, %why);
                let landing = Landing { broker: Arc::clone(self), id };
                let task = self.tasks.spawn(
                    async move { landing.broker.refresh_once(id, seen).await }.instrument(span),
                );
                async move { task.await.unwrap_or(Err(BrokerError::Internal)) }.boxed().shared()
            })
            .clone()
    }

    /// Refreshes up to `limit` connections that are due, and waits for them. Returns how many.
    ///
    /// # Errors
    ///
    /// When the store cannot say what is due. How each refresh went is recorded with its
    /// connection.
    pub async fn refresh_due(self: &Arc<Self>, limit: u32) -> Result<usize, BrokerError> {
        let due = self.store.due(limit).await?;
        let count = due.len();
        let flights: Vec<Flight> =
            due.into_iter().map(|id| self.refresh(id, None, Why::Due)).collect();
        for flight in flights {
            // Recorded and logged where it happened.
            let _ = flight.await;
        }
        Ok(count)
    }

    async fn refresh_once(&self, id: ConnectionId, seen: Option<i64>) -> Result<(), BrokerError> {
        let record = self.store.record_by_id(id).await?.ok_or(BrokerError::Revoked)?;
        let generation = generation(&record);
        let done = match seen {
            Some(seen) => generation > seen,
            None => record.connection.refresh_at.is_none_or(|at| at > self.clock.now()),
        };
        if done || !record.connection.state.refreshes() {
            self.adopt(record).await;
            return Ok(());
        }
        let client = Arc::clone(self.client(&record.connection.client)?);
        let Some(request) = self.request(&client, &record)? else {
            return self.without_refresh_token(&record).await;
        };
        let spent = request.spends;
        let attempt = Uuid::now_v7().to_string();
        let clock = Stopwatch::start();
        let claimed = self
            .store
            .claim(id, &attempt, generation, spent.as_ref(), lease(&client.profile))
            .await?;
        if claimed.is_none() {
            return self.wait_for_other(id, generation, lease(&client.profile)).await;
        }
        if clock.elapsed() > SEND_WINDOW {
            self.store.release(id, &attempt).await?;
            return Err(BrokerError::Unavailable {
                reason: "the claim took too long to be safe to use".to_owned(),
                retry_after: Duration::from_secs(1),
            });
        }
        let sent_at = self.clock.now();
        let mut reply = self.ask(&client, request.outbound).await;
        if let Err(error) = &reply
            && matches!(error.verdict, Verdict::Refused { .. })
            && record.connection.grant_type == GrantType::ClientCredentials
            && spent.is_some()
        {
            // Nobody consented to this grant: the client simply asks anew.
            let anew = client_credentials(&client, &record)?;
            reply = self.ask(&client, anew).await;
        }
        match reply {
            Ok(grant) => self.store_refreshed(&client, &record, &attempt, &grant, sent_at).await,
            Err(error) => self.record_refusal(&client, &record, &attempt, spent, error).await,
        }
    }

    /// One request to the token endpoint and its answer, read.
    pub(super) async fn ask(
        &self,
        client: &Client,
        request: OutboundRequest,
    ) -> Result<Grant, ProviderError> {
        let reply = self.outbound.send(&client.profile, request).await?;
        read_grant(&client.profile, &reply)
    }

    /// What to send for this connection, or nothing if it has no way to refresh.
    fn request(&self, client: &Client, record: &Record) -> Result<Option<Request>, BrokerError> {
        let connection = &record.connection;
        let held = record.grant.as_ref().and_then(|grant| Some((grant, grant.refresh.as_ref()?)));
        if let Some((grant, sealed)) = held
            && client.profile.grants.refresh_token.is_some()
        {
            let id = connection.id.to_string();
            let place = |field| Place { record: &id, field, generation: grant.generation };
            let open = |field, sealed| {
                self.keyring.open(place(field), sealed).map_err(|error| {
                    tracing::error!(%error, "a stored token does not open");
                    BrokerError::Integrity
                })
            };
            let refresh = open("refresh", sealed)?;
            let access = open("access", &grant.access)?;
            let held = Held { refresh: &refresh, access: &access };
            let outbound = request::refresh(client, held, &client.redirect_uri, &connection.vars)
                .map_err(|error| misconfigured(&error))?;
            return Ok(Some(Request { outbound, spends: Some(Digest::of(&refresh)) }));
        }
        if connection.grant_type == GrantType::ClientCredentials {
            let outbound = client_credentials(client, record)?;
            return Ok(Some(Request { outbound, spends: None }));
        }
        Ok(None)
    }

    /// Stores a grant that a refresh brought, then publishes it.
    async fn store_refreshed(
        &self,
        client: &Client,
        record: &Record,
        attempt: &str,
        grant: &Grant,
        sent_at: Timestamp,
    ) -> Result<(), BrokerError> {
        let connection = &record.connection;
        let next = self.next_grant(record, grant, sent_at)?;
        let stored = self.commit(client, record, &next).await;
        let after = self.reload(connection.id).await?;
        if !stored && generation(&after) <= generation(record) {
            tracing::error!(attempt, "a received grant was not stored: the connection changed");
            return Err(BrokerError::Internal);
        }
        tracing::info!(
            connection = %connection.name, provider = %client.profile.name,
            generation = next.generation, expires_at = %next.expires_at, "refreshed"
        );
        if connection.account.is_none() {
            self.learn_account(client, &after, &grant.access).await;
        }
        Ok(())
    }

    /// The grant that follows what the connection holds. A refresh token that the answer leaves out
    /// stays as it was (RFC 6749 section 6).
    fn next_grant(
        &self,
        record: &Record,
        grant: &Grant,
        sent_at: Timestamp,
    ) -> Result<HeldGrant, BrokerError> {
        let connection = &record.connection;
        let kept = match (&grant.refresh, &record.grant) {
            (None, Some(held)) => self.open_refresh(connection.id, held)?,
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
        };
        Ok(self.seal_grant(connection.id, generation(record) + 1, received))
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

    /// Commits a grant, for as long as it takes: one that was received is never dropped because
    /// the database is away. False when another grant was stored meanwhile.
    async fn commit(&self, client: &Client, record: &Record, next: &HeldGrant) -> bool {
        let commit = store::Commit {
            connection: record.connection.id,
            grant: next,
            refresh_at: due_at(client, &record.connection, next),
            account: None,
            vars: None,
            scopes: None,
        };
        let mut pause = Duration::from_millis(100);
        loop {
            match self.store.commit_grant(&commit).await {
                Ok(stored) => return stored,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a received grant is not stored yet; trying again"
                    );
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// Records why a refresh brought nothing. The stored tokens stay as they are, but for a new
    /// refresh token that could be taken out of an unusable answer.
    async fn record_refusal(
        &self,
        client: &Client,
        record: &Record,
        attempt: &str,
        spent: Option<Digest>,
        error: ProviderError,
    ) -> Result<(), BrokerError> {
        let connection = &record.connection;
        let mut from = generation(record);
        if let (Some(refresh), Some(held)) = (&error.salvaged_refresh, &record.grant)
            && spent != Some(Digest::of(refresh))
            // Within a grace the old one brings a whole new pair.
            && client.profile.tokens.rotation != Rotation::Grace
        {
            let next = self.salvage(connection.id, held, refresh)?;
            if self.commit(client, record, &next).await {
                tracing::warn!("kept the refresh token of an unusable answer");
                // That ended the attempt; what is recorded below belongs to a new one.
                from = next.generation;
                let lease = Duration::from_secs(1);
                self.store.claim(connection.id, attempt, from, None, lease).await?;
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
        let (state, reason) = state_after(&error.verdict, connection.grant_type, connection.state);
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
        self.store
            .record_failure(&store::Failure {
                connection: connection.id,
                from_generation: from,
                attempt,
                state,
                reason: reason.as_deref(),
                error: &last_error,
                refresh_at: next,
                failures,
            })
            .await?;
        self.reload(connection.id).await?;
        Err(match error.verdict {
            Verdict::Refused { reason } if state == State::NeedsConsent => {
                BrokerError::ConsentRequired { reason }
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

    /// A consented grant without refresh token cannot be renewed: when it ends, a person must
    /// consent again.
    async fn without_refresh_token(&self, record: &Record) -> Result<(), BrokerError> {
        let ended = record.grant.as_ref().is_none_or(|grant| grant.expires_at <= self.clock.now());
        if ended {
            let reason = Some("no_refresh_token");
            self.store.set_state(record.connection.id, State::NeedsConsent, reason).await?;
        }
        self.reload(record.connection.id).await?;
        Err(BrokerError::ConsentRequired { reason: "no_refresh_token".to_owned() })
    }

    /// Another replica is refreshing: wait for its grant, for as long as its lease may last.
    async fn wait_for_other(
        &self,
        id: ConnectionId,
        from: i64,
        at_most: Duration,
    ) -> Result<(), BrokerError> {
        let waited = Stopwatch::start();
        while waited.elapsed() < at_most {
            sleep(Duration::from_millis(250)).await;
            let record = self.reload(id).await?;
            if generation(&record) > from || !record.connection.state.refreshes() {
                return Ok(());
            }
            if record.connection.last_error.as_ref().is_some_and(|error| {
                record.connection.refresh_at.is_some_and(|at| at > self.clock.now())
                    && Duration::try_from(self.clock.now().duration_since(error.at))
                        .is_ok_and(|ago| ago <= waited.elapsed())
            }) {
                break;
            }
        }
        Err(BrokerError::Unavailable {
            reason: "another replica is refreshing this connection".to_owned(),
            retry_after: Duration::from_secs(2),
        })
    }

    /// Asks whose account a client-credentials token is for: good to know, never a condition.
    async fn learn_account(&self, client: &Client, record: &Record, access: &SecretString) {
        let account = self.account(client, access, &record.connection.vars).await;
        match account {
            Ok(Some(account)) => {
                let stored = self.store.set_account(record.connection.id, &account).await;
                if stored.is_ok() {
                    let _ = self.reload(record.connection.id).await;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::info!("the account could not be read: {}", error.message),
        }
    }

    /// The account that an access token is for; none where the profile names no way to ask.
    pub(super) async fn account(
        &self,
        client: &Client,
        access: &SecretString,
        vars: &crate::connection::Vars,
    ) -> Result<Option<Account>, ProviderError> {
        let Some(request) = request::account(client, access, vars) else { return Ok(None) };
        let request = request.map_err(|error| ProviderError {
            verdict: Verdict::Misconfigured,
            status: None,
            code: "account_call".to_owned(),
            message: error.to_string(),
            salvaged_refresh: None,
        })?;
        let reply = self.outbound.send(&client.profile, request).await?;
        read_account(&client.profile, &reply).map(Some)
    }
}

/// A request with the digest of the refresh token that it spends.
struct Request {
    outbound: OutboundRequest,
    spends: Option<Digest>,
}

/// The request of a client for a token of its own.
fn client_credentials(client: &Client, record: &Record) -> Result<OutboundRequest, BrokerError> {
    let connection = &record.connection;
    request::client_credentials(client, &connection.scopes, &connection.vars)
        .map_err(|error| misconfigured(&error))
}

fn misconfigured(error: &RequestError) -> BrokerError {
    BrokerError::Misconfigured(error.to_string())
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

fn generation(record: &Record) -> i64 {
    record.grant.as_ref().map_or(0, |grant| grant.generation)
}

/// Where a failed refresh leaves the connection. Our own misconfiguration leaves it where it was,
/// and no grant that nobody consented to ever needs consent.
fn state_after(verdict: &Verdict, grant_type: GrantType, before: State) -> (State, Option<String>) {
    match verdict {
        Verdict::Refused { reason } if grant_type == GrantType::AuthorizationCode => {
            (State::NeedsConsent, Some(reason.clone()))
        }
        Verdict::Misconfigured => (before, None),
        Verdict::Ambiguous => (State::Uncertain, None),
        Verdict::Refused { .. } | Verdict::Busy { .. } | Verdict::NotSent | Verdict::Retry => {
            (State::BackingOff, None)
        }
    }
}
