//! Retention: rows whose time is over are deleted, a few at a time.

use std::time::Duration;

use jiff::Timestamp;

use super::{Store, StoreError, engine::statement::query};
use crate::domain::{connection::ConnectionId, consent::CONFIRM_LIFE};

/// The time that a link is kept past its end, for its page to say that it has ended.
const LINK_RETENTION: Duration = Duration::from_hours(24);

/// The time that a fallback grant is kept.
const FALLBACK_RETENTION: Duration = Duration::from_hours(7 * 24);

/// The memory of spent refresh tokens and deleted connections: half a year, an estimate.
/// It is twice the idle life that amoCRM states, the longest that any built-in provider does; Avito
/// and Admitad state none.
const SPENT_RETENTION: Duration = Duration::from_hours(180 * 24);

/// The time that a key is kept past its end, for an operator who asks the database whose it was.
const KEY_RETENTION: Duration = Duration::from_hours(90 * 24);

/// The rows that a statement deletes: so few that PostgreSQL fetches them by index rather than read a
/// large table whole, and locks them for a moment only.
const BATCH: u32 = 50;

// In each statement `$2` is how long a row is kept past its time, and `$3` the number of rows. The
// order makes the rows come by the index of that time: without it PostgreSQL, which does not know the
// time, would expect a third of the table.

const CONSENTS: &str = "
    DELETE FROM consents WHERE state_hash IN (
        SELECT state_hash FROM consents
        WHERE expires_at <= (SELECT now_ms FROM clock) + $1 - $2
        ORDER BY expires_at LIMIT $3)";

const KEY_EXCHANGES: &str = "
    DELETE FROM key_exchanges WHERE id IN (
        SELECT id FROM key_exchanges
        WHERE expires_at <= (SELECT now_ms FROM clock) + $1 - $2
        ORDER BY expires_at LIMIT $3)";

const CODE_EXCHANGES: &str = "
    DELETE FROM code_exchanges WHERE state_hash IN (
        SELECT state_hash FROM code_exchanges
        WHERE ends_at <= (SELECT now_ms FROM clock) + $1 - $2
        ORDER BY ends_at LIMIT $3)";

const LINKS: &str = "
    DELETE FROM consent_links WHERE id IN (
        SELECT id FROM consent_links
        WHERE expires_at <= (SELECT now_ms FROM clock) + $1 - $2
        ORDER BY expires_at LIMIT $3)";

/// A grant that is still to be revoked is kept until it is.
const FALLBACK_GRANTS: &str = "
    DELETE FROM fallback_grants WHERE id IN (
        SELECT id FROM fallback_grants
        WHERE stored_at <= (SELECT now_ms FROM clock) + $1 - $2
            AND connection_id NOT IN (SELECT id FROM connections WHERE state = 'revoking')
        ORDER BY stored_at LIMIT $3)";

/// Each is then deleted with the state of its connection, by [`Store::drop_pending_until`].
const PENDING_GRANTS: &str = "
    SELECT connection_id, received_at FROM pending_grants
    WHERE received_at <= (SELECT now_ms FROM clock) + $1 - $2
        AND connection_id NOT IN (SELECT id FROM connections WHERE state = 'revoking')
    ORDER BY received_at LIMIT $3";

/// The token that a connection presented last is kept: an operator may present it again.
const SPENT_TOKENS: &str = "
    DELETE FROM spent_tokens WHERE refresh_hash IN (
        SELECT refresh_hash FROM spent_tokens
        WHERE marked_at <= (SELECT now_ms FROM clock) + $1 - $2
            AND NOT EXISTS (
                SELECT 1 FROM grants g
                WHERE g.connection_id = spent_tokens.connection_id
                    AND g.attempt_refresh_hash = spent_tokens.refresh_hash)
        ORDER BY marked_at LIMIT $3)";

const DELETED_CONNECTIONS: &str = "
    DELETE FROM deleted_connections WHERE id IN (
        SELECT id FROM deleted_connections
        WHERE deleted_at <= (SELECT now_ms FROM clock) + $1 - $2
        ORDER BY deleted_at LIMIT $3)";

const KEYS: &str = "
    DELETE FROM keys WHERE id IN (
        SELECT id FROM keys
        WHERE expires_at <= (SELECT now_ms FROM clock) + $1 - $2
        ORDER BY expires_at LIMIT $3)";

/// The statements of [`Store::purge_expired`], for a test that asks a database how it would run them.
pub const PURGES: [&str; 9] = [
    CONSENTS,
    CODE_EXCHANGES,
    KEY_EXCHANGES,
    LINKS,
    FALLBACK_GRANTS,
    PENDING_GRANTS,
    SPENT_TOKENS,
    DELETED_CONNECTIONS,
    KEYS,
];

/// How many rows of each kind [`Store::purge_expired`] deleted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Purged {
    /// Consent links that ended a day ago.
    pub links: u64,
    /// Attempts that have ended.
    pub consents: u64,
    /// Grants that nobody confirmed within [`CONFIRM_LIFE`].
    pub pending_grants: u64,
    /// API-key exchanges whose code never came.
    pub exchanges: u64,
    /// Fallback grants that were kept for a week.
    pub fallback_grants: u64,
    /// Refresh tokens that were spent or refused half a year ago.
    pub spent_tokens: u64,
    /// Connections that were deleted half a year ago.
    pub deleted: u64,
    /// Keys that ended three months ago.
    pub keys: u64,
}

impl Store {
    /// Deletes what has ended. When the database does not answer, what was deleted by then stays so.
    pub async fn purge_expired(&self) -> Result<Purged, StoreError> {
        let consents = self.purge(CONSENTS, Duration::ZERO).await?;
        // Left by a crash; an exchange that ends otherwise deletes its row.
        self.purge(CODE_EXCHANGES, Duration::ZERO).await?;
        let exchanges = self.purge(KEY_EXCHANGES, Duration::ZERO).await?;
        let links = self.purge(LINKS, LINK_RETENTION).await?;
        let pending_grants = self.purge_pending().await?;
        let fallback_grants = self.purge(FALLBACK_GRANTS, FALLBACK_RETENTION).await?;
        let spent_tokens = self.purge(SPENT_TOKENS, SPENT_RETENTION).await?;
        let deleted = self.purge(DELETED_CONNECTIONS, SPENT_RETENTION).await?;
        let keys = self.purge(KEYS, KEY_RETENTION).await?;
        Ok(Purged {
            links,
            consents,
            pending_grants,
            exchanges,
            fallback_grants,
            spent_tokens,
            deleted,
            keys,
        })
    }

    async fn purge(&self, sql: &'static str, kept_for: Duration) -> Result<u64, StoreError> {
        let mut purged = 0;
        loop {
            let batch = query(sql).bind(self.offset()).bind(kept_for).bind(BATCH);
            let deleted = batch.execute(&self.engine).await?;
            purged += deleted;
            if deleted < BATCH.into() {
                return Ok(purged);
            }
        }
    }

    async fn purge_pending(&self) -> Result<u64, StoreError> {
        let mut purged = 0;
        loop {
            let batch = query(PENDING_GRANTS).bind(self.offset()).bind(CONFIRM_LIFE).bind(BATCH);
            let rows = batch.fetch_all(&self.engine).await?;
            for row in &rows {
                let connection: ConnectionId = row.parsed("connection_id")?;
                let received_at: Timestamp = row.time("received_at")?;
                // A newer grant may have taken its place since.
                purged += u64::from(self.drop_pending_until(connection, received_at).await?);
            }
            if rows.len() < BATCH as usize {
                return Ok(purged);
            }
        }
    }
}
