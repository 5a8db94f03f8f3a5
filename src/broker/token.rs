//! Fetch: the fresh token of a connection, from memory whenever one lives.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::timeout;

use super::{
    BrokerError, Caller, RefreshReason,
    access::Access,
    audit::AuditLog,
    cache::{Cache, CachedConnection, CachedGrant},
    clients::Clients,
    refresh::SingleFlight,
};
use crate::{
    audit::{Actor, EventKind},
    clock::{Clock, Moment},
    domain::{
        caller::{Service, Verb},
        connection::{LastError, State},
        grant::MIN_SCHEDULED_LIFE,
        slug::Slug,
    },
    store::Store,
};

/// The time that a reader without a live token waits for a refresh unless it says otherwise, and the
/// most it may ask for: a little more than the longest token request.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// Reports in an hour that may force a refresh of one connection.
const MAX_REPORTS: i64 = 20;

/// The request for a token.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenRequest {
    /// The time that the token should live at least; half of its whole life at the most.
    pub min_ttl: Duration,
    /// The time to wait for a running refresh rather than take a token that lives for less. None:
    /// not at all while any token lives, and for a minute when none does.
    pub wait: Option<Duration>,
    /// Where the reader is, for the record of it.
    pub peer: Option<IpAddr>,
}

/// A live token with all that is needed to use it.
#[derive(Debug)]
pub struct IssuedToken {
    live: Arc<CachedConnection>,
    /// The provider's name.
    pub provider: String,
    /// The rest of the token's life, in whole seconds.
    pub expires_in: u64,
    /// Past its planned refresh, or shorter-lived than was asked for.
    pub stale: bool,
}

impl IssuedToken {
    fn grant(&self) -> &CachedGrant {
        self.live.grant.as_ref().expect("an issued token is made from a connection with a grant")
    }

    /// The access token itself.
    pub fn access_token(&self) -> &SecretString {
        &self.grant().access
    }

    /// The headers that carry the token to the provider's API.
    pub fn headers(&self) -> &BTreeMap<String, SecretString> {
        &self.grant().headers
    }

    /// Where the account's API is, if the profile says.
    pub fn api_base_url(&self) -> Option<&str> {
        self.grant().api_base_url.as_deref()
    }

    /// When the token ends.
    pub fn expires_at(&self) -> Timestamp {
        self.grant().expires_at
    }

    /// The scopes that the provider granted.
    pub fn scopes(&self) -> &[String] {
        &self.grant().scopes
    }

    /// The mark to report the token by, should the API refuse it.
    pub fn fingerprint(&self) -> &str {
        &self.grant().fingerprint
    }

    /// The number of grants that the connection has held.
    pub fn generation(&self) -> i64 {
        self.grant().generation
    }

    /// The connection's name.
    pub fn connection(&self) -> &str {
        self.live.connection.name.as_str()
    }

    /// The provider's id of the account, if known.
    pub fn account(&self) -> Option<&str> {
        self.live.connection.account.as_ref().map(|account| account.id.as_str())
    }
}

/// Reads tokens for services.
#[derive(Debug)]
pub(crate) struct TokenReader {
    pub(crate) store: Store,
    pub(crate) cache: Arc<Cache>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) access: Arc<Access>,
    pub(crate) flights: Arc<SingleFlight>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) clock: Clock,
}

impl TokenReader {
    /// The fresh token of a connection.
    ///
    /// # Errors
    ///
    /// Only when there is no live token, or one must not be served; a failing provider, database
    /// or refresh withholds no live token. [`BrokerError::Unaudited`] when nobody accepts the record
    /// of it.
    pub(crate) async fn token(
        &self,
        service: &Service,
        name: &str,
        request: TokenRequest,
    ) -> Result<IssuedToken, BrokerError> {
        let token = self.find_token(service, name, request, MAX_WAIT).await?;
        self.record_issue(service, &token, request.peer, None).await?;
        Ok(token)
    }

    /// As [`TokenReader::token`], with no record of it; waits for `at_most`, whatever is asked for.
    async fn find_token(
        &self,
        service: &Service,
        name: &str,
        request: TokenRequest,
        at_most: Duration,
    ) -> Result<IssuedToken, BrokerError> {
        let live = self.live_for(service, name).await?;
        let at = self.clock.moment();
        let asked = match live.grant.as_ref() {
            Some(grant) => request.min_ttl.min(grant.life() / 2),
            None => Duration::ZERO,
        };
        let alive = is_alive(&live, at);
        if alive && live.grant.as_ref().is_some_and(|grant| grant.left(at) >= asked) {
            if on_demand(&live, at) && refresh_is_allowed(&live, at.now).is_ok() {
                // The caller has a live token and does not wait for the next.
                drop(self.flights.refresh(&live.connection, live.generation, RefreshReason::Read));
            }
            return self.issue(live, asked);
        }
        let wait = match request.wait {
            Some(wait) => wait.min(at_most),
            None if alive => Duration::ZERO,
            None => at_most,
        };
        let failed = match refresh_is_allowed(&live, at.now) {
            Ok(()) => {
                let flight =
                    self.flights.refresh(&live.connection, live.generation, RefreshReason::Read);
                timeout(wait, flight).await.unwrap_or_else(|_| {
                    Err(BrokerError::unavailable(
                        "the refresh is still running",
                        Duration::from_secs(2),
                    ))
                })
            }
            refused => refused,
        };
        let live = self.live_for(service, name).await?;
        match failed {
            _ if is_alive(&live, self.clock.moment()) => self.issue(live, asked),
            Err(error) => Err(error),
            Ok(()) => Err(BrokerError::unavailable(
                "the provider's newest token has already ended",
                Duration::from_secs(2),
            )),
        }
    }

    /// A service reports that the API refused a token: at most one refresh is forced, and an older
    /// fingerprint changes nothing.
    pub(crate) async fn token_rejected(
        &self,
        service: &Service,
        name: &str,
        fingerprint: &str,
        request: TokenRequest,
    ) -> Result<IssuedToken, BrokerError> {
        let (at_most, waited) =
            (request.wait.unwrap_or(MAX_WAIT).min(MAX_WAIT), self.clock.stopwatch());
        let live = self.live_for(service, name).await?;
        if let Some(grant) = live.grant.as_ref()
            && grant.fingerprint == fingerprint
            && refresh_is_allowed(&live, self.clock.now()).is_ok()
            && self.report_counts(&live, grant).await
        {
            let flight =
                self.flights.refresh(&live.connection, live.generation, RefreshReason::Rejected);
            // The reported token may live on elsewhere: a failed refresh withholds nothing.
            let _ = timeout(at_most, flight).await;
        }
        let left = at_most.saturating_sub(waited.elapsed());
        let token = self.find_token(service, name, request, left).await?;
        self.record_issue(service, &token, request.peer, Some("after_rejected")).await?;
        Ok(token)
    }

    /// Waits until the audit file has the record of a token: it leaves after that and not before.
    async fn record_issue(
        &self,
        service: &Service,
        token: &IssuedToken,
        peer: Option<IpAddr>,
        detail: Option<&str>,
    ) -> Result<(), BrokerError> {
        let by = Actor::new(Caller::label_of(service), peer);
        let connection = &token.live.connection;
        let record = self
            .audit
            .event(EventKind::TokenIssued, &by)
            .about(connection.id, &connection.name)
            .at_provider(&token.provider)
            .with_grant(token.fingerprint(), token.generation());
        let record = match detail {
            Some(detail) => record.with_detail(detail),
            None => record,
        };
        self.audit.write_durable(&record).await
    }

    /// True if a report forces a refresh: once a minute at most, or once per half life of a token
    /// that lives for less than two; and when a new token does not help again and again, the
    /// connection becomes suspect instead.
    async fn report_counts(&self, live: &CachedConnection, grant: &CachedGrant) -> bool {
        let id = live.connection.id;
        let floor = Duration::from_mins(1).min(grant.life() / 2);
        let counted =
            self.store.count_report(id, grant.generation, floor, Duration::from_hours(1)).await;
        // Without the database nothing is refreshed either.
        let Ok(Some(reports)) = counted else { return false };
        if reports <= MAX_REPORTS {
            return true;
        }
        tracing::error!(
            connection.name = %live.connection.name, reports,
            "its tokens are reported as refused although they are new: nothing is refreshed for \
             reports for now; look at the account and at the service that reports them"
        );
        if self.store.suspect_reports(id).await.is_ok() {
            let _ = self.cache.reload(id).await;
        }
        false
    }

    async fn live_for(
        &self,
        service: &Service,
        name: &str,
    ) -> Result<Arc<CachedConnection>, BrokerError> {
        if !service.may(Verb::Token, name) {
            return Err(BrokerError::no_connection(name));
        }
        self.access.ensure_service_not_frozen(&service.name)?;
        let live = match self.cache.cached_or_load(name).await {
            Err(BrokerError::NotFound(_)) if self.was_deleted(name).await? => {
                return Err(BrokerError::Revoked);
            }
            live => live?,
        };
        if live.connection.state.is_deleted() {
            return Err(BrokerError::Revoked);
        }
        self.access.ensure_not_frozen(&live.connection.name, &live.connection.client)?;
        if live.connection.state.serves() {
            return Ok(live);
        }
        Err(BrokerError::of_state(&live.connection).unwrap_or(BrokerError::Integrity))
    }

    async fn was_deleted(&self, name: &str) -> Result<bool, BrokerError> {
        // A text that is no name was never one, and need not be fit for a database.
        Ok(name.parse::<Slug>().is_ok() && self.store.was_deleted(name).await?)
    }

    fn issue(
        &self,
        live: Arc<CachedConnection>,
        asked: Duration,
    ) -> Result<IssuedToken, BrokerError> {
        let at = self.clock.moment();
        let grant = live.grant.as_ref().ok_or(BrokerError::NotConnected)?;
        let provider =
            self.clients.of_connection(&live.connection.client)?.profile.name.to_string();
        let overdue = live.connection.refresh_at.is_some_and(|due| due < at.now)
            || live.connection.state != State::Active;
        let left = grant.left(at);
        Ok(IssuedToken {
            provider,
            expires_in: left.as_secs(),
            stale: overdue || left < asked,
            live,
        })
    }
}

/// Refuses a reader's refresh that the state or a backoff forbids.
fn refresh_is_allowed(live: &CachedConnection, now: Timestamp) -> Result<(), BrokerError> {
    let connection = &live.connection;
    match connection.state {
        State::Active if connection.last_error.is_none() => Ok(()),
        state if !state.refreshes() => {
            Err(BrokerError::of_state(connection).unwrap_or_else(|| {
                BrokerError::unavailable(
                    format!("the connection is {state}; an operator must look"),
                    Duration::from_mins(1),
                )
            }))
        }
        _ => match connection.refresh_at {
            Some(at) if at > now => {
                Err(waiting_for_backoff(connection.last_error.as_ref(), at, now))
            }
            _ => Ok(()),
        },
    }
}

fn waiting_for_backoff(
    last_error: Option<&LastError>,
    at: Timestamp,
    now: Timestamp,
) -> BrokerError {
    let retry_after = Duration::try_from(at.duration_since(now)).unwrap_or_default();
    let reason = match last_error {
        Some(error) if error.is_misconfigured() => {
            return BrokerError::Misconfigured(error.message.clone());
        }
        Some(error) => format!("the last refresh failed: {}", error.message),
        None => "the last refresh failed".to_owned(),
    };
    BrokerError::Unavailable { reason, retry_after }
}

/// True if there is a token that can still be used.
fn is_alive(live: &CachedConnection, at: Moment) -> bool {
    live.grant.as_ref().is_some_and(|grant| !grant.remaining(at).is_zero())
}

/// A token that is too short-lived to be scheduled is refreshed by its readers, once per half
/// life, which counts from when it was asked for.
fn on_demand(live: &CachedConnection, at: Moment) -> bool {
    live.grant.as_ref().is_some_and(|grant| {
        grant.life() < MIN_SCHEDULED_LIFE && grant.left(at) <= grant.life() / 2
    })
}
