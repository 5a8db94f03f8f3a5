//! What is sealed, wherever it lies: counted by key, and sealed anew by another one.
//!
//! A value is exchanged by compare-and-set on its sealed text: whoever has stored something else
//! meanwhile wins. Nothing that readers see changes, so no `changed_at` moves and nobody is hinted.

use super::{
    EngineKind, Store, StoreError,
    engine::{in_transaction, on, row::RowExt as _},
};
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
    field: SealedField,
    list: &'static str,
    put: &'static str,
}

/// A sealed value and where it lies.
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
    #[must_use]
    pub fn context(&self) -> SealContext<'_> {
        SealContext { record: &self.record, field: self.field, generation: self.generation }
    }
}

/// How many values of a table are sealed with a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealedCount {
    /// The table.
    pub table: String,
    /// The key's id; empty for what is not a sealed value at all.
    pub key: String,
    /// How many values.
    pub values: i64,
}

macro_rules! columns {
    ($($table:literal by $row:literal: $column:literal is $field:ident
        of $record:literal, $generation:literal;)+) => {
        /// Every column of sealed values.
        pub const SEALED_COLUMNS: &[SealedColumn] = &[$(SealedColumn {
            table: $table,
            field: SealedField::$field,
            list: concat!(
                "SELECT ", $row, " AS row_key, ", $record, " AS record, CAST(", $generation,
                " AS BIGINT) AS generation, ", $column, " AS sealed FROM ", $table,
                " WHERE ", $column, " IS NOT NULL AND ", $row, " > $1
                    AND substr(", $column, ", 1, length($2)) <> $2
                    AND ('", $table, "' <> 'meta' OR ", $row, " = 'sealing_check')
                ORDER BY ", $row, " LIMIT $3"
            ),
            put: concat!(
                "UPDATE ", $table, " SET ", $column, " = $3 WHERE ", $row, " = $1 AND ", $column,
                " = $2"
            ),
        }),+];

        /// How many values of each table are sealed with each key: a key's id is what stands
        /// before the second dot.
        const COUNT: &str = concat!(
            "SELECT part, key_id, count(*) AS sealed_values FROM (
                SELECT part, CASE WHEN substr(sealed, 1, 3) = 'v1.'
                    THEN substr(sealed, 4, length(sealed) - 3 - length(ltrim(substr(sealed, 4), '",
            "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
            "'))) ELSE '' END AS key_id FROM (SELECT '' AS part, '' AS sealed WHERE 1 = 0",
            $(
                " UNION ALL SELECT '", $table, "', ", $column, " FROM ", $table,
                " WHERE ", $column, " IS NOT NULL
                    AND ('", $table, "' <> 'meta' OR ", $row, " = 'sealing_check')"
            ),+,
            ") stored) keyed GROUP BY part, key_id ORDER BY part, key_id"
        );
    };
}

columns! {
    "grants" by "connection_id": "access" is Access of "connection_id", "generation";
    "grants" by "connection_id": "refresh" is Refresh of "connection_id", "generation";
    "pending_grants" by "connection_id": "access" is PendingAccess of "connection_id", "0";
    "pending_grants" by "connection_id": "refresh" is PendingRefresh of "connection_id", "0";
    "escrow" by "id": "access" is FallbackAccess of "connection_id", "generation";
    "escrow" by "id": "refresh" is FallbackRefresh of "connection_id", "generation";
    "consents" by "state_hash": "verifier" is Verifier of "link_id", "0";
    "consents" by "state_hash": "link_secret" is LinkSecret of "link_id", "0";
    "meta" by "key": "value" is SealingCheck of "'database'", "0";
}

impl Store {
    /// Counts the sealed values by table and key.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn count_sealed(&self) -> Result<Vec<SealedCount>, StoreError> {
        on!(self, |pool| {
            let rows = sqlx::query(COUNT).fetch_all(pool).await?;
            rows.iter()
                .map(|row| {
                    Ok(SealedCount {
                        table: row.text("part")?,
                        key: row.text("key_id")?,
                        values: row.number("sealed_values")?,
                    })
                })
                .collect()
        })
    }

    /// The next values of a column that are not sealed with this key, at most so many, behind one
    /// that was read before.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn sealed_otherwise(
        &self,
        column: &SealedColumn,
        key: &str,
        behind: Option<&SealedValue>,
        at_most: i64,
    ) -> Result<Vec<SealedValue>, StoreError> {
        let behind = behind.map_or("", |value| value.row.as_str());
        on!(self, |pool| {
            let listed = sqlx::query(column.list)
                .bind(behind)
                .bind(format!("v1.{key}."))
                .bind(at_most)
                .fetch_all(pool)
                .await?;
            listed
                .iter()
                .map(|row| {
                    Ok(SealedValue {
                        row: row.text("row_key")?,
                        record: row.text("record")?,
                        field: column.field,
                        generation: row.number("generation")?,
                        sealed: row.sealed("sealed")?,
                    })
                })
                .collect()
        })
    }

    /// Puts values that were sealed anew in the place of those that were read. One that has changed
    /// or gone since stays as it is. Gives how many were exchanged.
    ///
    /// # Errors
    ///
    /// When the database does not answer; some may be exchanged then.
    pub async fn reseal(
        &self,
        column: &SealedColumn,
        values: &[(SealedValue, Sealed)],
    ) -> Result<u64, StoreError> {
        let at_once = match self.engine() {
            EngineKind::Postgres => 1,
            EngineKind::Sqlite => BATCH,
        };
        let mut exchanged = 0;
        for batch in values.chunks(at_once) {
            in_transaction!(self, |tx| {
                for (old, new) in batch {
                    let put = sqlx::query(column.put)
                        .bind(&old.row)
                        .bind(old.sealed.as_str())
                        .bind(new.as_str());
                    exchanged += put.execute(&mut *tx).await?.rows_affected();
                }
            });
        }
        Ok(exchanged)
    }
}
