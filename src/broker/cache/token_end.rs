//! The end of an access token, by two clocks.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    clock::{BootInstant, Moment},
    domain::grant::{SealedGrant, life},
};

/// When an access token ends, by two clocks: it lives only while neither has come that far. One
/// counts suspend and is never set; the other goes on where the whole machine was stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TokenEnd {
    since_boot: BootInstant,
    wall: Timestamp,
}

impl TokenEnd {
    /// The end of a token that somebody else received, or this process before it was started anew: the
    /// clock that is ahead, the database's or ours, decides how old it is.
    pub(crate) fn of_stored(grant: &SealedGrant, at: Moment) -> Self {
        Self::after(left(grant, at.now.max(at.wall)), at)
    }

    /// The end of a token that this process received a moment ago: it need not ask its wall clock.
    pub(crate) fn of_received(grant: &SealedGrant, at: Moment) -> Self {
        Self::after(left(grant, at.now), at)
    }

    fn after(left: Duration, at: Moment) -> Self {
        let wall = at.wall.checked_add(left).unwrap_or(Timestamp::MAX);
        Self { since_boot: at.since_boot + left, wall }
    }

    pub(crate) fn left(self, at: Moment) -> Duration {
        let by_wall = Duration::try_from(self.wall.duration_since(at.wall)).unwrap_or_default();
        self.since_boot.since(at.since_boot).min(by_wall)
    }
}

/// The rest of a token's life at this time; never more than the whole of it.
fn left(grant: &SealedGrant, now: Timestamp) -> Duration {
    let left = Duration::try_from(grant.expires_at.duration_since(now)).unwrap_or_default();
    left.min(life(grant.received_at, grant.expires_at))
}
