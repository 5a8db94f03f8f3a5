//! Fallback grants: received grants whose generation was taken. They are kept for a week, in case
//! the grant that took it is refused.

use uuid::Uuid;

use super::spent_tokens::mark_spent;
use crate::{
    domain::{
        connection::ConnectionId,
        grant::{GrantSlot, SealedGrant},
    },
    seal::secret::Digest,
    store::{
        DurableStore, Store, StoreError,
        engine::{row::Row, statement::query},
        json,
    },
};

/// A fallback grant.
#[derive(Clone, Debug)]
pub struct FallbackGrant {
    /// Its own id.
    pub id: Uuid,
    /// Its connection.
    pub connection: ConnectionId,
    /// The digest of its refresh token.
    pub refresh_hash: Digest,
    /// The grant, in [`GrantSlot::Fallback`].
    pub grant: SealedGrant,
}

impl DurableStore {
    /// Stores a fallback grant of this account, if the account is known. One that is stored already,
    /// known by its refresh token, stays as it is. Nothing is stored for a connection that is gone or
    /// revoked.
    ///
    /// False when a person has consented since the grant was asked for, and the grant is not known to
    /// be of the account that the connection is for now: its refresh token is marked as spent then.
    /// For a connection that is being revoked every grant is stored.
    pub async fn put_fallback(
        self,
        fallback: &FallbackGrant,
        account: Option<&str>,
    ) -> Result<bool, StoreError> {
        let superseded = "
            SELECT 1 FROM grants g JOIN connections c ON c.id = g.connection_id
            WHERE c.id = $1 AND c.state <> 'revoking' AND g.consented_generation >= $2
                AND COALESCE(c.account_id <> $3, TRUE)";
        let put = "
            INSERT INTO fallback_grants (id, connection_id, generation, access, refresh,
                refresh_hash, scopes, received_at, expires_at, parent_hash, asked_at, stored_at)
            SELECT $2, id, $4, $5, $6, $7, $8, $9, $10, $11, $12, (SELECT now_ms FROM clock) + $1
            FROM connections WHERE id = $3 AND state <> 'revoked'
            ON CONFLICT DO NOTHING";
        let FallbackGrant { connection: id, refresh_hash, grant, .. } = fallback;
        let (id, offset) = (*id, self.0.offset());
        let origin = grant.origin.as_ref();
        let mut tx = self.0.begin().await?;
        // Waits for a consent that is being stored.
        tx.lock_connection(id).await?;
        let superseded = query(superseded).bind(id).bind(grant.generation()).bind(account);
        if superseded.finds(&mut tx).await? {
            mark_spent(id, refresh_hash, offset).execute(&mut tx).await?;
            return tx.commit(false).await;
        }
        query(put)
            .bind(offset)
            .bind(fallback.id)
            .bind(id)
            .bind(grant.generation())
            .bind(&grant.access)
            .bind(grant.refresh.as_ref())
            .bind(refresh_hash)
            .bind(json(&grant.scopes))
            .bind(grant.received_at)
            .bind(grant.expires_at)
            .bind(origin.and_then(|origin| origin.parent))
            .bind(origin.map(|origin| origin.asked_at))
            .execute(&mut tx)
            .await?;
        tx.commit(true).await
    }

    /// Deletes a fallback grant that has become the connection's own.
    pub async fn drop_fallback(self, id: Uuid) -> Result<(), StoreError> {
        let sql = "DELETE FROM fallback_grants WHERE id = $1";
        query(sql).bind(id).execute(&self.0.engine).await?;
        Ok(())
    }
}

impl Store {
    /// The newest fallback grant of a connection whose refresh token was neither spent nor refused.
    pub async fn fallback(&self, id: ConnectionId) -> Result<Option<FallbackGrant>, StoreError> {
        let sql = "
            SELECT id, connection_id, generation, access, refresh, refresh_hash, scopes,
                received_at, expires_at, parent_hash, asked_at
            FROM fallback_grants f
            WHERE connection_id = $1
                AND NOT EXISTS (SELECT 1 FROM spent_tokens t WHERE t.refresh_hash = f.refresh_hash)
            ORDER BY received_at DESC, id DESC LIMIT 1";
        let row = query(sql).bind(id).fetch_optional(&self.engine).await?;
        row.as_ref().map(fallback).transpose()
    }
}

fn fallback(row: &Row) -> Result<FallbackGrant, StoreError> {
    Ok(FallbackGrant {
        id: row.parsed("id")?,
        connection: row.parsed("connection_id")?,
        refresh_hash: row.parsed("refresh_hash")?,
        grant: sealed_grant(row)?,
    })
}

/// The grant of a row of `fallback_grants`.
pub(super) fn sealed_grant(row: &Row) -> Result<SealedGrant, StoreError> {
    Ok(SealedGrant {
        slot: GrantSlot::Fallback { generation: row.number("generation")? },
        access: row.sealed("access")?,
        refresh: row.sealed_or_null("refresh")?,
        scopes: row.json("scopes")?,
        received_at: row.time("received_at")?,
        expires_at: row.time("expires_at")?,
        origin: row.origin()?,
    })
}
