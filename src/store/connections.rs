use std::time::Duration;

use jiff::Timestamp;

use super::{
    Store, StoreError,
    engine::{
        in_transaction, on,
        row::{RowExt, ok_or_log},
    },
    grants::revocations::LIST_DELETED,
    json, now, optional_millis,
};
use crate::domain::{
    connection::{Account, Connection, ConnectionId, LastError, Record},
    grant::{GrantSlot, PendingGrant, SealedGrant},
    slug::Slug,
};

/// How far [`Changes::mark`] stays behind, so that a step which was under way while changes were
/// read is seen the next time: longer than any step is allowed to take.
const OVERLAP: Duration = Duration::from_secs(15);

/// What has changed since a mark.
#[derive(Clone, Debug)]
pub struct Changes {
    /// The connections that were made or changed; some of them may have been seen before. One that
    /// cannot be understood is left out, and logged.
    pub records: Vec<Record>,
    /// The connections that were deleted. To be applied after `records`, by id: the name may have
    /// been given to another connection.
    pub deleted: Vec<(ConnectionId, Slug)>,
    /// Where to go on from, on the database's clock.
    pub mark: Timestamp,
}

/// Everything a [`Record`] is made of; a condition may follow, on `c`, `g` and `p`.
macro_rules! select_records {
    ($($rest:expr),*) => {
        concat!(
            "SELECT c.id, c.name, c.client, c.grant_type, c.scopes, c.state, c.reason,
                c.account_id, c.account_name, c.account_aliases, c.expected_account, c.vars,
                c.created_at, c.changed_at, c.refresh_at, c.failures, c.token_url,
                c.last_error_code, c.last_error_message, c.last_error_at,
                g.generation, g.attempts, g.crashes, g.parent_hash, g.asked_at,
                CASE WHEN g.lease_until IS NULL THEN NULL ELSE g.attempt_started_at END
                    AS claimed_at, g.access, g.refresh, g.scopes AS grant_scopes,
                g.received_at, g.expires_at,
                p.access AS pending_access, p.refresh AS pending_refresh,
                p.scopes AS pending_scopes, p.received_at AS pending_received_at,
                p.expires_at AS pending_expires_at, p.account_id AS pending_account_id,
                p.account_name AS pending_account_name,
                p.account_aliases AS pending_account_aliases, p.vars AS pending_vars,
                p.token_url AS pending_token_url
            FROM connections c
            JOIN grants g ON g.connection_id = c.id
            LEFT JOIN pending_grants p ON p.connection_id = c.id ",
            $($rest),*
        )
    };
}
pub(crate) use select_records;

impl Store {
    /// Adds a connection that holds no grant yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::NameTaken`]; or when the database does not answer.
    pub async fn create(&self, connection: &Connection) -> Result<(), StoreError> {
        let insert = concat!(
            "INSERT INTO connections (id, name, client, grant_type, scopes, state, reason,
                account_id, account_name, account_aliases, expected_account, vars, created_at,
                refresh_at, failures, last_error_code, last_error_message, last_error_at, changed_at)
            VALUES ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,",
            now!(),
            ") ON CONFLICT (name) DO NOTHING"
        );
        let account = connection.account.as_ref();
        let error = connection.last_error.as_ref();
        in_transaction!(self, |tx| {
            let inserted = sqlx::query(insert)
                .bind(self.ahead())
                .bind(connection.id.to_string())
                .bind(connection.name.as_str())
                .bind(connection.client.as_str())
                .bind(connection.grant_type.as_str())
                .bind(json(&connection.scopes))
                .bind(connection.state.as_str())
                .bind(connection.reason.as_deref())
                .bind(account.map(|account| account.id.as_str()))
                .bind(account.and_then(|account| account.name.as_deref()))
                .bind(account.map(|account| json(&account.aliases)))
                .bind(connection.expected_account.as_deref())
                .bind(json(&connection.vars))
                .bind(connection.created_at.as_millisecond())
                .bind(optional_millis(connection.refresh_at))
                .bind(i64::from(connection.failures))
                .bind(error.map(|error| error.code.as_str()))
                .bind(error.map(|error| error.message.as_str()))
                .bind(error.map(|error| error.at.as_millisecond()))
                .execute(&mut *tx)
                .await?;
            if inserted.rows_affected() == 0 {
                return Err(StoreError::NameTaken(connection.name.clone()));
            }
            sqlx::query(
                "INSERT INTO grants (connection_id, generation, attempts) VALUES ($1, 0, 0)",
            )
            .bind(connection.id.to_string())
            .execute(&mut *tx)
            .await?;
        });
        Ok(())
    }

    /// The connection of this name, with what it holds.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or the row does not make sense.
    pub async fn record(&self, name: &str) -> Result<Option<Record>, StoreError> {
        let sql = select_records!("WHERE c.name = $1");
        on!(self, |pool| {
            let row = sqlx::query(sql).bind(name).fetch_optional(pool).await?;
            row.map(|row| record(&row)).transpose()
        })
    }

    /// The connection of this id, with what it holds.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or the row does not make sense.
    pub async fn record_by_id(&self, id: ConnectionId) -> Result<Option<Record>, StoreError> {
        let sql = select_records!("WHERE c.id = $1");
        on!(self, |pool| {
            let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(pool).await?;
            row.map(|row| record(&row)).transpose()
        })
    }

    /// Whether a connection of this name was deleted.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn was_deleted(&self, name: &str) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM deleted_connections WHERE name = $1";
        on!(self, |pool| { Ok(sqlx::query(sql).bind(name).fetch_optional(pool).await?.is_some()) })
    }

    /// Whether the connection of this id was deleted.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn is_deleted(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM deleted_connections WHERE id = $1";
        on!(self, |pool| {
            let found = sqlx::query(sql).bind(id.to_string()).fetch_optional(pool);
            Ok(found.await?.is_some())
        })
    }

    /// All connections by name, with what they hold.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or a row does not make sense.
    pub async fn records(&self) -> Result<Vec<Record>, StoreError> {
        let sql = select_records!("ORDER BY c.name");
        on!(self, |pool| { sqlx::query(sql).fetch_all(pool).await?.iter().map(record).collect() })
    }

    /// What readers should know that changed since `mark`, which an earlier answer gave, or
    /// [`Timestamp::UNIX_EPOCH`] for everything. Sets our clock by the database's on the way.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn changed_since(&self, mark: Timestamp) -> Result<Changes, StoreError> {
        let changed = select_records!("WHERE c.changed_at >= $1 ORDER BY c.name");
        let deleted = "SELECT id, name FROM deleted_connections WHERE deleted_at >= $1";
        let since = mark.as_millisecond();
        // The time is read before the rows: what changes in between comes again the next time.
        on!(self, |pool| {
            let asked = self.clock.since_boot();
            let shown = sqlx::query(concat!("SELECT ", now!(), " AS now_ms"))
                .bind(self.ahead())
                .fetch_one(pool)
                .await?
                .time("now_ms")?;
            self.clock.observe_database_time(asked, shown);
            let records = sqlx::query(changed).bind(since).fetch_all(pool).await?;
            let deleted = sqlx::query(deleted).bind(since).fetch_all(pool).await?;
            Ok(Changes {
                records: records
                    .iter()
                    .filter_map(|row| ok_or_log("connection", record(row)))
                    .collect(),
                deleted: deleted
                    .iter()
                    .filter_map(|row| ok_or_log("deletion", id_and_name(row)))
                    .collect(),
                mark: shown - OVERLAP,
            })
        })
    }

    /// Marks a connection whose grant of this generation does not open. False, with nothing changed,
    /// when it holds another one by now, was deleted, or there is no such connection.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn mark_unreadable(
        &self,
        id: ConnectionId,
        generation: i64,
    ) -> Result<bool, StoreError> {
        let mark = concat!(
            "UPDATE connections SET state = 'integrity_error', reason = NULL, changed_at = ",
            now!(),
            " WHERE id = $2 AND state NOT IN ('revoked', 'revoking')"
        );
        // Looked at under the lock of the first: a grant that is being stored is seen.
        let held = "SELECT 1 FROM grants WHERE connection_id = $1 AND generation = $2";
        let id = id.to_string();
        in_transaction!(self, |tx| {
            let marked = sqlx::query(mark).bind(self.ahead()).bind(&id).execute(&mut *tx).await?;
            let held = sqlx::query(held).bind(&id).bind(generation).fetch_optional(&mut *tx);
            if held.await?.is_none() || marked.rows_affected() == 0 {
                return Ok(false);
            }
        });
        Ok(true)
    }

    /// Notes whose account it is, for a connection of which that is not known. `generation` is the
    /// grant that was asked with. False, with nothing changed, when a grant was stored since, the
    /// account is known by now, or there is no such connection.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn set_account(
        &self,
        id: ConnectionId,
        generation: i64,
        account: &Account,
    ) -> Result<bool, StoreError> {
        // Locks the connection: no grant is stored between this and the look at the generation.
        let note = concat!(
            "UPDATE connections SET account_id = $3, account_name = $4, account_aliases = $5,
                changed_at = ",
            now!(),
            " WHERE id = $2 AND account_id IS NULL"
        );
        let same = "SELECT 1 FROM grants WHERE connection_id = $1 AND generation = $2";
        in_transaction!(self, |tx| {
            let noted = sqlx::query(note)
                .bind(self.ahead())
                .bind(id.to_string())
                .bind(&account.id)
                .bind(account.name.as_deref())
                .bind(json(&account.aliases))
                .execute(&mut *tx)
                .await?;
            let same = sqlx::query(same).bind(id.to_string()).bind(generation);
            if noted.rows_affected() == 0 || same.fetch_optional(&mut *tx).await?.is_none() {
                return Ok(false);
            }
        });
        Ok(true)
    }

    /// Forgets a connection and all it holds: grants, links, attempts, exchanges. Its id and name
    /// stay on a list for [`Store::changed_since`]. False when there is no such connection.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn delete(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let deleted = in_transaction!(self, |tx| {
            sqlx::query(LIST_DELETED)
                .bind(self.ahead())
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM connections WHERE id = $1")
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?
                .rows_affected()
        });
        Ok(deleted == 1)
    }
}

pub(crate) fn record(row: &impl RowExt) -> Result<Record, StoreError> {
    Ok(Record {
        connection: connection(row)?,
        grant: grant(row)?,
        pending: pending(row)?,
        token_url: row.text_or_null("token_url")?,
        open_attempts: u32::try_from(row.number("attempts")?).unwrap_or_default(),
        crashes: u32::try_from(row.number("crashes")?).unwrap_or_default(),
        claimed_at: row.time_or_null("claimed_at")?,
        changed_at: row.time("changed_at")?,
    })
}

fn connection(row: &impl RowExt) -> Result<Connection, StoreError> {
    let last_error = match row.text_or_null("last_error_code")? {
        None => None,
        Some(code) => Some(LastError {
            code,
            message: row.text("last_error_message")?,
            at: row.time("last_error_at")?,
        }),
    };
    Ok(Connection {
        id: row.parsed("id")?,
        name: row.parsed("name")?,
        client: row.parsed("client")?,
        grant_type: row.parsed("grant_type")?,
        scopes: row.json("scopes")?,
        state: row.parsed("state")?,
        reason: row.text_or_null("reason")?,
        account: account(row, ["account_id", "account_name", "account_aliases"])?,
        expected_account: row.text_or_null("expected_account")?,
        vars: row.json("vars")?,
        created_at: row.time("created_at")?,
        refresh_at: row.time_or_null("refresh_at")?,
        failures: row.number("failures")?.try_into().map_err(|_| row.corrupt("failures"))?,
        last_error,
    })
}

fn grant(row: &impl RowExt) -> Result<Option<SealedGrant>, StoreError> {
    let Some(access) = row.sealed_or_null("access")? else {
        return Ok(None);
    };
    Ok(Some(SealedGrant {
        slot: GrantSlot::Live { generation: row.number("generation")? },
        access,
        refresh: row.sealed_or_null("refresh")?,
        scopes: row.json("grant_scopes")?,
        received_at: row.time("received_at")?,
        expires_at: row.time("expires_at")?,
        origin: row.origin()?,
    }))
}

fn pending(row: &impl RowExt) -> Result<Option<PendingGrant>, StoreError> {
    let Some(access) = row.sealed_or_null("pending_access")? else {
        return Ok(None);
    };
    let columns = ["pending_account_id", "pending_account_name", "pending_account_aliases"];
    let grant = SealedGrant {
        slot: GrantSlot::Pending,
        access,
        refresh: row.sealed_or_null("pending_refresh")?,
        scopes: row.json("pending_scopes")?,
        received_at: row.time("pending_received_at")?,
        expires_at: row.time("pending_expires_at")?,
        origin: None,
    };
    Ok(Some(PendingGrant {
        grant,
        account: account(row, columns)?,
        vars: row.json("pending_vars")?,
        token_url: row.text_or_null("pending_token_url")?,
    }))
}

fn account(
    row: &impl RowExt,
    [id, name, aliases]: [&str; 3],
) -> Result<Option<Account>, StoreError> {
    let Some(id) = row.text_or_null(id)? else {
        return Ok(None);
    };
    Ok(Some(Account { id, name: row.text_or_null(name)?, aliases: row.json(aliases)? }))
}

fn id_and_name(row: &impl RowExt) -> Result<(ConnectionId, Slug), StoreError> {
    Ok((row.parsed("id")?, row.parsed("name")?))
}
