//! Claims: the right to refresh a connection, for a while.

use std::time::Duration;

use jiff::Timestamp;

use super::{commit::refreshing, spent_tokens::IS_SPENT};
use crate::{
    domain::connection::{ConnectionId, Record},
    seal::secret::Digest,
    store::{
        Store, StoreError,
        engine::{in_transaction, on, row::RowExt as _},
        identity::STILL_THE_SAME,
        millis, now,
    },
};

/// Why a connection was not claimed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClaimRejected {
    /// The database is not the one that [`Store::expect`] names.
    DatabaseChanged,
    /// Somebody else holds the lease, or has refreshed or tried to since the caller saw the record; or
    /// the connection's state forbids it.
    Contended,
    /// The refresh token was spent or refused before.
    TokenSpent,
}

impl Store {
    /// Claims the right to refresh a connection for `lease`, and records the intent before anything
    /// is sent. Returns when that was, on the database's clock, or why it was not.
    ///
    /// # Errors
    ///
    /// When the database does not answer; whether the claim stands is then unknown, and the lease
    /// running out settles it.
    pub async fn claim(
        &self,
        seen: &Record,
        attempt: &str,
        refresh_hash: Option<&Digest>,
        lease: Duration,
    ) -> Result<Result<Timestamp, ClaimRejected>, StoreError> {
        let claim = concat!(
            "UPDATE grants SET lease_until = ",
            now!(),
            " + $6, attempt_id = $3, attempt_started_at = ",
            now!(),
            ", attempt_refresh_hash = $5, attempts = attempts + 1,
                crashes = crashes + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END
            WHERE connection_id = $2 AND generation = $4 AND attempts = $7
                AND (lease_until IS NULL OR lease_until <= ",
            now!(),
            ") AND EXISTS (SELECT 1 FROM connections WHERE id = $2 AND state IN ",
            refreshing!(),
            ") AND NOT EXISTS (SELECT 1 FROM refresh_tombstones WHERE refresh_hash = $5)
            RETURNING attempt_started_at"
        );
        let id = seen.connection.id.to_string();
        let refresh_hash = refresh_hash.map(Digest::to_string);
        let expected = self.expected();
        Ok(in_transaction!(self, |tx| {
            if let Some(last_seen) = &expected {
                let same = sqlx::query(STILL_THE_SAME)
                    .bind(&last_seen.deployment)
                    .bind(last_seen.position.quarantines)
                    .bind(last_seen.position.seq);
                if same.fetch_optional(&mut *tx).await?.is_none() {
                    return Ok(Err(ClaimRejected::DatabaseChanged));
                }
            }
            let claimed = sqlx::query(claim)
                .bind(self.ahead())
                .bind(&id)
                .bind(attempt)
                .bind(seen.generation())
                .bind(&refresh_hash)
                .bind(millis(lease))
                .bind(i64::from(seen.open_attempts))
                .fetch_optional(&mut *tx)
                .await?;
            if let Some(claimed) = claimed {
                Ok(claimed.time("attempt_started_at")?)
            } else {
                let spent =
                    sqlx::query(IS_SPENT).bind(&refresh_hash).fetch_optional(&mut *tx).await?;
                Err(if spent.is_some() {
                    ClaimRejected::TokenSpent
                } else {
                    ClaimRejected::Contended
                })
            }
        }))
    }

    /// Gives a claim back with nothing sent. Nothing happens when it is no longer this attempt's.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the lease then runs out by itself.
    pub async fn release(&self, id: ConnectionId, attempt: &str) -> Result<(), StoreError> {
        let sql = "UPDATE grants SET lease_until = NULL, attempt_id = NULL,
                attempt_started_at = NULL, attempt_refresh_hash = NULL, attempts = attempts - 1
            WHERE connection_id = $1 AND attempt_id = $2";
        on!(self.durable(), |pool| {
            sqlx::query(sql).bind(id.to_string()).bind(attempt).execute(pool).await?;
        });
        Ok(())
    }
}
