//! A grant: what a token endpoint returned, open or sealed, and when it is due to be refreshed.
//!
//! In this crate a *grant* is the tokens that are held. RFC 6749 uses the word for the authorization
//! that a client exchanges for them.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    connection::{Account, ConnectionId, Vars},
    grant_conflict::GrantLineage,
};
use crate::seal::{SealContext, Sealed, SealedField, secret::Digest};

/// A grant with its tokens open. It exists in memory only.
#[derive(Clone, Debug)]
pub struct OpenGrant {
    /// The access token.
    pub access: SecretString,
    /// The refresh token; none where the provider gives none.
    pub refresh: Option<SecretString>,
    /// The scopes that the provider granted, in its own names; those asked for where it did not say.
    pub scopes: Vec<String>,
    /// When the request that brought it was sent: lifetimes count from here.
    pub received_at: Timestamp,
    /// When the access token ends.
    pub expires_at: Timestamp,
    /// The refresh that brought it; none for a consent.
    pub origin: Option<GrantLineage>,
}

impl OpenGrant {
    /// The digest of the refresh token.
    pub fn refresh_hash(&self) -> Option<Digest> {
        self.refresh.as_ref().map(Digest::of)
    }
}

/// The place that a grant is kept in. Its tokens are sealed for this slot and open in no other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GrantSlot {
    /// The connection's own grant.
    Live {
        /// The number of grants that the connection has held, this one included.
        generation: i64,
    },
    /// A grant whose account waits to be confirmed.
    Pending,
    /// A grant that lost its place to another one, kept in case that one is refused.
    Fallback {
        /// The generation that it was received for.
        generation: i64,
    },
}

impl GrantSlot {
    /// The generation that the tokens are sealed for; 0 for a grant that waits.
    pub fn generation(self) -> i64 {
        match self {
            Self::Live { generation } | Self::Fallback { generation } => generation,
            Self::Pending => 0,
        }
    }

    /// The context of the access token, for the connection of this id.
    pub fn access(self, connection: &str) -> SealContext<'_> {
        let field = match self {
            Self::Live { .. } => SealedField::Access,
            Self::Pending => SealedField::PendingAccess,
            Self::Fallback { .. } => SealedField::FallbackAccess,
        };
        SealContext { record: connection, field, generation: self.generation() }
    }

    /// The context of the refresh token, for the connection of this id.
    pub fn refresh(self, connection: &str) -> SealContext<'_> {
        let field = match self {
            Self::Live { .. } => SealedField::Refresh,
            Self::Pending => SealedField::PendingRefresh,
            Self::Fallback { .. } => SealedField::FallbackRefresh,
        };
        SealContext { record: connection, field, generation: self.generation() }
    }
}

/// A grant with its tokens sealed, as the database and the spool keep it.
///
/// As JSON, in the spool, it is always a live one, and its slot is written as `generation`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SealedGrant {
    /// The slot that the tokens are sealed for.
    #[serde(rename = "generation", with = "live_slot")]
    pub slot: GrantSlot,
    /// The access token.
    pub access: Sealed,
    /// The refresh token; none where the provider gives none.
    pub refresh: Option<Sealed>,
    /// The scopes that the provider granted.
    pub scopes: Vec<String>,
    /// When the request that brought it was sent: lifetimes count from here.
    pub received_at: Timestamp,
    /// When the access token ends.
    pub expires_at: Timestamp,
    /// The refresh that brought it; none for a consent.
    #[serde(flatten, with = "lineage")]
    pub origin: Option<GrantLineage>,
}

mod live_slot {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    use super::GrantSlot;

    pub(super) fn serialize<S: Serializer>(slot: &GrantSlot, to: S) -> Result<S::Ok, S::Error> {
        slot.generation().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GrantSlot, D::Error> {
        Ok(GrantSlot::Live { generation: i64::deserialize(from)? })
    }
}

mod lineage {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::GrantLineage;
    use crate::seal::secret::Digest;

    /// The form in JSON: a grant of a consent has neither.
    #[derive(Deserialize, Serialize)]
    struct Members {
        parent: Option<Digest>,
        asked_at: Option<Timestamp>,
    }

    #[expect(clippy::ref_option, reason = "serde hands over the field")]
    pub(super) fn serialize<S: Serializer>(
        lineage: &Option<GrantLineage>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let parent = lineage.as_ref().and_then(|lineage| lineage.parent);
        let asked_at = lineage.as_ref().map(|lineage| lineage.asked_at);
        Members { parent, asked_at }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<GrantLineage>, D::Error> {
        let Members { parent, asked_at } = Members::deserialize(from)?;
        Ok(asked_at.map(|asked_at| GrantLineage { parent, asked_at }))
    }
}

impl SealedGrant {
    /// As [`GrantSlot::generation`].
    pub fn generation(&self) -> i64 {
        self.slot.generation()
    }
}

/// A grant whose account is not confirmed yet. It never serves, and never touches a live grant.
#[derive(Clone, Debug)]
pub struct PendingGrant {
    /// The grant, in [`GrantSlot::Pending`].
    pub grant: SealedGrant,
    /// The account that consented; none where the provider cannot say.
    pub account: Option<Account>,
    /// Values captured from the callback.
    pub vars: Vars,
    /// The token endpoint that issued it, as the profile had it.
    pub token_url: Option<String>,
}

/// The shortest token life that is refreshed ahead of time; shorter ones on demand only.
pub const MIN_SCHEDULED_LIFE: Duration = Duration::from_mins(2);

/// How long before its end a token no longer counts as live: 30 s, or a tenth of a short life.
#[must_use]
pub fn skew_margin(life: Duration) -> Duration {
    Duration::from_secs(30).min(life / 10)
}

/// When to refresh a token ahead of its end, or never for one that lives under
/// [`MIN_SCHEDULED_LIFE`].
///
/// The lead is a fifth of the life, between 5 minutes and 6 hours; two fifths for lives under
/// 10 minutes. It varies by a tenth either way, fixed by `id` and `generation`, so that
/// connections made together are not due together.
#[must_use]
pub fn refresh_at(id: ConnectionId, grant: &SealedGrant) -> Option<Timestamp> {
    let life = life(grant.received_at, grant.expires_at);
    if life < MIN_SCHEDULED_LIFE {
        return None;
    }
    let lead = if life < Duration::from_mins(10) {
        life * 2 / 5
    } else {
        (life / 5).clamp(Duration::from_mins(5), Duration::from_hours(6))
    };
    let seed = Digest::of_bytes(format!("{id}/{}", grant.generation()).as_bytes());
    let spread = u32::from(u16::from_be_bytes([seed.as_bytes()[0], seed.as_bytes()[1]]));
    // From 0.9 to 1.1 in steps of 1/65536 of a fifth.
    let lead = lead * 9 / 10 + (lead / 5) * spread / u32::from(u16::MAX);
    Some(grant.expires_at - lead.min(life))
}

/// The whole life of an access token.
#[must_use]
pub fn life(received_at: Timestamp, expires_at: Timestamp) -> Duration {
    Duration::try_from(expires_at.duration_since(received_at)).unwrap_or_default()
}

/// How long an access token can still be used when this is left of its life, with the skew margin
/// taken off; zero when it cannot.
#[must_use]
pub fn remaining(life: Duration, left: Duration) -> Duration {
    left.saturating_sub(skew_margin(life))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(life_seconds: i64) -> SealedGrant {
        SealedGrant {
            slot: GrantSlot::Live { generation: 1 },
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
        let second = SealedGrant { slot: GrantSlot::Live { generation: 2 }, ..grant(86_400) };
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
}
