//! Freezes: what operators have stopped from being served.

use crate::{
    domain::{
        freeze::{Freeze, FreezeKind},
        slug::Slug,
    },
    store::{
        Store, StoreError,
        engine::{
            row::{Row, ok_or_log},
            statement::query,
        },
    },
};

impl Store {
    /// Freezes a thing from now on. Returns the freeze that stands and whether it is a new one: a
    /// thing that was frozen already keeps its first.
    pub async fn freeze(
        &self,
        kind: FreezeKind,
        name: &Slug,
        reason: &str,
        by: &Slug,
    ) -> Result<(Freeze, bool), StoreError> {
        let insert = "
            INSERT INTO freezes (kind, name, reason, frozen_by, frozen_at)
            VALUES ($2, $3, $4, $5, (SELECT now_ms FROM clock) + $1)
            ON CONFLICT (kind, name) DO NOTHING";
        let read = "
            SELECT kind, name, reason, frozen_by, frozen_at FROM freezes
            WHERE kind = $1 AND name = $2";
        let mut tx = self.begin().await?;
        let inserted = query(insert)
            .bind(self.offset())
            .bind(kind.as_str())
            .bind(name)
            .bind(reason)
            .bind(by)
            .execute(&mut tx)
            .await?;
        let row = query(read).bind(kind.as_str()).bind(name).fetch_one(&mut tx).await?;
        tx.commit((freeze(&row)?, inserted == 1)).await
    }

    /// Ends a freeze. False when the thing is not frozen.
    pub async fn unfreeze(&self, kind: FreezeKind, name: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM freezes WHERE kind = $1 AND name = $2";
        Ok(query(sql).bind(kind.as_str()).bind(name).execute(&self.engine).await? == 1)
    }

    /// All freezes, by kind and name. One that cannot be understood is left out, and logged: it must
    /// not hide the others.
    pub async fn freezes(&self) -> Result<Vec<Freeze>, StoreError> {
        let sql =
            "SELECT kind, name, reason, frozen_by, frozen_at FROM freezes ORDER BY kind, name";
        let rows = query(sql).fetch_all(&self.engine).await?;
        Ok(rows.iter().filter_map(|row| ok_or_log("freeze", freeze(row))).collect())
    }
}

fn freeze(row: &Row) -> Result<Freeze, StoreError> {
    Ok(Freeze {
        kind: row.parsed("kind")?,
        name: row.parsed("name")?,
        reason: row.text("reason")?,
        by: row.parsed("frozen_by")?,
        frozen_at: row.time("frozen_at")?,
    })
}
