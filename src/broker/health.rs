//! Health, for people and monitors: no names of accounts, no secrets.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Broker, cache::CachedConnection, limits::gate::Gate};
use crate::{
    audit::FileHealth,
    clock::Moment,
    domain::connection::{LastError, MIN_SCHEDULED_LIFE, State},
    store::EngineKind,
    words::words,
};

words! {
    /// How the broker is, all in all.
    HealthStatus {
        /// Everything works.
        Ok = "ok",
        /// CachedConnection tokens are served, and a person should look.
        Degraded = "degraded",
        /// Tokens cannot be served.
        Down = "down",
    }
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

/// By how many milliseconds our wall clock and the database's may differ.
const MAX_APART: i64 = 30_000;

/// A refresh that is later than this is worth a note.
const LATE: Duration = Duration::from_mins(5);

/// Why no key opens anything once [`Broker::is_too_old`].
pub(crate) const TOO_OLD: &str =
    "the database has not confirmed keys and connections for 15 minutes";

impl Broker {
    /// Looks at everything at once.
    pub async fn health(&self) -> Health {
        let at = self.clock.moment();
        let now = at.now;
        let reachable = self.store.ping().await.is_ok();
        let mut notes = Vec::new();
        let too_old = self.is_too_old();
        if too_old {
            notes.push(format!("{TOO_OLD}; no key is accepted"));
        } else if !reachable {
            notes.push("the database does not answer; live tokens are served".to_owned());
        }
        notes.extend(self.clock_note());
        notes.extend(self.key_notes());
        let freezes = self.memory.freezes().count();
        let mut clients: BTreeMap<String, ClientHealth> = self
            .clients
            .values()
            .map(|client| {
                let provider = client.profile.name.to_string();
                (client.name.to_string(), ClientHealth { provider, ..ClientHealth::default() })
            })
            .collect();
        let mut lag = Duration::ZERO;
        let mut overdue = 0;
        let mut strays = 0;
        let mut without_token = 0;
        let mut misconfigured = 0;
        let mut unrevoked = 0;
        let mut states: BTreeMap<State, usize> = BTreeMap::new();
        for live in self.memory.connections() {
            let connection = &live.connection;
            let client = clients.entry(connection.client.to_string()).or_default();
            *client.states.entry(connection.state).or_default() += 1;
            *states.entry(connection.state).or_default() += 1;
            if let Some(grant) = &live.grant
                && grant.expires_at > now
            {
                let next = client.next_expiry.get_or_insert(grant.expires_at);
                *next = (*next).min(grant.expires_at);
            }
            if let Some(since) = due_since(&live)
                && since < now
            {
                overdue += 1;
                lag = lag.max(Duration::try_from(now.duration_since(since)).unwrap_or_default());
            }
            strays += usize::from(!self.clients.contains_key(&connection.client));
            without_token += usize::from(lacks_token(&live, at));
            misconfigured += usize::from(is_misconfigured(&live));
            let revoking = connection.state == State::Revoking;
            unrevoked += usize::from(revoking && connection.failures > 0);
        }
        notes.extend(states.into_iter().filter_map(|(state, count)| {
            concern(state).map(|concern| format!("{count} × {state}: {concern}"))
        }));
        for (count, concern) in [
            (strays, "connections belong to clients that are not configured"),
            (without_token, "connections should serve and hold no live token"),
            (
                misconfigured,
                "connections fail because the provider refuses our registration or settings",
            ),
            (if lag > LATE { overdue } else { 0 }, "refreshes are overdue"),
            (unrevoked, "deleted connections could not be revoked yet; it is tried again"),
            (freezes, "freezes stand; nothing that they name is served"),
        ] {
            if count > 0 {
                notes.push(format!("{count} {concern}"));
            }
        }
        let (file, unshipped) = self.audit_condition();
        match file {
            FileHealth::Ok => {}
            FileHealth::Unsynced => {
                notes.push("audit records may not survive a power cut".to_owned());
            }
            FileHealth::Failing => {
                notes.push("audit records cannot be written; no token is handed out".to_owned());
            }
        }
        notes.extend(self.gates.values().flat_map(Gate::notes));
        let status = if too_old || file == FileHealth::Failing {
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
            refresher: RefresherHealth { lag_seconds: lag.as_secs(), overdue },
            audit: AuditHealth { file, unshipped },
            freezes,
            clients,
        }
    }

    /// Notes how far the wall clock is from the database's, and tells when that begins to matter.
    pub(crate) fn compare_clocks(&self) {
        let at = self.clock.moment();
        let apart = at.wall.as_millisecond() - at.now.as_millisecond();
        let apart = if apart.abs() > MAX_APART { apart } else { 0 };
        let before = self.clocks_apart.swap(apart, Ordering::Relaxed);
        if before == 0
            && let Some(note) = self.clock_note()
        {
            tracing::warn!("{note}");
        } else if before != 0 && apart == 0 {
            tracing::info!("this machine's clock agrees with the database's again");
        }
    }

    fn clock_note(&self) -> Option<String> {
        let apart = self.clocks_apart.load(Ordering::Relaxed);
        let (ahead, behind) = match apart {
            0 => return None,
            1.. => ("this machine's clock", "the database's"),
            _ => ("the database's clock", "this machine's"),
        };
        let apart = (apart.abs() + 500) / 1_000;
        Some(format!(
            "{ahead} is {apart} s ahead of {behind}; tokens are taken to end by the clock that is \
             ahead; run NTP on both"
        ))
    }

    /// Whether the broker can take requests: its memory is confirmed, or not long unconfirmed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.is_too_old()
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

/// Whether a reader who asks now has to wait for a refresh, or is turned away.
fn lacks_token(live: &CachedConnection, at: Moment) -> bool {
    let connection = &live.connection;
    let lives = live.grant.as_ref().is_some_and(|grant| !grant.remaining(at).is_zero());
    connection.state.serves() && !lives && !is_on_demand(live)
}

/// Whether it is refreshed for its readers alone: between two of them its token may well have ended.
fn is_on_demand(live: &CachedConnection) -> bool {
    let short = live.grant.as_ref().is_some_and(|grant| grant.life() < MIN_SCHEDULED_LIFE);
    short && live.connection.state == State::Active
}

/// Whether the last refresh failed for a reason that somebody has to mend on our side; the
/// connection keeps its state then.
fn is_misconfigured(live: &CachedConnection) -> bool {
    let error = live.connection.last_error.as_ref();
    error.is_some_and(LastError::is_misconfigured)
}

impl Broker {
    /// What is wrong with the sealing keys.
    fn key_notes(&self) -> impl Iterator<Item = String> {
        let lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lacking = lacking.map(|key| {
            format!("stored tokens are sealed with key `{key}`, which this key file lacks")
        });
        self.keyring.problem().into_iter().chain(lacking)
    }
}

/// Why a state is worth a person's attention, if it is. Connections are counted and not named,
/// for the page is open to all and a name may be an account's.
fn concern(state: State) -> Option<&'static str> {
    match state {
        State::Active | State::BackingOff | State::PendingConsent | State::Revoking => None,
        State::Revoked => {
            Some("a person has to remove the application at the provider; see their `task`")
        }
        State::EndpointChanged => Some("the token endpoint of the profile changed: refresh as operator to accept it"),
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
