//! Values that belong to the database as a whole, and its clock.

use jiff::Timestamp;

use super::{Store, StoreError, engine::statement::query};

/// The key of the name of the installation that the database belongs to.
pub const DEPLOYMENT: &str = "deployment";

impl Store {
    /// The database's clock.
    pub async fn database_clock(&self) -> Result<Timestamp, StoreError> {
        let sql = "SELECT now_ms + $1 AS now_ms FROM clock";
        query(sql).bind(self.offset()).fetch_one(&self.engine).await?.time("now_ms")
    }

    /// The value of a key.
    pub async fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT value FROM meta WHERE key = $1";
        let row = query(sql).bind(key).fetch_optional(&self.engine).await?;
        row.map(|row| row.text("value")).transpose()
    }

    /// Stores the value of a key in place of the one it has.
    pub async fn put_meta(&self, key: &str, value: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO meta (key, value) VALUES ($1, $2)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        query(sql).bind(key).bind(value).execute(&self.engine).await?;
        Ok(())
    }

    /// Stores the value of a key unless it has one, and returns the value that stands: two replicas that
    /// start together both get the first one's.
    pub async fn put_meta_if_absent(&self, key: &str, value: &str) -> Result<String, StoreError> {
        // The update changes nothing; it makes RETURNING give the row that was there before.
        let sql = "INSERT INTO meta (key, value) VALUES ($1, $2)
            ON CONFLICT (key) DO UPDATE SET value = meta.value RETURNING value";
        query(sql).bind(key).bind(value).fetch_one(&self.engine).await?.text("value")
    }
}
