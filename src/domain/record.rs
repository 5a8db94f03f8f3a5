//! A record: a connection with all that it holds, as one row of the store.

use jiff::Timestamp;

use super::{
    connection::Connection,
    grant::{PendingGrant, SealedGrant},
};

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
    pub fn generation(&self) -> i64 {
        self.grant.as_ref().map_or(0, SealedGrant::generation)
    }

    /// Whether an attempt from this generation ended without a word, as far as is known before the
    /// next one is claimed.
    pub fn has_crashed(&self) -> bool {
        self.crashes > 0 || self.claimed_at.is_some()
    }
}
