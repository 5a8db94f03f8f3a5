use uuid::Uuid;

use crate::{
    domain::{
        connection::ConnectionId,
        consent::{EXCHANGE_LIFE, KeyExchange},
        slug::Slug,
    },
    seal::secret::Digest,
    store::{
        Store, StoreError,
        engine::{in_transaction, on, row::RowExt},
        millis, now,
    },
};

/// Says for [`EXCHANGE_LIFE`], `$4` milliseconds, that a grant for connection `$3` may come of what has
/// this digest, `$2`.
pub(crate) const MARK_CODE_EXCHANGE: &str = concat!(
    "INSERT INTO code_exchanges (state_hash, connection_id, ends_at) VALUES ($2, $3, ",
    now!(),
    " + $4) ON CONFLICT DO NOTHING"
);

/// Takes back what [`MARK_CODE_EXCHANGE`] says, of digest `$1`.
pub(crate) const END_CODE_EXCHANGE: &str = "DELETE FROM code_exchanges WHERE state_hash = $1";

impl Store {
    /// Keeps an API-key exchange whose code is to arrive at the callback.
    ///
    /// # Errors
    ///
    /// When the connection is gone, or the database does not answer.
    pub async fn insert_exchange(&self, exchange: &KeyExchange) -> Result<(), StoreError> {
        let sql = "INSERT INTO key_exchanges
                (id, connection_id, client, account_host, requested_at, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6)";
        on!(self, |pool| {
            sqlx::query(sql)
                .bind(exchange.id.to_string())
                .bind(exchange.connection.to_string())
                .bind(exchange.client.as_str())
                .bind(&exchange.account_host)
                .bind(exchange.requested_at.as_millisecond())
                .bind(exchange.expires_at.as_millisecond())
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// The exchange that a code from this account belongs to, left in place and its tries counted.
    /// None when `max_tries` codes were tried for it already. Of several exchanges it is the newest:
    /// those before it were given up.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the try may be counted all the same.
    pub async fn try_exchange(
        &self,
        client: &Slug,
        account_host: &str,
        max_tries: i64,
    ) -> Result<Option<KeyExchange>, StoreError> {
        let sql = concat!(
            "UPDATE key_exchanges SET tries = tries + 1
            WHERE tries < $4 AND id = (
                SELECT id FROM key_exchanges
                WHERE client = $2 AND account_host = $3 AND expires_at > ",
            now!(),
            " ORDER BY requested_at DESC, id DESC LIMIT 1)
            RETURNING id, connection_id, client, account_host, requested_at, expires_at"
        );
        on!(self, |pool| {
            let row = sqlx::query(sql)
                .bind(self.ahead())
                .bind(client.as_str())
                .bind(account_host)
                .bind(max_tries)
                .fetch_optional(pool)
                .await?;
            row.map(|row| exchange(&row)).transpose()
        })
    }

    /// Ends an exchange, once and for good. False when it has ended already.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the exchange may have ended all the same.
    pub async fn end_exchange(&self, id: Uuid) -> Result<bool, StoreError> {
        on!(self, |pool| {
            let ended = sqlx::query("DELETE FROM key_exchanges WHERE id = $1").bind(id.to_string());
            Ok(ended.execute(pool).await?.rows_affected() == 1)
        })
    }

    /// Says that a grant may come of a code that no attempt brought, from now on and for
    /// [`EXCHANGE_LIFE`], until [`Store::end_code_exchange`].
    ///
    /// # Errors
    ///
    /// When the connection is gone, or the database does not answer.
    pub async fn begin_code_exchange(
        &self,
        code: &Digest,
        connection: ConnectionId,
    ) -> Result<(), StoreError> {
        // Changes nothing, but locks the connection: its deletion comes before or after this.
        let lock = "UPDATE connections SET name = name WHERE id = $1";
        let (code, connection) = (code.to_string(), connection.to_string());
        in_transaction!(self, |tx| {
            sqlx::query(lock).bind(&connection).execute(&mut *tx).await?;
            let mark = sqlx::query(MARK_CODE_EXCHANGE).bind(self.ahead()).bind(&code);
            mark.bind(&connection).bind(millis(EXCHANGE_LIFE)).execute(&mut *tx).await?;
        });
        Ok(())
    }

    /// The code is exchanged: no grant comes of it any more but the one that is stored.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn end_code_exchange(&self, code: &Digest) -> Result<(), StoreError> {
        on!(self, |pool| {
            sqlx::query(END_CODE_EXCHANGE).bind(code.to_string()).execute(pool).await?;
        });
        Ok(())
    }
}

fn exchange(row: &impl RowExt) -> Result<KeyExchange, StoreError> {
    Ok(KeyExchange {
        id: row.parsed("id")?,
        connection: row.parsed("connection_id")?,
        client: row.parsed("client")?,
        account_host: row.text("account_host")?,
        requested_at: row.time("requested_at")?,
        expires_at: row.time("expires_at")?,
    })
}
