//! Health, for people and monitors: no names of accounts, no secrets.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    access::Access,
    audit::AuditLog,
    cache::{Cache, CachedConnection, UNCONFIRMED},
    clients::Clients,
    clock_skew::ClockSkew,
    limits::Limits,
    process::Process,
    vault::Vault,
};
use crate::{
    audit::FileHealth,
    clock::Moment,
    domain::{
        connection::{LastError, State},
        grant::MIN_SCHEDULED_LIFE,
    },
    store::{EngineKind, Store},
};

/// How the broker is, all in all.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Everything works.
    Ok,
    /// Live tokens are served, and a person should look.
    Degraded,
    /// Tokens cannot be served.
    Down,
}

/// How the broker is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// All in all.
    pub status: HealthStatus,
    /// What is not as it should be, one sentence each.
    pub notes: Vec<String>,
    /// The database.
    pub database: DatabaseHealth,
    /// The background refresher.
    pub refresher: RefresherHealth,
    /// The audit trail.
    pub audit: AuditHealth,
    /// How many things are frozen: providers, clients, services, connections.
    pub freezes: usize,
    /// Every client, by name.
    pub clients: BTreeMap<String, ClientHealth>,
}

/// How the database is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DatabaseHealth {
    /// `sqlite` (one process only) or `postgres`.
    #[schema(value_type = String, example = "postgres")]
    pub engine: EngineKind,
    /// Whether it answers.
    pub reachable: bool,
}

/// How the audit trail is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AuditHealth {
    /// The file of this replica.
    pub file: FileHealth,
    /// How many of its records are not in the database yet.
    pub unshipped: u64,
}

/// How far the background refresher is behind.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RefresherHealth {
    /// How many seconds ago the most overdue refresh was planned, or, where that was longer ago, its
    /// token ended: a failing refresh is planned anew and anew.
    pub lag_seconds: u64,
    /// How many connections are overdue.
    pub overdue: usize,
}

/// How the connections of a client are.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ClientHealth {
    /// Its provider.
    pub provider: String,
    /// How many connections are in each state.
    pub states: BTreeMap<State, usize>,
    /// When the first of the live tokens ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_expiry: Option<Timestamp>,
}

/// A refresh that is later than this is worth a note.
const LATE: Duration = Duration::from_mins(5);

/// Says how the broker is.
#[derive(Debug)]
pub(crate) struct HealthReporter {
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault>,
    pub(crate) access: Arc<Access>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) clock_skew: Arc<ClockSkew>,
    pub(crate) process: Arc<Process>,
}

impl HealthReporter {
    /// Looks at everything at once.
    pub(crate) async fn report(&self) -> Health {
        let reachable = self.store.ping().await.is_ok();
        let counts = self.count();
        let (file, unshipped) = self.audit.condition();
        let freezes = self.access.current_freezes().count();
        let unconfirmed = self.cache.is_unconfirmed();
        let mut notes = Vec::new();
        if unconfirmed {
            notes.push(format!("{UNCONFIRMED}; no key is accepted"));
        } else if !reachable {
            notes.push("the database does not answer; live tokens are served".to_owned());
        }
        notes.extend(self.clock_skew.note());
        notes.extend(self.vault.problem());
        notes.extend(self.cache.missing_key().map(|key| {
            format!("stored tokens are sealed with key `{key}`, which this key file lacks")
        }));
        notes.extend(counts.notes());
        if freezes > 0 {
            notes.push(format!("{freezes} freezes stand; nothing that they name is served"));
        }
        match file {
            FileHealth::Ok => {}
            FileHealth::Unsynced => {
                notes.push("audit records may not survive a power cut".to_owned());
            }
            FileHealth::Failing => {
                notes.push("audit records cannot be written; no token is handed out".to_owned());
            }
        }
        notes.extend(self.limits.gates().flat_map(|(_, gate)| gate.notes()));
        let status = if unconfirmed || file == FileHealth::Failing {
            HealthStatus::Down
        } else if notes.is_empty() {
            HealthStatus::Ok
        } else {
            HealthStatus::Degraded
        };
        Health {
            status,
            notes,
            database: DatabaseHealth { engine: self.store.engine(), reachable },
            refresher: RefresherHealth {
                lag_seconds: counts.lag.as_secs(),
                overdue: counts.overdue,
            },
            audit: AuditHealth { file, unshipped },
            freezes,
            clients: counts.clients,
        }
    }

    /// Whether the broker can take requests: what it holds is confirmed, or not long unconfirmed.
    pub(crate) fn is_ready(&self) -> bool {
        !self.cache.is_unconfirmed()
    }

    fn count(&self) -> Counts {
        let clients = self.clients.iter().map(|client| {
            let provider = client.profile.name.to_string();
            (client.name.to_string(), ClientHealth { provider, ..ClientHealth::default() })
        });
        let mut counts = Counts { clients: clients.collect(), ..Counts::default() };
        let at = self.process.clock.moment();
        for live in self.cache.connections() {
            counts.add(&live, at);
            let unconfigured = self.clients.get(&live.connection.client).is_none();
            counts.unconfigured += usize::from(unconfigured);
        }
        counts
    }
}

/// The counts over all connections.
#[derive(Debug, Default)]
struct Counts {
    clients: BTreeMap<String, ClientHealth>,
    states: BTreeMap<State, usize>,
    overdue: usize,
    /// The time since the most overdue refresh was due.
    lag: Duration,
    unconfigured: usize,
    without_token: usize,
    misconfigured: usize,
    unrevoked: usize,
}

impl Counts {
    fn add(&mut self, live: &CachedConnection, at: Moment) {
        let (connection, now) = (&live.connection, at.now);
        let client = self.clients.entry(connection.client.to_string()).or_default();
        *client.states.entry(connection.state).or_default() += 1;
        *self.states.entry(connection.state).or_default() += 1;
        if let Some(grant) = &live.grant
            && grant.expires_at > now
        {
            let next = client.next_expiry.get_or_insert(grant.expires_at);
            *next = (*next).min(grant.expires_at);
        }
        if let Some(since) = due_since(live)
            && since < now
        {
            self.overdue += 1;
            let lag = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            self.lag = self.lag.max(lag);
        }
        self.without_token += usize::from(lacks_token(live, at));
        self.misconfigured += usize::from(is_misconfigured(live));
        let revoking = connection.state == State::Revoking;
        self.unrevoked += usize::from(revoking && connection.failures > 0);
    }

    /// The problems, one sentence each.
    fn notes(&self) -> Vec<String> {
        let states = self.states.iter().filter_map(|(state, count)| {
            concern(*state).map(|concern| format!("{count} × {state}: {concern}"))
        });
        let overdue = if self.lag > LATE { self.overdue } else { 0 };
        let others = [
            (self.unconfigured, "connections belong to clients that are not configured"),
            (self.without_token, "connections should serve and hold no live token"),
            (
                self.misconfigured,
                "connections fail because the provider refuses our registration or settings",
            ),
            (overdue, "refreshes are overdue"),
            (self.unrevoked, "deleted connections could not be revoked yet; it is tried again"),
        ];
        let others = others.into_iter().filter(|(count, _)| *count > 0);
        states.chain(others.map(|(count, concern)| format!("{count} {concern}"))).collect()
    }
}

/// When the connection should have been refreshed at the latest: when that is planned, or when its
/// token ended, if that was earlier. None for one that is not refreshed.
fn due_since(live: &CachedConnection) -> Option<Timestamp> {
    let connection = &live.connection;
    let planned = connection.refresh_at.filter(|_| connection.state.refreshes())?;
    if is_on_demand(live) {
        return Some(planned);
    }
    // One without a token yet has needed it ever since it was made.
    let end = live.grant.as_ref().map_or(connection.created_at, |grant| grant.expires_at);
    Some(planned.min(end))
}

/// True if a reader who asks now has to wait for a refresh, or is turned away.
fn lacks_token(live: &CachedConnection, at: Moment) -> bool {
    let connection = &live.connection;
    let lives = live.grant.as_ref().is_some_and(|grant| !grant.remaining(at).is_zero());
    connection.state.serves() && !lives && !is_on_demand(live)
}

/// True if it is refreshed for its readers alone: between two of them its token may well have ended.
fn is_on_demand(live: &CachedConnection) -> bool {
    let short = live.grant.as_ref().is_some_and(|grant| grant.life() < MIN_SCHEDULED_LIFE);
    short && live.connection.state == State::Active
}

/// True if the last refresh failed for a reason that somebody has to mend on our side; the
/// connection keeps its state then.
fn is_misconfigured(live: &CachedConnection) -> bool {
    let error = live.connection.last_error.as_ref();
    error.is_some_and(LastError::is_misconfigured)
}

/// Why a state is worth a person's attention, if it is. Connections are counted and not named,
/// for the page is open to all and a name may be an account's.
fn concern(state: State) -> Option<&'static str> {
    match state {
        State::Active | State::BackingOff | State::PendingConsent | State::Revoking => None,
        State::Revoked => {
            Some("a person has to remove the application at the provider; see their `task`")
        }
        State::EndpointChanged => {
            Some("the token endpoint of the profile changed: refresh as operator to accept it")
        }
        State::IntegrityError => Some("the stored tokens do not open"),
        State::NeedsConsent => Some("a person must consent again"),
        State::PendingConfirm => Some("the account that consented waits to be confirmed"),
        State::Quarantined => {
            Some("the database looks restored or copied; see `token-broker release --plan`")
        }
        State::Suspect => Some("the evidence contradicts itself"),
        State::Uncertain => Some("the outcome of the last refresh is unknown"),
    }
}
