//! A connection: one account reached through one client, its states, and when it is due.
//!
//! Nothing here reads a clock, a database or a socket: `now` is always an argument.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{grant_conflict::GrantLineage, slug::Slug};
use crate::{seal::Sealed, words::words};

/// The id of a connection: it never changes and is never reused, unlike the name.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
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

words! {
    /// How a connection obtains its tokens (RFC 6749 section 1.3).
    GrantType {
        /// A person consents in a browser.
        AuthorizationCode = "authorization_code",
        /// The client asks for itself; nobody consents.
        ClientCredentials = "client_credentials",
    }
}

words! {
    /// The state of a connection.
    State {
        /// Serving and refreshing.
        Active = "active",
        /// The last refresh failed for a passing reason; the token is served while it lives.
        BackingOff = "backing_off",
        /// The token endpoint of the profile is another one than issued the tokens: they are presented
        /// nowhere until an operator accepts it; the token is served while it lives.
        EndpointChanged = "blocked_config",
        /// A stored value does not open: nothing is served until an operator looks.
        IntegrityError = "integrity_error",
        /// The provider refused the grant; a person must consent again.
        NeedsConsent = "needs_consent",
        /// A person consented; the account still has to be confirmed.
        PendingConfirm = "pending_confirm",
        /// Nobody has consented yet.
        PendingConsent = "pending_consent",
        /// The database looks restored or copied: served while it lives, not refreshed.
        Quarantined = "quarantined",
        /// Deleted, with its tokens; a person has to remove the application at the provider.
        Revoked = "revoked",
        /// Being deleted; the provider has not yet accepted the revocation.
        Revoking = "revoking",
        /// Evidence contradicts itself: served while it lives, and refreshed seldom.
        Suspect = "suspect",
        /// A refresh was sent and its outcome is unknown.
        Uncertain = "uncertain",
    }
}

impl State {
    /// Whether a live access token may be handed out in this state.
    pub fn serves(self) -> bool {
        match self {
            Self::Active
            | Self::BackingOff
            | Self::EndpointChanged
            | Self::NeedsConsent
            | Self::Quarantined
            | Self::Suspect
            | Self::Uncertain => true,
            Self::IntegrityError
            | Self::PendingConfirm
            | Self::PendingConsent
            | Self::Revoked
            | Self::Revoking => false,
        }
    }

    /// Whether the connection was deleted: for its readers it is gone, and it never comes back.
    pub fn is_deleted(self) -> bool {
        matches!(self, Self::Revoked | Self::Revoking)
    }

    /// Whether a refresh may be tried in this state.
    pub fn refreshes(self) -> bool {
        matches!(
            self,
            Self::Active
                | Self::BackingOff
                | Self::EndpointChanged
                | Self::Suspect
                | Self::Uncertain
        )
    }

    /// The table of transitions: whether a connection in this state may come to be in the next one.
    /// To stay in a state is always allowed.
    pub fn may_become(self, next: Self) -> bool {
        if self == next {
            return true;
        }
        match next {
            // A stored grant, the end of a quarantine.
            Self::Active => !self.is_deleted(),
            // A failed refresh, or a check before it.
            Self::BackingOff | Self::EndpointChanged | Self::Uncertain => self.refreshes(),
            // A failed refresh, or a refusal that is taken back because many came at once.
            Self::Suspect => self.refreshes() || self == Self::NeedsConsent,
            // A refused refresh, or nothing to present.
            Self::NeedsConsent => self.refreshes(),
            // A grant whose account is to be confirmed, and the end of a quarantine.
            Self::PendingConfirm => matches!(self, Self::PendingConsent | Self::Quarantined),
            // A pending grant that was rejected or has ended, and the end of a quarantine.
            Self::PendingConsent => matches!(self, Self::PendingConfirm | Self::Quarantined),
            // A restored or copied database, or a forgotten grant.
            Self::Quarantined => self.refreshes() || self == Self::PendingConfirm,
            // A stored value that does not open, and a deletion.
            Self::IntegrityError | Self::Revoking => !self.is_deleted(),
            // A deletion that a person has to finish.
            Self::Revoked => true,
        }
    }
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

/// The tokens a connection holds, sealed.
#[derive(Clone, Debug)]
pub struct HeldGrant {
    /// How many grants the connection has held, this one included.
    pub generation: i64,
    /// Sealed as field `access` of this generation.
    pub access: Sealed,
    /// Sealed as field `refresh` of this generation; none where the provider gives none.
    pub refresh: Option<Sealed>,
    /// The scopes the provider granted.
    pub scopes: Vec<String>,
    /// When the request that brought it was sent: lifetimes count from here.
    pub received_at: Timestamp,
    /// When the access token ends.
    pub expires_at: Timestamp,
    /// The refresh that brought it; none for a consent.
    pub origin: Option<GrantLineage>,
}

/// A grant whose account is not confirmed yet. It never serves, and never touches a live grant.
#[derive(Clone, Debug)]
pub struct PendingGrant {
    /// Sealed as field `pending.access`, generation 0.
    pub access: Sealed,
    /// Sealed as field `pending.refresh`, generation 0.
    pub refresh: Option<Sealed>,
    /// The scopes the provider granted.
    pub scopes: Vec<String>,
    /// When the request that brought it was sent.
    pub received_at: Timestamp,
    /// When the access token ends.
    pub expires_at: Timestamp,
    /// Who consented; none where the provider cannot say.
    pub account: Option<Account>,
    /// Captured from the callback.
    pub vars: Vars,
    /// The token endpoint that issued it, as the profile had it.
    pub token_url: Option<String>,
}

/// A connection with what it holds.
#[derive(Clone, Debug)]
pub struct Record {
    /// The connection itself.
    pub connection: Connection,
    /// Its live grant.
    pub grant: Option<HeldGrant>,
    /// A grant that waits for its account to be confirmed.
    pub pending: Option<PendingGrant>,
    /// The token endpoint that issued the live grant, as the profile had it; none where nobody knows.
    pub token_url: Option<String>,
    /// How many refreshes from this generation were begun and have no known outcome.
    pub open_attempts: u32,
    /// How many of them ended without a word: the process died, or was cut off.
    pub crashes: u32,
    /// When the claim that stands was made, on the database's clock; it may have run out.
    pub claimed_at: Option<Timestamp>,
    /// When any of this last changed, on the database's clock.
    pub changed_at: Timestamp,
}

impl Record {
    /// How many grants the connection has held.
    pub fn generation(&self) -> i64 {
        self.grant.as_ref().map_or(0, |grant| grant.generation)
    }

    /// Whether an attempt from this generation ended without a word, as far as is known before the
    /// next one is claimed.
    pub fn has_crashed(&self) -> bool {
        self.crashes > 0 || self.claimed_at.is_some()
    }
}

/// The shortest token life that is refreshed ahead of time; shorter ones on demand only.
pub const MIN_SCHEDULED_LIFE: Duration = Duration::from_mins(2);

/// How long before its end a token no longer counts as live: 30 s, or a tenth of a short life.
pub fn skew_margin(life: Duration) -> Duration {
    Duration::from_secs(30).min(life / 10)
}

/// When to refresh a token ahead of its end, or never for one that lives under
/// [`MIN_SCHEDULED_LIFE`].
///
/// The lead is a fifth of the life, between 5 minutes and 6 hours; two fifths for lives under
/// 10 minutes. It varies by a tenth either way, fixed by `id` and `generation`, so that
/// connections made together are not due together.
pub fn refresh_at(id: ConnectionId, grant: &HeldGrant) -> Option<Timestamp> {
    let life = life(grant.received_at, grant.expires_at);
    if life < MIN_SCHEDULED_LIFE {
        return None;
    }
    let lead = if life < Duration::from_mins(10) {
        life * 2 / 5
    } else {
        (life / 5).clamp(Duration::from_mins(5), Duration::from_hours(6))
    };
    let seed =
        crate::seal::secret::Digest::of_bytes(format!("{id}/{}", grant.generation).as_bytes());
    let spread = u32::from(u16::from_be_bytes([seed.as_bytes()[0], seed.as_bytes()[1]]));
    // From 0.9 to 1.1 in steps of 1/65536 of a fifth.
    let lead = lead * 9 / 10 + (lead / 5) * spread / u32::from(u16::MAX);
    Some(grant.expires_at - lead.min(life))
}

/// The whole life of an access token.
pub fn life(received_at: Timestamp, expires_at: Timestamp) -> Duration {
    Duration::try_from(expires_at.duration_since(received_at)).unwrap_or_default()
}

/// How long an access token can still be used when this is left of its life, with the skew margin
/// taken off; zero when it cannot.
pub fn remaining(life: Duration, left: Duration) -> Duration {
    left.saturating_sub(skew_margin(life))
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

    fn grant(life_seconds: i64) -> HeldGrant {
        HeldGrant {
            generation: 1,
            access: Sealed::from_stored(String::new()),
            refresh: None,
            scopes: Vec::new(),
            received_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::from_second(life_seconds).unwrap(),
            origin: None,
        }
    }

    #[test]
    fn the_lead_is_a_fifth_of_the_life_within_bounds() {
        for (life, lead) in [(120, 48), (599, 239), (600, 300), (3_600, 720), (86_400, 17_280)] {
            let at = refresh_at(ConnectionId::new(), &grant(life)).unwrap().as_second();
            let (low, high) = (life - lead * 11 / 10 - 1, life - lead * 9 / 10 + 1);
            assert!((low..=high).contains(&at), "life {life}: due at {at}, not in {low}..{high}");
        }
        let week = refresh_at(ConnectionId::new(), &grant(604_800)).unwrap().as_second();
        assert!(week >= 604_800 - 6 * 3_600 * 11 / 10, "{week}");
    }

    #[test]
    fn a_short_life_is_never_scheduled() {
        for life in [0, 1, 30, 119] {
            assert_eq!(refresh_at(ConnectionId::new(), &grant(life)), None);
        }
    }

    #[test]
    fn the_jitter_is_fixed_for_a_connection_and_generation() {
        let id = ConnectionId::new();
        let first = grant(86_400);
        let second = HeldGrant { generation: 2, ..grant(86_400) };
        assert_eq!(refresh_at(id, &first), refresh_at(id, &first));
        assert_ne!(refresh_at(id, &first), refresh_at(id, &second));
        assert_ne!(refresh_at(id, &first), refresh_at(ConnectionId::new(), &first));
    }

    #[test]
    fn what_remains_leaves_room_for_skew() {
        let of = |life, left| remaining(Duration::from_secs(life), Duration::from_secs(left));
        assert_eq!(of(3_600, 3_600), Duration::from_secs(3_570));
        assert_eq!(of(3_600, 29), Duration::ZERO);
        assert_eq!(of(30, 30), Duration::from_secs(27));
        assert_eq!(of(30, 0), Duration::ZERO);
    }

    #[test]
    fn backoff_doubles_up_to_five_minutes() {
        assert_eq!(backoff(1, u16::MAX), Duration::from_secs(2));
        assert_eq!(backoff(1, 0), Duration::from_secs(1));
        assert_eq!(backoff(4, u16::MAX), Duration::from_secs(16));
        assert_eq!(backoff(60, u16::MAX), Duration::from_mins(5));
    }

    #[test]
    fn every_state_has_its_own_word() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse::<State>().unwrap(), *state);
        }
        assert!("Active".parse::<State>().is_err());
    }
}
