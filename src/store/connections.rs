//! Connections with what they hold: creation, reading, polling, deletion of a row.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::{
    Store, StoreError,
    engine::{
        row::{Row, ok_or_log},
        statement::{Statement, Tx, query},
    },
    json,
};
use crate::domain::{
    connection::{Account, Connection, ConnectionId, LastError},
    grant::{GrantSlot, PendingGrant, SealedGrant},
    record::Record,
    slug::Slug,
};

/// How far [`Changes::mark`] stays behind, so that a step which was under way while changes were
/// read is seen the next time: longer than any step may take.
const OVERLAP: Duration = Duration::from_secs(15);

/// The changes since a mark.
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

/// Selects all that a [`Record`] is made of. A condition may follow, on `c`, `g` and `p`.
const SELECT_RECORDS: &str = "
    SELECT c.id, c.name, c.client, c.grant_type, c.scopes, c.state, c.reason, c.account_id,
        c.account_name, c.account_aliases, c.expected_account, c.vars, c.created_at, c.changed_at,
        c.refresh_at, c.failures, c.token_url, c.last_error_code, c.last_error_message,
        c.last_error_at,
        g.generation, g.attempts, g.abandoned_attempts, g.parent_hash, g.asked_at,
        CASE WHEN g.lease_until IS NULL THEN NULL ELSE g.attempt_started_at END AS claimed_at,
        g.access, g.refresh, g.scopes AS grant_scopes, g.received_at, g.expires_at,
        p.access AS pending_access, p.refresh AS pending_refresh, p.scopes AS pending_scopes,
        p.received_at AS pending_received_at, p.expires_at AS pending_expires_at,
        p.account_id AS pending_account_id, p.account_name AS pending_account_name,
        p.account_aliases AS pending_account_aliases, p.vars AS pending_vars,
        p.token_url AS pending_token_url
    FROM connections c
    JOIN grants g ON g.connection_id = c.id
    LEFT JOIN pending_grants p ON p.connection_id = c.id";

/// The statement that reads the records which fit a condition.
pub(crate) fn select_records(condition: &'static str) -> Statement {
    query(AssertSqlSafe(format!("{SELECT_RECORDS} {condition}")))
}

/// Lists connection `$2` among those that polling replicas must forget.
const LIST_DELETED: &str = "
    INSERT INTO deleted_connections (id, name, deleted_at)
    SELECT id, name, (SELECT now_ms FROM clock) + $1 FROM connections WHERE id = $2
    ON CONFLICT (id) DO NOTHING";

impl Store {
    /// Adds a connection that holds no grant yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::NameTaken`] as well.
    pub async fn create(&self, connection: &Connection) -> Result<(), StoreError> {
        let insert = "
            INSERT INTO connections (id, name, client, grant_type, scopes, state, reason,
                account_id, account_name, account_aliases, expected_account, vars, created_at,
                refresh_at, failures, last_error_code, last_error_message, last_error_at,
                changed_at)
            VALUES ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                $19, (SELECT now_ms FROM clock) + $1)
            ON CONFLICT (name) DO NOTHING";
        let account = connection.account.as_ref();
        let error = connection.last_error.as_ref();
        let mut tx = self.begin().await?;
        let inserted = query(insert)
            .bind(self.offset())
            .bind(connection.id)
            .bind(&connection.name)
            .bind(&connection.client)
            .bind(connection.grant_type)
            .bind(json(&connection.scopes))
            .bind(connection.state)
            .bind(connection.reason.as_deref())
            .bind(account.map(|account| &account.id))
            .bind(account.and_then(|account| account.name.as_deref()))
            .bind(account.map(|account| json(&account.aliases)))
            .bind(connection.expected_account.as_deref())
            .bind(json(&connection.vars))
            .bind(connection.created_at)
            .bind(connection.refresh_at)
            .bind(connection.failures)
            .bind(error.map(|error| &error.code))
            .bind(error.map(|error| &error.message))
            .bind(error.map(|error| error.at))
            .execute(&mut tx)
            .await?;
        if inserted == 0 {
            return tx.fail(StoreError::NameTaken(connection.name.clone()));
        }
        let grant = "INSERT INTO grants (connection_id, generation, attempts) VALUES ($1, 0, 0)";
        query(grant).bind(connection.id).execute(&mut tx).await?;
        tx.commit(()).await
    }

    /// The connection of this name, with what it holds.
    pub async fn record(&self, name: &str) -> Result<Option<Record>, StoreError> {
        let select = select_records("WHERE c.name = $1").bind(name);
        select.fetch_optional(&self.engine).await?.as_ref().map(record).transpose()
    }

    /// The connection of this id, with what it holds.
    pub async fn record_by_id(&self, id: ConnectionId) -> Result<Option<Record>, StoreError> {
        let select = select_records("WHERE c.id = $1").bind(id);
        select.fetch_optional(&self.engine).await?.as_ref().map(record).transpose()
    }

    /// Whether a connection of this name was deleted.
    pub async fn was_deleted(&self, name: &str) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM deleted_connections WHERE name = $1 LIMIT 1";
        query(sql).bind(name).finds(&self.engine).await
    }

    /// Whether the connection of this id was deleted.
    pub async fn is_deleted(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM deleted_connections WHERE id = $1";
        query(sql).bind(id).finds(&self.engine).await
    }

    /// All connections by name, with what they hold.
    pub async fn records(&self) -> Result<Vec<Record>, StoreError> {
        let rows = select_records("ORDER BY c.name").fetch_all(&self.engine).await?;
        rows.iter().map(record).collect()
    }

    /// The changes that readers should know since `mark`, which an earlier answer gave, or
    /// [`Timestamp::UNIX_EPOCH`] for everything. Sets our clock by the database's as well.
    pub async fn changed_since(&self, mark: Timestamp) -> Result<Changes, StoreError> {
        // The time is read before the rows: a change in between comes again the next time.
        let asked = self.clock.since_boot();
        let shown = self.database_clock().await?;
        self.clock.observe_database_time(asked, shown);
        let changed = select_records("WHERE c.changed_at >= $1 ORDER BY c.name").bind(mark);
        let records = changed.fetch_all(&self.engine).await?;
        let deleted = "SELECT id, name FROM deleted_connections WHERE deleted_at >= $1";
        let deleted = query(deleted).bind(mark).fetch_all(&self.engine).await?;
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
    }

    /// Stores whose account it is, for a connection of which that is not known. `generation` is that
    /// of the grant that was used to ask. False, with nothing changed, when a grant was stored since,
    /// the account is known by now, or there is no such connection.
    pub async fn set_account(
        &self,
        id: ConnectionId,
        generation: i64,
        account: &Account,
    ) -> Result<bool, StoreError> {
        let set = "
            UPDATE connections SET account_id = $3, account_name = $4, account_aliases = $5,
                changed_at = (SELECT now_ms FROM clock) + $1
            WHERE id = $2 AND account_id IS NULL";
        let mut tx = self.begin().await?;
        let set = query(set)
            .bind(self.offset())
            .bind(id)
            .bind(&account.id)
            .bind(account.name.as_deref())
            .bind(json(&account.aliases))
            .execute(&mut tx)
            .await?;
        // Read under the lock of the update: no grant is stored in between.
        if set == 0 || !holds_generation(&mut tx, id, generation).await? {
            return tx.roll_back(false);
        }
        tx.commit(true).await
    }

    /// Deletes a connection and all it holds: grants, links, attempts, exchanges. Its id and name
    /// stay listed for [`Store::changed_since`]. False when there is no such connection.
    pub async fn delete(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let deleted = delete_listed(&mut tx, id, self.offset()).await?;
        tx.commit(deleted).await
    }
}

/// Deletes a connection with all it holds, and lists it as deleted. False when there is none.
pub(crate) async fn delete_listed(
    tx: &mut Tx,
    id: ConnectionId,
    offset: i64,
) -> Result<bool, StoreError> {
    query(LIST_DELETED).bind(offset).bind(id).execute(&mut *tx).await?;
    let deleted = query("DELETE FROM connections WHERE id = $1").bind(id).execute(tx).await?;
    Ok(deleted == 1)
}

pub(crate) async fn holds_generation(
    tx: &mut Tx,
    id: ConnectionId,
    generation: i64,
) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM grants WHERE connection_id = $1 AND generation = $2";
    query(sql).bind(id).bind(generation).finds(tx).await
}

pub(crate) fn record(row: &Row) -> Result<Record, StoreError> {
    Ok(Record {
        connection: connection(row)?,
        grant: grant(row)?,
        pending: pending(row)?,
        token_url: row.text_or_null("token_url")?,
        open_attempts: u32::try_from(row.number("attempts")?).unwrap_or_default(),
        crashes: u32::try_from(row.number("abandoned_attempts")?).unwrap_or_default(),
        claimed_at: row.time_or_null("claimed_at")?,
        changed_at: row.time("changed_at")?,
    })
}

fn connection(row: &Row) -> Result<Connection, StoreError> {
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

fn grant(row: &Row) -> Result<Option<SealedGrant>, StoreError> {
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

fn pending(row: &Row) -> Result<Option<PendingGrant>, StoreError> {
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

fn account(row: &Row, [id, name, aliases]: [&str; 3]) -> Result<Option<Account>, StoreError> {
    let Some(id) = row.text_or_null(id)? else {
        return Ok(None);
    };
    Ok(Some(Account { id, name: row.text_or_null(name)?, aliases: row.json(aliases)? }))
}

fn id_and_name(row: &Row) -> Result<(ConnectionId, Slug), StoreError> {
    Ok((row.parsed("id")?, row.parsed("name")?))
}
