//! Every sealed value of the database: counted by key, and sealed anew with another key.
//!
//! A value is exchanged by compare-and-set on its sealed text: a value that was stored meanwhile wins.
//! Nothing that readers see changes, so no `changed_at` moves and no replica is notified.

use sqlx::AssertSqlSafe;

use super::{EngineKind, Store, StoreError, engine::statement::query};
use crate::seal::{SealContext, Sealed, SealedField};

/// How many values one transaction of SQLite exchanges, which waits for the disk at its end. On
/// PostgreSQL each is a transaction of its own: one that locks several rows could meet another that
/// locks them in another order.
const BATCH: usize = 100;

/// A column of sealed values.
#[derive(Debug)]
pub struct SealedColumn {
    /// Its table.
    pub table: &'static str,
    /// The primary key of the table.
    key: &'static str,
    /// The column.
    column: &'static str,
    /// The field that its values are sealed as.
    field: SealedField,
    /// The id of the record that a value is sealed for, in SQL.
    record: &'static str,
    /// The generation that a value is sealed for, in SQL.
    generation: &'static str,
    /// The rows that hold a sealed value, in SQL.
    rows: &'static str,
}

/// Every column of sealed values. The fields are part of what is sealed: they never change.
pub const SEALED_COLUMNS: &[SealedColumn] = &[
    SealedColumn { field: SealedField::Access, ..GRANTS },
    SealedColumn { column: "refresh", field: SealedField::Refresh, ..GRANTS },
    SealedColumn {
        table: "pending_grants",
        field: SealedField::PendingAccess,
        generation: "0",
        ..GRANTS
    },
    SealedColumn {
        table: "pending_grants",
        column: "refresh",
        field: SealedField::PendingRefresh,
        generation: "0",
        ..GRANTS
    },
    SealedColumn {
        table: "fallback_grants",
        key: "id",
        field: SealedField::FallbackAccess,
        ..GRANTS
    },
    SealedColumn {
        table: "fallback_grants",
        key: "id",
        column: "refresh",
        field: SealedField::FallbackRefresh,
        ..GRANTS
    },
    SealedColumn { column: "verifier", field: SealedField::Verifier, ..CONSENTS },
    SealedColumn { column: "link_secret", field: SealedField::LinkSecret, ..CONSENTS },
    SealedColumn {
        table: "meta",
        key: "key",
        column: "value",
        field: SealedField::SealingCheck,
        record: "'database'",
        generation: "0",
        rows: "key = 'sealing_check'",
    },
];

const GRANTS: SealedColumn = SealedColumn {
    table: "grants",
    key: "connection_id",
    column: "access",
    field: SealedField::Access,
    record: "connection_id",
    generation: "generation",
    rows: "TRUE",
};

const CONSENTS: SealedColumn = SealedColumn {
    table: "consents",
    key: "state_hash",
    column: "verifier",
    field: SealedField::Verifier,
    record: "link_id",
    generation: "0",
    rows: "TRUE",
};

/// A sealed value and its row.
#[derive(Clone, Debug)]
pub struct SealedValue {
    row: String,
    /// The id of the record that it is sealed for.
    pub record: String,
    field: SealedField,
    generation: i64,
    /// The value.
    pub sealed: Sealed,
}

impl SealedValue {
    /// The context that it is sealed in.
    pub fn context(&self) -> SealContext<'_> {
        SealContext { record: &self.record, field: self.field, generation: self.generation }
    }
}

/// The number of values of a table that are sealed with one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealedCount {
    /// The table.
    pub table: String,
    /// The key's id; empty for a value that is not sealed at all.
    pub key: String,
    /// How many values.
    pub values: i64,
}

impl Store {
    /// Counts the sealed values by table and key.
    pub async fn count_sealed(&self) -> Result<Vec<SealedCount>, StoreError> {
        let columns = SEALED_COLUMNS.iter().map(|SealedColumn { table, column, rows, .. }| {
            format!(
                "SELECT '{table}' AS part, {column} AS sealed FROM {table}
                WHERE {column} IS NOT NULL AND {rows}"
            )
        });
        // A sealed value is `v1.`, the key's id, a dot and the rest. The id is the text after `v1.`
        // without what remains when all its letters and digits are trimmed off.
        let sql = format!(
            "SELECT part, key_id, count(*) AS sealed_values FROM (
                SELECT part, CASE WHEN substr(sealed, 1, 3) = 'v1.'
                    THEN substr(sealed, 4, length(sealed) - 3 - length(ltrim(substr(sealed, 4), '{}')))
                    ELSE '' END AS key_id
                FROM ({}) stored) keyed
            GROUP BY part, key_id ORDER BY part, key_id",
            "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
            columns.collect::<Vec<_>>().join(" UNION ALL ")
        );
        let rows = query(AssertSqlSafe(sql)).fetch_all(&self.engine).await?;
        rows.iter()
            .map(|row| {
                Ok(SealedCount {
                    table: row.text("part")?,
                    key: row.text("key_id")?,
                    values: row.number("sealed_values")?,
                })
            })
            .collect()
    }

    /// The next values of a column that are not sealed with this key, at most so many, after one
    /// that was read before.
    pub async fn sealed_otherwise(
        &self,
        column: &SealedColumn,
        key: &str,
        after: Option<&SealedValue>,
        at_most: i64,
    ) -> Result<Vec<SealedValue>, StoreError> {
        let SealedColumn { table, key: row_key, column: value, field, record, generation, rows } =
            column;
        let sql = format!(
            "SELECT {row_key} AS row_key, {record} AS record,
                CAST({generation} AS BIGINT) AS generation, {value} AS sealed
            FROM {table}
            WHERE {value} IS NOT NULL AND {rows} AND {row_key} > $1
                AND substr({value}, 1, length($2)) <> $2
            ORDER BY {row_key} LIMIT $3"
        );
        let listed = query(AssertSqlSafe(sql))
            .bind(after.map_or("", |value| value.row.as_str()))
            .bind(format!("v1.{key}."))
            .bind(at_most)
            .fetch_all(&self.engine)
            .await?;
        listed
            .iter()
            .map(|row| {
                Ok(SealedValue {
                    row: row.text("row_key")?,
                    record: row.text("record")?,
                    field: *field,
                    generation: row.number("generation")?,
                    sealed: row.sealed("sealed")?,
                })
            })
            .collect()
    }

    /// Stores values that were sealed anew in the place of those that were read. A value that has
    /// changed or gone since stays as it is. Returns how many were exchanged; when the database does
    /// not answer, some may be.
    pub async fn reseal(
        &self,
        column: &SealedColumn,
        values: &[(SealedValue, Sealed)],
    ) -> Result<u64, StoreError> {
        let SealedColumn { table, key, column, .. } = column;
        let at_once = match self.engine() {
            EngineKind::Postgres => 1,
            EngineKind::Sqlite => BATCH,
        };
        let mut exchanged = 0;
        for batch in values.chunks(at_once) {
            let mut tx = self.begin().await?;
            for (old, new) in batch {
                let sql =
                    format!("UPDATE {table} SET {column} = $3 WHERE {key} = $1 AND {column} = $2");
                let exchange = query(AssertSqlSafe(sql)).bind(&old.row).bind(&old.sealed).bind(new);
                exchanged += exchange.execute(&mut tx).await?;
            }
            tx.commit(()).await?;
        }
        Ok(exchanged)
    }
}
