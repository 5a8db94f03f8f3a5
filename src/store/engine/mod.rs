pub(crate) mod error;
pub(crate) mod notifications;
pub(crate) mod postgres;
pub(crate) mod row;
pub(crate) mod schema;

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

use self::postgres::Postgres;
use super::StoreError;

/// How long a step waits for a connection.
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

/// Runs the same expression on whichever engine the store has, each of its statements alone.
macro_rules! on {
    ($store:expr, |$pool:ident| $body:expr) => {
        match &$store.engine {
            $crate::store::engine::Engine::Postgres($pool) => $body,
            $crate::store::engine::Engine::Sqlite($pool) => $body,
        }
    };
}
pub(crate) use on;

/// Runs the same expression in a transaction on whichever engine the store has, and commits. To
/// leave the expression by `return` or `?` is to roll back.
///
/// SQLite takes its write lock at once: a lock asked for in the middle of a transaction is refused
/// without waiting when another process wrote in between.
macro_rules! in_transaction {
    ($store:expr, |$tx:ident| $body:expr) => {
        match &$store.engine {
            $crate::store::engine::Engine::Postgres(postgres) => {
                let mut step = postgres.begin().await?;
                let $tx = &mut step;
                let value = $body;
                step.commit().await?;
                value
            }
            $crate::store::engine::Engine::Sqlite(pool) => {
                let mut $tx = pool.begin_with("BEGIN IMMEDIATE").await?;
                let value = $body;
                $tx.commit().await?;
                value
            }
        }
    };
}
pub(crate) use in_transaction;

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

    /// The same database, with connections that other steps do not use up. SQLite has but one.
    pub(crate) fn durable(&self) -> Self {
        match self {
            Self::Postgres(postgres) => Self::Postgres(postgres.durable()),
            Self::Sqlite(pool) => Self::Sqlite(pool.clone()),
        }
    }
}

/// One connection, because more writers ruin the tail of the latency. `FULL`, because `NORMAL` may
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

/// Makes a missing file, for its owner alone; SQLite gives the files beside it the same mode.
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
    use super::*;
    use crate::{clock::Clock, store::Store};

    #[tokio::test]
    async fn two_processes_that_read_before_they_write_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let url = SecretString::from(folder.path().join("test.db").to_str().unwrap());
        let one = Store::connect(&url, Clock::system()).await.unwrap();
        let two = Store::connect(&url, Clock::system()).await.unwrap();
        on!(one, |pool| {
            sqlx::query("CREATE TABLE counter (value BIGINT)").execute(pool).await.unwrap();
            sqlx::query("INSERT INTO counter VALUES (0)").execute(pool).await.unwrap();
        });
        let count = async |store: &Store| -> Result<(), StoreError> {
            for _ in 0..20 {
                in_transaction!(store, |tx| {
                    let sql = "SELECT value FROM counter";
                    let (value,): (i64,) = sqlx::query_as(sql).fetch_one(&mut *tx).await?;
                    let sql = "UPDATE counter SET value = $1";
                    sqlx::query(sql).bind(value + 1).execute(&mut *tx).await?;
                });
            }
            Ok(())
        };
        let (first, second) = tokio::join!(count(&one), count(&two));
        first.unwrap();
        second.unwrap();
        let sql = "SELECT value FROM counter";
        let (value,): (i64,) = on!(one, |pool| sqlx::query_as(sql).fetch_one(pool).await.unwrap());
        assert_eq!(value, 40);
    }
}
