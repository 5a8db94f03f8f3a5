//! Codes that are being exchanged, and API-key exchanges whose code is still to come.

use uuid::Uuid;

use crate::{
    domain::{
        connection::ConnectionId,
        consent::{EXCHANGE_LIFE, KeyExchange},
        slug::Slug,
    },
    seal::secret::Digest,
    store::{
        DurableStore, Store, StoreError,
        engine::{
            row::Row,
            statement::{Statement, query},
        },
    },
};

impl Store {
    /// Stores an API-key exchange whose code is to arrive at the callback.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`] when the connection is gone.
    pub async fn insert_exchange(&self, exchange: &KeyExchange) -> Result<(), StoreError> {
        let sql = "
            INSERT INTO key_exchanges
                (id, connection_id, client, account_host, requested_at, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6)";
        query(sql)
            .bind(exchange.id)
            .bind(exchange.connection)
            .bind(&exchange.client)
            .bind(&exchange.account_host)
            .bind(exchange.requested_at)
            .bind(exchange.expires_at)
            .execute(&self.engine)
            .await?;
        Ok(())
    }

    /// The exchange that a code from this account belongs to, left in place and its tries counted.
    /// None when `max_tries` codes were tried for it already. Of several exchanges it is the newest:
    /// those before it were given up. When the database does not answer, the try may be counted all
    /// the same.
    pub async fn try_exchange(
        &self,
        client: &Slug,
        account_host: &str,
        max_tries: i64,
    ) -> Result<Option<KeyExchange>, StoreError> {
        let sql = "
            UPDATE key_exchanges SET tries = tries + 1
            WHERE tries < $4 AND id = (
                SELECT id FROM key_exchanges
                WHERE client = $2 AND account_host = $3
                    AND expires_at > (SELECT now_ms FROM clock) + $1
                ORDER BY requested_at DESC, id DESC LIMIT 1)
            RETURNING id, connection_id, client, account_host, requested_at, expires_at";
        let row = query(sql)
            .bind(self.offset())
            .bind(client)
            .bind(account_host)
            .bind(max_tries)
            .fetch_optional(&self.engine)
            .await?;
        row.as_ref().map(exchange).transpose()
    }

    /// Ends an exchange, once and for good. False when it has ended already. When the database does
    /// not answer, it may have ended all the same.
    pub async fn end_exchange(&self, id: Uuid) -> Result<bool, StoreError> {
        let sql = "DELETE FROM key_exchanges WHERE id = $1";
        Ok(query(sql).bind(id).execute(&self.engine).await? == 1)
    }

    /// Says that a grant may come of a code that no attempt brought, from now on and for
    /// [`EXCHANGE_LIFE`], until [`DurableStore::end_code_exchange`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`] when the connection is gone.
    pub async fn begin_code_exchange(
        &self,
        code: &Digest,
        connection: ConnectionId,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // The connection's deletion comes before or after this.
        tx.lock_connection(connection).await?;
        mark_code_exchange(code, connection, self.offset()).execute(&mut tx).await?;
        tx.commit(()).await
    }
}

impl DurableStore {
    /// Says that the code is exchanged: no grant comes of it any more but the one that is stored.
    pub async fn end_code_exchange(self, code: &Digest) -> Result<(), StoreError> {
        end_code_exchange(code).execute(&self.0.engine).await?;
        Ok(())
    }
}

/// Says for [`EXCHANGE_LIFE`] that a grant for a connection may come of what has this digest.
pub(crate) fn mark_code_exchange(
    code: &Digest,
    connection: ConnectionId,
    offset: i64,
) -> Statement {
    let sql = "
        INSERT INTO code_exchanges (state_hash, connection_id, ends_at)
        VALUES ($2, $3, (SELECT now_ms FROM clock) + $1 + $4)
        ON CONFLICT DO NOTHING";
    query(sql).bind(offset).bind(code).bind(connection).bind(EXCHANGE_LIFE)
}

/// Takes back what [`mark_code_exchange`] says.
pub(crate) fn end_code_exchange(code: &Digest) -> Statement {
    query("DELETE FROM code_exchanges WHERE state_hash = $1").bind(code)
}

fn exchange(row: &Row) -> Result<KeyExchange, StoreError> {
    Ok(KeyExchange {
        id: row.parsed("id")?,
        connection: row.parsed("connection_id")?,
        client: row.parsed("client")?,
        account_host: row.text("account_host")?,
        requested_at: row.time("requested_at")?,
        expires_at: row.time("expires_at")?,
    })
}
