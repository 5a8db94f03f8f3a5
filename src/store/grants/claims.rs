//! Claims: the right to refresh a connection, for the time of a lease.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::spent_tokens::is_spent;
use crate::{
    domain::{connection::ConnectionId, record::Record},
    seal::secret::Digest,
    store::{
        DurableStore, Store, StoreError, engine::statement::query, grants::refreshing_states,
        identity::is_still,
    },
};

/// The answer to a claim.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Claim {
    /// It is held, since this time on the database's clock.
    Held(Timestamp),
    /// It was not made.
    Rejected(ClaimRejected),
}

impl Claim {
    /// When the claim was made; none when it was not.
    pub fn held(self) -> Option<Timestamp> {
        match self {
            Self::Held(at) => Some(at),
            Self::Rejected(_) => None,
        }
    }
}

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
    /// is sent.
    ///
    /// When the database does not answer, it is unknown whether the claim stands; it ends with its
    /// lease.
    pub async fn claim(
        &self,
        seen: &Record,
        attempt: &str,
        refresh_hash: Option<&Digest>,
        lease: Duration,
    ) -> Result<Claim, StoreError> {
        let refreshing = refreshing_states();
        let claim = format!(
            "UPDATE grants SET lease_until = now_ms + $1 + $6, attempt_id = $3,
                attempt_started_at = now_ms + $1, attempt_refresh_hash = $5,
                attempts = attempts + 1,
                abandoned_attempts = abandoned_attempts
                    + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END
            FROM clock
            WHERE connection_id = $2 AND generation = $4 AND attempts = $7
                AND (lease_until IS NULL OR lease_until <= now_ms + $1)
                AND EXISTS (SELECT 1 FROM connections WHERE id = $2 AND state IN {refreshing})
                AND NOT EXISTS (SELECT 1 FROM spent_tokens WHERE refresh_hash = $5)
            RETURNING attempt_started_at"
        );
        let expected = self.expected();
        let mut tx = self.begin().await?;
        if let Some(expected) = &expected
            && !is_still(expected).finds(&mut tx).await?
        {
            return tx.roll_back(Claim::Rejected(ClaimRejected::DatabaseChanged));
        }
        let claimed = query(AssertSqlSafe(claim))
            .bind(self.offset())
            .bind(seen.connection.id)
            .bind(attempt)
            .bind(seen.generation())
            .bind(refresh_hash)
            .bind(lease)
            .bind(seen.open_attempts)
            .fetch_optional(&mut tx)
            .await?;
        if let Some(row) = claimed {
            return tx.commit(Claim::Held(row.time("attempt_started_at")?)).await;
        }
        let spent = is_spent(refresh_hash).finds(&mut tx).await?;
        tx.roll_back(Claim::Rejected(if spent {
            ClaimRejected::TokenSpent
        } else {
            ClaimRejected::Contended
        }))
    }
}

impl DurableStore {
    /// Releases a claim with nothing sent. Nothing happens when it is no longer this attempt's. When
    /// the database does not answer, the claim ends with its lease.
    pub async fn release(self, id: ConnectionId, attempt: &str) -> Result<(), StoreError> {
        let sql = "
            UPDATE grants SET lease_until = NULL, attempt_id = NULL, attempt_started_at = NULL,
                attempt_refresh_hash = NULL, attempts = attempts - 1
            WHERE connection_id = $1 AND attempt_id = $2";
        query(sql).bind(id).bind(attempt).execute(&self.0.engine).await?;
        Ok(())
    }
}
