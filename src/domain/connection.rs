//! A connection: one account reached through one client, its states, and when it is due.
//!
//! Nothing here reads a clock, a database or a socket: `now` is always an argument.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use utoipa::ToSchema;
use uuid::Uuid;

use super::slug::Slug;

/// The id of a connection: it never changes and is never reused, unlike the name.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ConnectionId(Uuid);

impl ConnectionId {
    /// A new id, ordered by time of creation.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for ConnectionId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ConnectionId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// How a connection obtains its tokens (RFC 6749 section 1.3).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(Display, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum GrantType {
    /// A person consents in a browser.
    AuthorizationCode,
    /// The client asks for itself; nobody consents.
    ClientCredentials,
}

impl GrantType {
    /// The word for it in the API and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum State {
    /// Serving and refreshing.
    Active,
    /// The last refresh failed for a passing reason; the token is served while it lives.
    BackingOff,
    /// The token endpoint of the profile is another one than issued the tokens: they are presented
    /// nowhere until an operator accepts it; the token is served while it lives.
    #[serde(rename = "blocked_config")]
    #[strum(to_string = "blocked_config")]
    EndpointChanged,
    /// A stored value does not open: nothing is served until an operator looks.
    IntegrityError,
    /// The provider refused the grant; a person must consent again.
    NeedsConsent,
    /// A person consented; the account still has to be confirmed.
    PendingConfirm,
    /// Nobody has consented yet.
    PendingConsent,
    /// The database looks restored or copied: served while it lives, not refreshed.
    Quarantined,
    /// Deleted, with its tokens; a person has to remove the application at the provider.
    Revoked,
    /// Being deleted; the provider has not yet accepted the revocation.
    Revoking,
    /// Evidence contradicts itself: served while it lives, and refreshed seldom.
    Suspect,
    /// A refresh was sent and its outcome is unknown.
    Uncertain,
}

impl State {
    /// The word for it in the API and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The lifecycle that the state is a part of.
    pub fn lifecycle(self) -> Lifecycle {
        match self {
            Self::PendingConsent => Lifecycle::PendingConsent,
            Self::PendingConfirm => Lifecycle::PendingConfirm,
            Self::Active
            | Self::BackingOff
            | Self::EndpointChanged
            | Self::Suspect
            | Self::Uncertain => Lifecycle::Live,
            Self::NeedsConsent => Lifecycle::NeedsConsent,
            Self::Quarantined => Lifecycle::Quarantined,
            Self::IntegrityError => Lifecycle::IntegrityError,
            Self::Revoking => Lifecycle::Revoking,
            Self::Revoked => Lifecycle::Revoked,
        }
    }

    /// The condition beside the lifecycle: only a live connection has another one than healthy.
    pub fn condition(self) -> Condition {
        match self {
            Self::BackingOff => Condition::BackingOff,
            Self::EndpointChanged => Condition::EndpointChanged,
            Self::Suspect => Condition::Suspect,
            Self::Uncertain => Condition::Uncertain,
            _ => Condition::Healthy,
        }
    }

    /// Whether a live access token may be handed out in this state.
    pub fn serves(self) -> bool {
        use Lifecycle::{Live, NeedsConsent, Quarantined};
        matches!(self.lifecycle(), Live | NeedsConsent | Quarantined)
    }

    /// Whether the connection was deleted: for its readers it is gone, and it never comes back.
    pub fn is_deleted(self) -> bool {
        matches!(self.lifecycle(), Lifecycle::Revoked | Lifecycle::Revoking)
    }

    /// Whether a refresh may be tried in this state.
    pub fn refreshes(self) -> bool {
        self.lifecycle() == Lifecycle::Live
    }

    /// The table of transitions: whether a connection in this state may come to be in the next one.
    /// To stay in a state is always allowed.
    #[expect(clippy::match_same_arms, reason = "a table: each row has its own cause")]
    pub fn may_become(self, next: Self) -> bool {
        use Lifecycle::{Live, NeedsConsent, PendingConfirm, PendingConsent, Quarantined};
        let from = self.lifecycle();
        if self == next {
            return true;
        }
        match (next.lifecycle(), next.condition()) {
            // A stored grant, or the end of a quarantine.
            (Live, Condition::Healthy) => !self.is_deleted(),
            // A failed refresh, or a refusal that is reverted because many came at once.
            (Live, Condition::Suspect) => matches!(from, Live | NeedsConsent),
            // A failed refresh, or the plan of one.
            (Live, _) => from == Live,
            // A refused refresh, or nothing to present.
            (NeedsConsent, _) => from == Live,
            // A grant whose account is to be confirmed, or the end of a quarantine.
            (PendingConfirm, _) => matches!(from, PendingConsent | Quarantined),
            // A pending grant that was rejected or has ended, or the end of a quarantine.
            (PendingConsent, _) => matches!(from, PendingConfirm | Quarantined),
            // A restored or copied database.
            (Quarantined, _) => matches!(from, Live | PendingConfirm),
            // A stored value that does not open; a deletion.
            (Lifecycle::IntegrityError | Lifecycle::Revoking, _) => !self.is_deleted(),
            // A deletion that a person has to finish.
            (Lifecycle::Revoked, _) => true,
        }
    }
}

/// Where a connection stands in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lifecycle {
    /// Nobody has consented yet.
    PendingConsent,
    /// A person consented; the account still has to be confirmed.
    PendingConfirm,
    /// It serves and is refreshed.
    Live,
    /// The grant was refused, or nothing may be presented: a person must consent again.
    NeedsConsent,
    /// The database looks restored or copied: served while it lives, not refreshed.
    Quarantined,
    /// A stored value does not open.
    IntegrityError,
    /// Being deleted.
    Revoking,
    /// Deleted; a person has to remove the application at the provider.
    Revoked,
}

/// The condition of a live connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    /// Nothing is known against it.
    Healthy,
    /// The last refresh failed for a passing reason.
    BackingOff,
    /// The token endpoint of the profile is another one than issued the tokens.
    EndpointChanged,
    /// Evidence contradicts itself: refreshed seldom.
    Suspect,
    /// A refresh was sent and its outcome is unknown.
    Uncertain,
}

/// The account at the provider that a grant belongs to.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct Account {
    /// The provider's own id of the account.
    pub id: String,
    /// What a person would call it, if the provider says.
    pub name: Option<String>,
    /// Other names that identify the account, such as an amoCRM subdomain.
    pub aliases: Vec<String>,
}

impl Account {
    /// Whether an operator who wrote `expected` meant this account.
    pub fn answers_to(&self, expected: &str) -> bool {
        self.id == expected || self.aliases.iter().any(|alias| alias == expected)
    }
}

/// What went wrong last, in words that carry no provider text.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct LastError {
    /// A stable, machine-readable code.
    pub code: String,
    /// One sentence for a person.
    pub message: String,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

impl LastError {
    /// The code where somebody has to mend our registration or settings.
    pub const MISCONFIGURED: &str = "provider_misconfigured";

    /// Whether somebody has to mend our registration or settings.
    pub fn is_misconfigured(&self) -> bool {
        self.code == Self::MISCONFIGURED
    }
}

/// Values that a connection's templates need, such as the amoCRM account host.
pub type Vars = BTreeMap<String, String>;

/// One account reached through one client.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Fixed for life; sealed values are bound to it.
    pub id: ConnectionId,
    /// What operators and services call it.
    pub name: Slug,
    /// The client, by its name in the configuration.
    pub client: Slug,
    /// How it obtains tokens.
    pub grant_type: GrantType,
    /// The scopes to ask for.
    pub scopes: Vec<String>,
    /// Where it stands.
    pub state: State,
    /// Why it stands there, as a stable word; only for states that need a reason.
    pub reason: Option<String>,
    /// The account at the provider, once known.
    pub account: Option<Account>,
    /// The account an operator expects; a consent by it needs no confirmation.
    pub expected_account: Option<String>,
    /// Captured from the callback or set at creation.
    pub vars: Vars,
    /// When the connection was made.
    pub created_at: Timestamp,
    /// When the next refresh is due; none while nothing is scheduled.
    pub refresh_at: Option<Timestamp>,
    /// Passing failures in a row since the last success.
    pub failures: u32,
    /// The last failure, kept until the next success.
    pub last_error: Option<LastError>,
}

/// How long to wait after a passing failure: doubling from 2 s to 5 min, varied by `seed`.
pub fn backoff(failures: u32, seed: u16) -> Duration {
    let ceiling = Duration::from_secs(2) * 2_u32.pow(failures.saturating_sub(1).min(8));
    let ceiling = ceiling.min(Duration::from_mins(5));
    // Between half the ceiling and the whole of it.
    ceiling / 2 + (ceiling / 2) * u32::from(seed) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_five_minutes() {
        assert_eq!(backoff(1, u16::MAX), Duration::from_secs(2));
        assert_eq!(backoff(1, 0), Duration::from_secs(1));
        assert_eq!(backoff(4, u16::MAX), Duration::from_secs(16));
        assert_eq!(backoff(60, u16::MAX), Duration::from_mins(5));
    }

    /// Each row of the table once: what may become what. Everything else may not.
    #[test]
    fn the_table_of_transitions_is_closed() {
        use State as S;
        let live = [S::Active, S::BackingOff, S::EndpointChanged, S::Suspect, S::Uncertain];
        let alive = |state: &S| !state.is_deleted();
        let all = || S::VARIANTS.iter().copied();
        for (next, from) in [
            (S::Active, all().filter(alive).collect::<Vec<_>>()),
            (S::BackingOff, live.to_vec()),
            (S::EndpointChanged, live.to_vec()),
            (S::Uncertain, live.to_vec()),
            (S::Suspect, [&live[..], &[S::NeedsConsent]].concat()),
            (S::NeedsConsent, live.to_vec()),
            (S::PendingConfirm, vec![S::PendingConsent, S::Quarantined]),
            (S::PendingConsent, vec![S::PendingConfirm, S::Quarantined]),
            (S::Quarantined, [&live[..], &[S::PendingConfirm]].concat()),
            (S::IntegrityError, all().filter(alive).collect()),
            (S::Revoking, all().filter(alive).collect()),
            (S::Revoked, all().collect()),
        ] {
            for state in all() {
                let allowed = state == next || from.contains(&state);
                assert_eq!(state.may_become(next), allowed, "{state} to {next}");
            }
        }
    }

    #[test]
    fn every_state_has_its_own_word() {
        for state in State::VARIANTS {
            assert_eq!(state.as_str().parse::<State>().unwrap(), *state);
        }
        assert!("Active".parse::<State>().is_err());
    }
}
