//! Received grants whose place was taken: kept for a week, in case the one that took it is refused.

use uuid::Uuid;

use super::spent_tokens::MARK_SPENT;
use crate::{
    domain::{
        connection::ConnectionId,
        grant::{GrantSlot, SealedGrant},
    },
    seal::{Sealed, secret::Digest},
    store::{
        Store, StoreError,
        engine::{in_transaction, on, row::RowExt},
        json, now, optional_millis,
    },
};

/// A grant in escrow.
#[derive(Clone, Debug)]
pub struct FallbackGrant {
    /// Its own id.
    pub id: Uuid,
    /// Whose it is.
    pub connection: ConnectionId,
    /// The digest of its refresh token.
    pub refresh_hash: Digest,
    /// The grant, in [`GrantSlot::Fallback`].
    pub grant: SealedGrant,
}

impl Store {
    /// Puts a grant into escrow that belongs to this account, if anybody knows. One that lies there
    /// already, known by its refresh token, stays as it is. Nothing is kept for a connection that is
    /// gone or revoked.
    ///
    /// False when somebody has consented since the grant was asked for, and it is not known to be of
    /// the account that the connection is for now: it is not kept then, but buried. Where a connection
    /// is being revoked, all of it is.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn put_fallback(
        &self,
        fallback: &FallbackGrant,
        account: Option<&str>,
    ) -> Result<bool, StoreError> {
        // Makes it wait for a consent that is being stored.
        let lock = "UPDATE connections SET name = name WHERE id = $1";
        let replaced = "SELECT 1 FROM grants g JOIN connections c ON c.id = g.connection_id
            WHERE c.id = $1 AND c.state <> 'revoking' AND g.consented >= $2
                AND COALESCE(c.account_id <> $3, TRUE)";
        let put = concat!(
            "INSERT INTO escrow (id, connection_id, generation, access, refresh, refresh_hash,
                scopes, received_at, expires_at, parent_hash, asked_at, put_at)
            SELECT $2, id, $4, $5, $6, $7, $8, $9, $10, $11, $12, ",
            now!(),
            " FROM connections WHERE id = $3 AND state <> 'revoked' ON CONFLICT DO NOTHING"
        );
        let (id, grant) = (fallback.connection.to_string(), &fallback.grant);
        let origin = grant.origin.as_ref();
        Ok(in_transaction!(self, |tx| {
            sqlx::query(lock).bind(&id).execute(&mut *tx).await?;
            let replaced = sqlx::query(replaced).bind(&id).bind(grant.generation()).bind(account);
            let replaced = replaced.fetch_optional(&mut *tx).await?.is_some();
            if replaced {
                let hash = fallback.refresh_hash.to_string();
                let bury = sqlx::query(MARK_SPENT).bind(self.ahead()).bind(hash).bind(&id);
                bury.execute(&mut *tx).await?;
            } else {
                sqlx::query(put)
                    .bind(self.ahead())
                    .bind(fallback.id.to_string())
                    .bind(&id)
                    .bind(grant.generation())
                    .bind(grant.access.as_str())
                    .bind(grant.refresh.as_ref().map(Sealed::as_str))
                    .bind(fallback.refresh_hash.to_string())
                    .bind(json(&grant.scopes))
                    .bind(grant.received_at.as_millisecond())
                    .bind(grant.expires_at.as_millisecond())
                    .bind(origin.and_then(|origin| origin.parent).map(|parent| parent.to_string()))
                    .bind(optional_millis(origin.map(|origin| origin.asked_at)))
                    .execute(&mut *tx)
                    .await?;
            }
            !replaced
        }))
    }

    /// The newest grant in escrow for a connection whose refresh token was neither spent nor
    /// refused.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn fallback(&self, id: ConnectionId) -> Result<Option<FallbackGrant>, StoreError> {
        let sql = "SELECT * FROM escrow WHERE connection_id = $1 AND NOT EXISTS (
                SELECT 1 FROM refresh_tombstones t WHERE t.refresh_hash = escrow.refresh_hash)
            ORDER BY received_at DESC, id DESC LIMIT 1";
        on!(self, |pool| {
            let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(pool).await?;
            row.map(|row| {
                Ok(FallbackGrant {
                    id: row.parsed("id")?,
                    connection: row.parsed("connection_id")?,
                    refresh_hash: row.parsed("refresh_hash")?,
                    grant: sealed_grant(&row)?,
                })
            })
            .transpose()
        })
    }

    /// Takes a grant out of escrow: it is the connection's now.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn drop_fallback(&self, id: Uuid) -> Result<(), StoreError> {
        on!(self, |pool| {
            let taken = sqlx::query("DELETE FROM escrow WHERE id = $1").bind(id.to_string());
            taken.execute(pool).await?;
        });
        Ok(())
    }
}

/// The grant of a row of fallback grants.
pub(super) fn sealed_grant(row: &impl RowExt) -> Result<SealedGrant, StoreError> {
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
