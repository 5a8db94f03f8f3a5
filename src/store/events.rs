//! The audit trail in the database.

use std::{fmt::Write as _, time::Duration};

use sqlx::AssertSqlSafe;

use super::{
    Store, StoreError,
    engine::{in_transaction, on, row::RowExt},
    millis, now,
};
use crate::audit::{AuditEvent, StoredEvent};

/// The columns of a record, in the order in which they are bound.
const COLUMNS: [&str; 12] = [
    "seq",
    "id",
    "happened_at",
    "kind",
    "actor",
    "peer",
    "connection",
    "connection_id",
    "provider",
    "fingerprint",
    "generation",
    "detail",
];

/// How many old events are deleted by one statement: it must end in time.
const PURGE_CHUNK: i64 = 5_000;

impl Store {
    /// Adds records, all or none; one that is there already is passed over. 500 at once are enough:
    /// a statement has room for no more than 2,700.
    ///
    /// Places are given under the lock of one row, so that their order is that of the commits: who
    /// reads on from a place misses nothing.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the records may be there all the same.
    pub async fn insert_events(&self, records: &[AuditEvent]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
        let places = "UPDATE events_head SET seq = seq + $1 RETURNING seq";
        let insert = insert(records.len());
        in_transaction!(self, |tx| {
            let row = sqlx::query(places).bind(count).fetch_one(&mut *tx).await?;
            let before = row.number("seq")? - count;
            let mut query = sqlx::query(AssertSqlSafe(insert));
            for (record, seq) in records.iter().zip(before + 1..) {
                query = query
                    .bind(seq)
                    .bind(record.id.to_string())
                    .bind(record.at.as_millisecond())
                    .bind(&record.kind)
                    .bind(&record.actor)
                    .bind(&record.peer)
                    .bind(&record.connection)
                    .bind(&record.connection_id)
                    .bind(&record.provider)
                    .bind(&record.fingerprint)
                    .bind(record.generation)
                    .bind(&record.detail);
            }
            query.execute(&mut *tx).await?;
        });
        Ok(())
    }

    /// The events after a place, in their order, `limit` at the most.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or a row does not make sense.
    pub async fn events(&self, after: i64, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        let sql = "SELECT seq, id, happened_at, kind, actor, peer, connection, connection_id,
                provider, fingerprint, generation, detail
            FROM events WHERE seq > $1 ORDER BY seq LIMIT $2";
        on!(self, |pool| {
            let rows = sqlx::query(sql).bind(after).bind(i64::from(limit)).fetch_all(pool).await?;
            rows.iter().map(event).collect()
        })
    }

    /// Forgets events that happened longer ago than this. Returns how many.
    ///
    /// # Errors
    ///
    /// When the database does not answer; what was forgotten by then stays so.
    pub async fn purge_events(&self, keep: Duration) -> Result<u64, StoreError> {
        let sql = concat!(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE happened_at <= ",
            now!(),
            " - $2 ORDER BY happened_at LIMIT $3)"
        );
        let mut purged = 0;
        loop {
            let deleted = on!(self, |pool| {
                sqlx::query(sql)
                    .bind(self.ahead())
                    .bind(millis(keep))
                    .bind(PURGE_CHUNK)
                    .execute(pool)
                    .await?
                    .rows_affected()
            });
            purged += deleted;
            if deleted < PURGE_CHUNK.unsigned_abs() {
                return Ok(purged);
            }
        }
    }
}

/// The statement that adds so many records.
fn insert(records: usize) -> String {
    let mut sql = format!("INSERT INTO events ({}) VALUES ", COLUMNS.join(", "));
    for record in 0..records {
        for column in 0..COLUMNS.len() {
            let before = match (record, column) {
                (0, 0) => "(",
                (_, 0) => "), (",
                _ => ", ",
            };
            let number = record * COLUMNS.len() + column + 1;
            write!(sql, "{before}${number}").expect("a text takes all that is written to it");
        }
    }
    sql + ") ON CONFLICT (id) DO NOTHING"
}

fn event(row: &impl RowExt) -> Result<StoredEvent, StoreError> {
    Ok(StoredEvent {
        seq: row.number("seq")?,
        record: AuditEvent {
            id: row.parsed("id")?,
            at: row.time("happened_at")?,
            kind: row.text("kind")?,
            actor: row.text("actor")?,
            peer: row.text_or_null("peer")?,
            connection: row.text_or_null("connection")?,
            connection_id: row.text_or_null("connection_id")?,
            provider: row.text_or_null("provider")?,
            fingerprint: row.text_or_null("fingerprint")?,
            generation: row.number_or_null("generation")?,
            detail: row.text_or_null("detail")?,
        },
    })
}
