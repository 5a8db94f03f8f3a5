//! The schedule: how long a claim lasts, and when a connection is looked at again. Pure.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    domain::{
        connection::{Connection, GrantType},
        grant::{SealedGrant, refresh_at},
    },
    provider::{Profile, Rotation, client::Client},
};

/// The time after a claim in which its refresh may begin to send.
pub(super) const SEND_WINDOW: Duration = Duration::from_secs(5);

/// The time that a commit may take.
const COMMIT_BUDGET: Duration = Duration::from_secs(5);

/// The safety margin added to a lease.
const LEASE_SLACK: Duration = Duration::from_secs(10);

/// The extra lease time where the reuse of a spent token revokes the token family.
const FAMILY_CAUTION: Duration = Duration::from_secs(30);

/// The length of a claim's lease: computed, so that a lease shorter than the calls it covers cannot
/// be written down. A client that asks for itself may ask twice: with its refresh token, then without.
pub(super) fn lease(profile: &Profile, grant_type: GrantType) -> Duration {
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

/// When to look at the connection again: when its token should be refreshed, or its refresh token
/// used lest it die of disuse; without a refresh token, when the access token ends.
pub(crate) fn due_at(
    client: &Client,
    connection: &Connection,
    grant: &SealedGrant,
) -> Option<Timestamp> {
    let tokens = &client.profile.tokens;
    if grant.refresh.is_some() && client.profile.grants.refresh_token.is_some() {
        let alive = grant.received_at + tokens.keep_alive();
        Some(refresh_at(connection.id, grant).map_or(alive, |at| at.min(alive)))
    } else if connection.grant_type == GrantType::ClientCredentials {
        refresh_at(connection.id, grant)
    } else {
        Some(grant.expires_at)
    }
}
