//! Refresh tokens that are never presented again, known by their digests.

use crate::{
    domain::connection::ConnectionId,
    seal::secret::Digest,
    store::{
        DurableStore, Store, StoreError,
        engine::statement::{Statement, query},
    },
};

impl DurableStore {
    /// Marks a refresh token that was refused as spent, whatever becomes of its connection.
    pub async fn mark_spent(
        self,
        id: ConnectionId,
        refresh_hash: &Digest,
    ) -> Result<(), StoreError> {
        mark_spent(id, refresh_hash, self.0.offset()).execute(&self.0.engine).await?;
        Ok(())
    }
}

impl Store {
    /// Whether a refresh token was spent or refused before.
    pub async fn is_spent(&self, refresh_hash: &Digest) -> Result<bool, StoreError> {
        is_spent(Some(refresh_hash)).finds(&self.engine).await
    }
}

/// Marks a refresh token of a connection as spent.
pub(crate) fn mark_spent(id: ConnectionId, refresh_hash: &Digest, offset: i64) -> Statement {
    let sql = "
        INSERT INTO spent_tokens (refresh_hash, connection_id, marked_at)
        VALUES ($2, $3, (SELECT now_ms FROM clock) + $1)
        ON CONFLICT DO NOTHING";
    query(sql).bind(offset).bind(refresh_hash).bind(id)
}

/// Finds a row if the refresh token is spent.
pub(crate) fn is_spent(refresh_hash: Option<&Digest>) -> Statement {
    query("SELECT 1 FROM spent_tokens WHERE refresh_hash = $1").bind(refresh_hash)
}
