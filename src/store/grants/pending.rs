use jiff::Timestamp;

use crate::{
    domain::{connection::ConnectionId, grant::PendingGrant},
    seal::Sealed,
    store::{Store, StoreError, engine::in_transaction, json, now},
};

impl Store {
    /// Keeps a grant until its account is confirmed, in place of one that waits already. The live
    /// grant is not touched; a connection that never held one becomes `pending_confirm`. False, with
    /// nothing kept, when there is no such connection or it is revoked.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn put_pending(
        &self,
        id: ConnectionId,
        pending: &PendingGrant,
    ) -> Result<bool, StoreError> {
        let wait = concat!(
            "UPDATE connections SET changed_at = ",
            now!(),
            ", state = CASE
                WHEN state = 'pending_consent'
                    AND (SELECT generation FROM grants WHERE connection_id = $2) = 0
                THEN 'pending_confirm' ELSE state END
            WHERE id = $2 AND state <> 'revoked'"
        );
        let put = "INSERT INTO pending_grants (connection_id, access, refresh, scopes, received_at,
                expires_at, account_id, account_name, account_aliases, vars, token_url)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            ON CONFLICT (connection_id) DO UPDATE SET access = excluded.access,
                refresh = excluded.refresh, scopes = excluded.scopes,
                received_at = excluded.received_at, expires_at = excluded.expires_at,
                account_id = excluded.account_id, account_name = excluded.account_name,
                account_aliases = excluded.account_aliases, vars = excluded.vars,
                token_url = excluded.token_url";
        let (grant, account) = (&pending.grant, pending.account.as_ref());
        in_transaction!(self.durable(), |tx| {
            let updated =
                sqlx::query(wait).bind(self.ahead()).bind(id.to_string()).execute(&mut *tx).await?;
            if updated.rows_affected() == 0 {
                return Ok(false);
            }
            sqlx::query(put)
                .bind(id.to_string())
                .bind(grant.access.as_str())
                .bind(grant.refresh.as_ref().map(Sealed::as_str))
                .bind(json(&grant.scopes))
                .bind(grant.received_at.as_millisecond())
                .bind(grant.expires_at.as_millisecond())
                .bind(account.map(|account| account.id.as_str()))
                .bind(account.and_then(|account| account.name.as_deref()))
                .bind(account.map(|account| json(&account.aliases)))
                .bind(json(&pending.vars))
                .bind(pending.token_url.as_deref())
                .execute(&mut *tx)
                .await?;
        });
        Ok(true)
    }

    /// Forgets the grant that waits for confirmation, if it was received at `latest` or before: a newer
    /// one may have taken its place. A connection that was `pending_confirm` is `pending_consent`
    /// again. False when none waits.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn drop_pending_until(
        &self,
        id: ConnectionId,
        latest: Timestamp,
    ) -> Result<bool, StoreError> {
        let reopen = concat!(
            "UPDATE connections SET changed_at = ",
            now!(),
            ", state = CASE WHEN state = 'pending_confirm' THEN 'pending_consent' ELSE state END
            WHERE id = $2"
        );
        let forget = "DELETE FROM pending_grants WHERE connection_id = $1 AND received_at <= $2";
        in_transaction!(self, |tx| {
            sqlx::query(reopen).bind(self.ahead()).bind(id.to_string()).execute(&mut *tx).await?;
            let forgotten = sqlx::query(forget)
                .bind(id.to_string())
                .bind(latest.as_millisecond())
                .execute(&mut *tx)
                .await?;
            if forgotten.rows_affected() == 0 {
                return Ok(false);
            }
        });
        Ok(true)
    }
}
