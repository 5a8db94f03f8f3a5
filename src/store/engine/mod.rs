//! The two databases behind one interface: pools, statements and transactions, rows, the schema,
//! notifications, errors.
//!
//! Nothing here knows a table but `schema` and `notifications`. Used by the rest of the store only.

pub(crate) mod error;
pub(crate) mod notifications;
pub(crate) mod postgres;
pub(crate) mod row;
pub(crate) mod schema;
pub(crate) mod statement;

use std::{
    fs::OpenOptions,
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use strum::Display;
use utoipa::ToSchema;

use self::{postgres::Postgres, statement::Tx};
use super::StoreError;

/// Limit on the wait for a connection.
pub(crate) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// The database engine behind the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(Display)]
#[strum(serialize_all = "snake_case")]
pub enum EngineKind {
    /// PostgreSQL: any number of replicas.
    Postgres,
    /// SQLite, embedded: one process.
    Sqlite,
}

#[derive(Clone)]
pub(crate) enum Engine {
    Postgres(Postgres),
    Sqlite(SqlitePool),
}

impl Engine {
    #[expect(clippy::disallowed_methods, reason = "the database URL may hold a password")]
    pub(crate) async fn connect(url: &SecretString) -> Result<Self, StoreError> {
        let url = url.expose_secret();
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Postgres::connect(url).await.map(Self::Postgres);
        }
        let path =
            url.strip_prefix("sqlite:").map_or(url, |rest| rest.strip_prefix("//").unwrap_or(rest));
        // Another scheme is not a path; neither are SQLite's `:memory:` and `?` parameters.
        if path.is_empty() || path.starts_with(':') || path.contains("://") || path.contains('?') {
            return Err(StoreError::InvalidUrl);
        }
        sqlite(PathBuf::from(path)).await.map(Self::Sqlite)
    }

    pub(crate) fn kind(&self) -> EngineKind {
        match self {
            Self::Postgres(_) => EngineKind::Postgres,
            Self::Sqlite(_) => EngineKind::Sqlite,
        }
    }

    /// Begins a transaction.
    ///
    /// SQLite takes its write lock at once: a lock that is asked for in the middle of a transaction is
    /// refused without waiting when another process wrote in between.
    pub(crate) async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Self::Postgres(postgres) => Tx::Postgres(postgres.begin().await?),
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
        })
    }

    /// Waits for running steps and closes the connections.
    pub(crate) async fn close(&self) {
        match self {
            Self::Postgres(postgres) => postgres.close().await,
            Self::Sqlite(pool) => pool.close().await,
        }
    }

    /// The same database, over connections that ordinary steps do not use up. SQLite has only one.
    pub(crate) fn durable(&self) -> Self {
        match self {
            Self::Postgres(postgres) => Self::Postgres(postgres.durable()),
            Self::Sqlite(pool) => Self::Sqlite(pool.clone()),
        }
    }
}

/// One connection, because more writers make the slowest steps much slower. `FULL`, because `NORMAL` may
/// lose the last commits with the power, and a lost refresh token is a lost account.
async fn sqlite(path: PathBuf) -> Result<SqlitePool, StoreError> {
    make_private(&path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        // What is deleted is overwritten, not only unlinked.
        .pragma("secure_delete", "ON");
    SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
        .map_err(StoreError::Unreachable)
}

/// Makes a missing file that only its owner may read. SQLite gives the files beside it the same mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(StoreError::Unreachable(error.into()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{statement::query, *};
    use crate::{clock::Clock, store::Store};

    #[tokio::test]
    async fn two_processes_that_read_before_they_write_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let url = SecretString::from(folder.path().join("test.db").to_str().unwrap());
        let one = Store::connect(&url, Clock::system()).await.unwrap();
        let two = Store::connect(&url, Clock::system()).await.unwrap();
        query("CREATE TABLE counter (value BIGINT)").execute(&one.engine).await.unwrap();
        query("INSERT INTO counter VALUES (0)").execute(&one.engine).await.unwrap();
        let count = async |store: &Store| -> Result<(), StoreError> {
            for _ in 0..20 {
                let mut tx = store.begin().await?;
                let row = query("SELECT value FROM counter").fetch_one(&mut tx).await?;
                let next = row.number("value")? + 1;
                query("UPDATE counter SET value = $1").bind(next).execute(&mut tx).await?;
                tx.commit(()).await?;
            }
            Ok(())
        };
        let (first, second) = tokio::join!(count(&one), count(&two));
        first.unwrap();
        second.unwrap();
        let row = query("SELECT value FROM counter").fetch_one(&one.engine).await.unwrap();
        assert_eq!(row.number("value").unwrap(), 40);
    }
}
