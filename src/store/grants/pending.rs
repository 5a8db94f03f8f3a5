//! Grants that wait for their account to be confirmed.

use jiff::Timestamp;

use crate::{
    domain::{connection::ConnectionId, grant::PendingGrant},
    store::{DurableStore, Store, StoreError, engine::statement::query, json},
};

impl DurableStore {
    /// Stores a grant until its account is confirmed, in place of one that waits already. The live
    /// grant is not touched; a connection that never held one becomes `pending_confirm`. False, with
    /// nothing stored, when there is no such connection or it is revoked.
    pub async fn put_pending(
        self,
        id: ConnectionId,
        pending: &PendingGrant,
    ) -> Result<bool, StoreError> {
        let wait = "
            UPDATE connections SET changed_at = (SELECT now_ms FROM clock) + $1,
                state = CASE
                    WHEN state = 'pending_consent'
                        AND (SELECT generation FROM grants WHERE connection_id = $2) = 0
                    THEN 'pending_confirm' ELSE state END
            WHERE id = $2 AND state <> 'revoked'";
        let put = "
            INSERT INTO pending_grants (connection_id, access, refresh, scopes, received_at,
                expires_at, account_id, account_name, account_aliases, vars, token_url)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            ON CONFLICT (connection_id) DO UPDATE SET access = excluded.access,
                refresh = excluded.refresh, scopes = excluded.scopes,
                received_at = excluded.received_at, expires_at = excluded.expires_at,
                account_id = excluded.account_id, account_name = excluded.account_name,
                account_aliases = excluded.account_aliases, vars = excluded.vars,
                token_url = excluded.token_url";
        let (grant, account) = (&pending.grant, pending.account.as_ref());
        let mut tx = self.0.begin().await?;
        let updated = query(wait).bind(self.0.offset()).bind(id).execute(&mut tx).await?;
        if updated == 0 {
            return tx.roll_back(false);
        }
        query(put)
            .bind(id)
            .bind(&grant.access)
            .bind(grant.refresh.as_ref())
            .bind(json(&grant.scopes))
            .bind(grant.received_at)
            .bind(grant.expires_at)
            .bind(account.map(|account| &account.id))
            .bind(account.and_then(|account| account.name.as_deref()))
            .bind(account.map(|account| json(&account.aliases)))
            .bind(json(&pending.vars))
            .bind(pending.token_url.as_deref())
            .execute(&mut tx)
            .await?;
        tx.commit(true).await
    }
}

impl Store {
    /// Deletes the grant that waits for confirmation, if it was received at `latest` or before: a newer
    /// one may have taken its place. A connection that was `pending_confirm` is `pending_consent`
    /// again. False when none waits.
    pub async fn drop_pending_until(
        &self,
        id: ConnectionId,
        latest: Timestamp,
    ) -> Result<bool, StoreError> {
        let reopen = "
            UPDATE connections SET changed_at = (SELECT now_ms FROM clock) + $1,
                state = CASE state WHEN 'pending_confirm' THEN 'pending_consent' ELSE state END
            WHERE id = $2";
        let delete = "DELETE FROM pending_grants WHERE connection_id = $1 AND received_at <= $2";
        let mut tx = self.begin().await?;
        query(reopen).bind(self.offset()).bind(id).execute(&mut tx).await?;
        let deleted = query(delete).bind(id).bind(latest).execute(&mut tx).await?;
        if deleted == 0 {
            return tx.roll_back(false);
        }
        tx.commit(true).await
    }
}
