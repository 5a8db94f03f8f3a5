//! A connection: one account reached through one client, its states, and when it is due.
//!
//! Nothing here reads a clock, a database or a socket: `now` is always an argument.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    grant::{PendingGrant, SealedGrant},
    slug::Slug,
};
use crate::words::words;

/// The id of a connection: it never changes and is never reused, unlike the name.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ConnectionId(Uuid);

impl ConnectionId {
    /// A new id, ordered by time of creation.
    #[must_use]
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
        /// Our own credentials or settings are refused; the token is served while it lives.
        BlockedConfig = "blocked_config",
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
    #[must_use]
    pub fn serves(self) -> bool {
        match self {
            Self::Active
            | Self::BackingOff
            | Self::BlockedConfig
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
    #[must_use]
    pub fn is_deleted(self) -> bool {
        matches!(self, Self::Revoked | Self::Revoking)
    }

    /// Whether a refresh may be tried in this state.
    #[must_use]
    pub fn refreshes(self) -> bool {
        matches!(
            self,
            Self::Active | Self::BackingOff | Self::BlockedConfig | Self::Suspect | Self::Uncertain
        )
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
    #[must_use]
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
    #[must_use]
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

/// A connection with what it holds.
#[derive(Clone, Debug)]
pub struct Record {
    /// The connection itself.
    pub connection: Connection,
    /// Its live grant.
    pub grant: Option<SealedGrant>,
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
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.grant.as_ref().map_or(0, SealedGrant::generation)
    }

    /// Whether an attempt from this generation ended without a word, as far as is known before the
    /// next one is claimed.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.crashes > 0 || self.claimed_at.is_some()
    }
}

/// How long to wait after a passing failure: doubling from 2 s to 5 min, varied by `seed`.
#[must_use]
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

    #[test]
    fn every_state_has_its_own_word() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse::<State>().unwrap(), *state);
        }
        assert!("Active".parse::<State>().is_err());
    }
}
