//! Refresh tokens that are never presented again.

use crate::{
    domain::connection::ConnectionId,
    seal::secret::Digest,
    store::{Store, StoreError, engine::on, now},
};

/// Buries the refresh token `$2` of connection `$3`.
pub(crate) const MARK_SPENT: &str = concat!(
    "INSERT INTO refresh_tombstones (refresh_hash, connection_id, buried_at) VALUES ($2, $3, ",
    now!(),
    ") ON CONFLICT DO NOTHING"
);

/// Finds a row if the refresh token `$1` is buried.
pub(crate) const IS_SPENT: &str = "SELECT 1 FROM refresh_tombstones WHERE refresh_hash = $1";

impl Store {
    /// Buries a refresh token that was refused, whatever becomes of its connection.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn mark_spent(
        &self,
        id: ConnectionId,
        refresh_hash: &Digest,
    ) -> Result<(), StoreError> {
        on!(self, |pool| {
            sqlx::query(MARK_SPENT)
                .bind(self.ahead())
                .bind(refresh_hash.to_string())
                .bind(id.to_string())
                .execute(pool)
                .await?;
            Ok(())
        })
    }

    /// Whether a refresh token was spent or refused before.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn is_spent(&self, refresh_hash: &Digest) -> Result<bool, StoreError> {
        on!(self, |pool| {
            let found = sqlx::query(IS_SPENT).bind(refresh_hash.to_string()).fetch_optional(pool);
            Ok(found.await?.is_some())
        })
    }
}
