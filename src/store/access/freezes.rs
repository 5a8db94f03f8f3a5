use crate::{
    domain::{
        freeze::{Freeze, FreezeKind},
        slug::Slug,
    },
    store::{
        Store, StoreError,
        engine::{
            in_transaction, on,
            row::{RowExt, ok_or_log},
        },
        now,
    },
};

impl Store {
    /// Freezes a thing from now on. Returns the freeze that stands and whether it is a new one: a
    /// thing that was frozen already keeps its first.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn freeze(
        &self,
        kind: FreezeKind,
        name: &Slug,
        reason: &str,
        by: &Slug,
    ) -> Result<(Freeze, bool), StoreError> {
        let insert = concat!(
            "INSERT INTO freezes (kind, name, reason, frozen_by, frozen_at)
            VALUES ($2, $3, $4, $5, ",
            now!(),
            ") ON CONFLICT (kind, name) DO NOTHING"
        );
        let read = "SELECT kind, name, reason, frozen_by, frozen_at FROM freezes
            WHERE kind = $1 AND name = $2";
        Ok(in_transaction!(self, |tx| {
            let inserted = sqlx::query(insert)
                .bind(self.ahead())
                .bind(kind.as_str())
                .bind(name.as_str())
                .bind(reason)
                .bind(by.as_str())
                .execute(&mut *tx)
                .await?;
            let row = sqlx::query(read)
                .bind(kind.as_str())
                .bind(name.as_str())
                .fetch_one(&mut *tx)
                .await?;
            (freeze(&row)?, inserted.rows_affected() == 1)
        }))
    }

    /// Ends a freeze. False when the thing is not frozen.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn unfreeze(&self, kind: FreezeKind, name: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM freezes WHERE kind = $1 AND name = $2";
        on!(self, |pool| {
            let ended = sqlx::query(sql).bind(kind.as_str()).bind(name).execute(pool).await?;
            Ok(ended.rows_affected() == 1)
        })
    }

    /// Everything that is frozen, by kind and name. One that cannot be understood is left out, and
    /// logged: it must not keep the others from being seen.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn freezes(&self) -> Result<Vec<Freeze>, StoreError> {
        let sql =
            "SELECT kind, name, reason, frozen_by, frozen_at FROM freezes ORDER BY kind, name";
        on!(self, |pool| {
            let rows = sqlx::query(sql).fetch_all(pool).await?;
            Ok(rows.iter().filter_map(|row| ok_or_log("freeze", freeze(row))).collect())
        })
    }
}

fn freeze(row: &impl RowExt) -> Result<Freeze, StoreError> {
    Ok(Freeze {
        kind: row.parsed("kind")?,
        name: row.parsed("name")?,
        reason: row.text("reason")?,
        by: row.parsed("frozen_by")?,
        frozen_at: row.time("frozen_at")?,
    })
}
