use jiff::Timestamp;

use super::{
    Store, StoreError,
    engine::{on, row::RowExt as _},
    now,
};

impl Store {
    /// The database's clock.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn database_clock(&self) -> Result<Timestamp, StoreError> {
        let sql = concat!("SELECT ", now!(), " AS now_ms");
        on!(self, |pool| {
            sqlx::query(sql).bind(self.ahead()).fetch_one(pool).await?.time("now_ms")
        })
    }

    /// A value that belongs to the database as a whole.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT value FROM meta WHERE key = $1";
        on!(self, |pool| {
            let row = sqlx::query(sql).bind(key).fetch_optional(pool).await?;
            row.map(|row| row.text("value")).transpose()
        })
    }

    /// Keeps a value in place of the one that the key has.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn put_meta(&self, key: &str, value: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO meta (key, value) VALUES ($1, $2)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        on!(self, |pool| {
            sqlx::query(sql).bind(key).bind(value).execute(pool).await?;
        });
        Ok(())
    }

    /// Keeps a value unless the key has one, and gives the value that stands: of two replicas that
    /// start together, both get the first one's.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn put_meta_if_absent(&self, key: &str, value: &str) -> Result<String, StoreError> {
        // The update changes nothing, but makes RETURNING give the row that was there before.
        let sql = "INSERT INTO meta (key, value) VALUES ($1, $2)
            ON CONFLICT (key) DO UPDATE SET value = meta.value RETURNING value";
        on!(self, |pool| {
            sqlx::query(sql).bind(key).bind(value).fetch_one(pool).await?.text("value")
        })
    }
}
