use std::time::Duration;

use jiff::Timestamp;

use super::{
    Store, StoreError,
    engine::{on, row::RowExt as _},
    millis, now,
};
use crate::domain::{connection::ConnectionId, consent::CONFIRM_LIFE};

/// How long a link is kept past its end, for its page to say that it has ended.
const LINK_MEMORY: Duration = Duration::from_hours(24);

/// How long a grant is kept in escrow.
const ESCROW_LIFE: Duration = Duration::from_hours(7 * 24);

/// How long it is remembered that a refresh token must not be presented, and that a connection was
/// deleted: half a year, an estimate. It is twice the idle life that amoCRM states, the longest that
/// any built-in provider does; Avito and Admitad state none.
const SPENT_RETENTION: Duration = Duration::from_hours(180 * 24);

/// How long a key that has ended is kept, for an operator who asks the database whose it was.
const KEY_MEMORY: Duration = Duration::from_hours(90 * 24);

/// How many rows a statement forgets: so few that PostgreSQL fetches them by index rather than to
/// read a large table whole, and locks them for a moment only.
const BATCH: i64 = 50;

/// The rows whose time is `$2` ago or longer, `$3` of them at the most. The order makes them come by
/// the index of that time: without it PostgreSQL, which does not know how late it is, would expect a
/// third of the table.
macro_rules! ended {
    ($columns:literal, $table:literal, $time:literal $(, $and:expr)?) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM ",
            $table,
            " WHERE ",
            $time,
            " <= ",
            now!(),
            " - $2",
            $($and,)?
            " ORDER BY ",
            $time,
            " LIMIT $3"
        )
    };
}

macro_rules! forget {
    ($key:literal, $table:literal, $time:literal $(, $and:expr)?) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE ",
            $key,
            " IN (",
            ended!($key, $table, $time $(, $and)?),
            ")"
        )
    };
}

/// What is still to be revoked is kept until it is.
macro_rules! but_to_revoke {
    () => {
        " AND connection_id NOT IN (SELECT id FROM connections WHERE state = 'revoking')"
    };
}

/// What a connection presented last is what an operator would present again.
macro_rules! but_presented_last {
    () => {
        " AND NOT EXISTS (SELECT 1 FROM grants g
            WHERE g.connection_id = refresh_tombstones.connection_id
                AND g.attempt_refresh_hash = refresh_tombstones.refresh_hash)"
    };
}

const CONSENTS: &str = forget!("state_hash", "consents", "expires_at");
const EXCHANGES: &str = forget!("id", "key_exchanges", "expires_at");
const CODE_EXCHANGES: &str = forget!("state_hash", "code_exchanges", "ends_at");
const LINKS: &str = forget!("id", "consent_links", "expires_at");
const ESCROW: &str = forget!("id", "escrow", "put_at", but_to_revoke!());
const PENDING: &str =
    ended!("connection_id, received_at", "pending_grants", "received_at", but_to_revoke!());
const TOMBSTONES: &str =
    forget!("refresh_hash", "refresh_tombstones", "buried_at", but_presented_last!());
const DELETED: &str = forget!("id", "deleted_connections", "deleted_at");
const KEYS: &str = forget!("id", "keys", "expires_at");

/// The statements of [`Store::purge_expired`], for whoever asks a database how it would run them.
/// `$1` is how far the clock is ahead, `$2` how long a row is kept past its time, both in
/// milliseconds; `$3` is how many rows a statement takes.
pub const PURGES: [&str; 9] =
    [CONSENTS, CODE_EXCHANGES, EXCHANGES, LINKS, ESCROW, PENDING, TOMBSTONES, DELETED, KEYS];

/// How many of each [`Store::purge_expired`] forgot.
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
    /// Grants that lay in escrow for a week.
    pub escrow: u64,
    /// Refresh tokens that were spent or refused half a year ago.
    pub tombstones: u64,
    /// Connections that were deleted half a year ago.
    pub deleted: u64,
    /// Keys that ended three months ago.
    pub keys: u64,
}

impl Store {
    /// Forgets what has ended.
    ///
    /// # Errors
    ///
    /// When the database does not answer; what was forgotten by then stays so.
    pub async fn purge_expired(&self) -> Result<Purged, StoreError> {
        let consents = self.forget(CONSENTS, Duration::ZERO).await?;
        // What a crash left; those that ended otherwise are gone.
        self.forget(CODE_EXCHANGES, Duration::ZERO).await?;
        let exchanges = self.forget(EXCHANGES, Duration::ZERO).await?;
        let links = self.forget(LINKS, LINK_MEMORY).await?;
        let pending_grants = self.purge_pending().await?;
        let escrow = self.forget(ESCROW, ESCROW_LIFE).await?;
        let tombstones = self.forget(TOMBSTONES, SPENT_RETENTION).await?;
        let deleted = self.forget(DELETED, SPENT_RETENTION).await?;
        let keys = self.forget(KEYS, KEY_MEMORY).await?;
        Ok(Purged { links, consents, pending_grants, exchanges, escrow, tombstones, deleted, keys })
    }

    async fn forget(&self, sql: &'static str, kept_for: Duration) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let batch = on!(self, |pool| {
                let ended = sqlx::query(sql).bind(self.ahead()).bind(millis(kept_for)).bind(BATCH);
                ended.execute(pool).await?.rows_affected()
            });
            forgotten += batch;
            if batch < BATCH.unsigned_abs() {
                return Ok(forgotten);
            }
        }
    }

    async fn purge_pending(&self) -> Result<u64, StoreError> {
        let mut purged = 0;
        loop {
            let ended: Vec<(ConnectionId, Timestamp)> = on!(self, |pool| {
                let rows = sqlx::query(PENDING)
                    .bind(self.ahead())
                    .bind(millis(CONFIRM_LIFE))
                    .bind(BATCH)
                    .fetch_all(pool)
                    .await?;
                rows.iter()
                    .map(|row| Ok((row.parsed("connection_id")?, row.time("received_at")?)))
                    .collect::<Result<_, StoreError>>()?
            });
            let batch = i64::try_from(ended.len()).unwrap_or(BATCH);
            for (connection, received_at) in ended {
                // A newer grant may have taken its place since.
                purged += u64::from(self.drop_pending_until(connection, received_at).await?);
            }
            if batch < BATCH {
                return Ok(purged);
            }
        }
    }
}
