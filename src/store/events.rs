//! The audit trail in the database.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::{
    Store, StoreError,
    engine::{
        row::Row,
        statement::{placeholders, query},
    },
};
use crate::audit::{AuditEvent, StoredEvent};

/// The number of columns of a record.
const COLUMNS: usize = 12;

/// How many old events one statement deletes: it must end in time.
const PURGE_CHUNK: u32 = 5_000;

impl Store {
    /// Adds records, all or none; one that is stored already is passed over. Callers add at most 500 at
    /// once; a statement has room for 2,700.
    ///
    /// Sequence numbers are given under the lock of one row, so that their order is that of the
    /// commits: a reader that goes on from a number misses nothing.
    pub async fn insert_events(&self, records: &[AuditEvent]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
        let rows: Vec<_> =
            (0..records.len()).map(|row| placeholders(row * COLUMNS + 1, COLUMNS)).collect();
        let insert = format!(
            "INSERT INTO events (seq, id, happened_at, kind, actor, peer, connection,
                connection_id, provider, fingerprint, generation, detail)
            VALUES {} ON CONFLICT (id) DO NOTHING",
            rows.join(", ")
        );
        let mut tx = self.begin().await?;
        let sql = "UPDATE events_head SET seq = seq + $1 RETURNING seq";
        let last = query(sql).bind(count).fetch_one(&mut tx).await?.number("seq")?;
        let mut insert = query(AssertSqlSafe(insert));
        for (record, seq) in records.iter().zip(last - count + 1..) {
            insert = insert
                .bind(seq)
                .bind(record.id)
                .bind(record.at)
                .bind(&record.kind)
                .bind(&record.actor)
                .bind(record.peer.as_deref())
                .bind(record.connection.as_deref())
                .bind(record.connection_id.as_deref())
                .bind(record.provider.as_deref())
                .bind(record.fingerprint.as_deref())
                .bind(record.generation)
                .bind(record.detail.as_deref());
        }
        insert.execute(&mut tx).await?;
        tx.commit(()).await
    }

    /// The events after a sequence number, in their order, `limit` at the most.
    pub async fn events(&self, after: i64, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        let sql = "SELECT seq, id, happened_at, kind, actor, peer, connection, connection_id,
                provider, fingerprint, generation, detail
            FROM events WHERE seq > $1 ORDER BY seq LIMIT $2";
        let rows = query(sql).bind(after).bind(limit).fetch_all(&self.engine).await?;
        rows.iter().map(event).collect()
    }

    /// Deletes events that happened longer ago than this. Returns how many.
    pub async fn purge_events(&self, keep: Duration) -> Result<u64, StoreError> {
        let sql = "DELETE FROM events WHERE seq IN (
                SELECT seq FROM events
                WHERE happened_at <= (SELECT now_ms FROM clock) + $1 - $2
                ORDER BY happened_at LIMIT $3)";
        let mut purged = 0;
        loop {
            let chunk = query(sql).bind(self.offset()).bind(keep).bind(PURGE_CHUNK);
            let deleted = chunk.execute(&self.engine).await?;
            purged += deleted;
            if deleted < PURGE_CHUNK.into() {
                return Ok(purged);
            }
        }
    }
}

fn event(row: &Row) -> Result<StoredEvent, StoreError> {
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
