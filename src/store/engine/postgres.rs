//! Connections to PostgreSQL, direct or through a pooler in transaction mode.
//!
//! Behind such a pooler each transaction may run on another server connection, so nothing is carried
//! from one to the next: no setting, no lock, no prepared statement. Each transaction sets its own
//! limits as it begins, and statements have no name. The driver sends an unnamed statement in two
//! parts, the text first and the values once it knows their types. Between the two a pooler could let
//! another client's text in, so a single statement is a transaction, too.

use std::{fmt, io, str::FromStr as _, time::Duration};

use futures_util::{FutureExt as _, TryFutureExt as _};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Transaction,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use super::ACQUIRE_TIMEOUT;
use crate::store::StoreError;

/// Begins a transaction with the limits of a step.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL statement_timeout = '5s';
    SET LOCAL lock_timeout = '1s';
    SET LOCAL idle_in_transaction_session_timeout = '5s';
    SET LOCAL synchronous_commit = 'on'";

/// As [`BEGIN`] for a migration, behind the lock that lets one process migrate at a time; the limits
/// of a step are too short for it.
const BEGIN_MIGRATION: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL statement_timeout = 0;
    SET LOCAL lock_timeout = '60s';
    SELECT pg_advisory_xact_lock(hashtextextended('token-broker ' || current_schema(), 0))";

/// Limit on the wait for the answer to a statement, a little above `statement_timeout`: on a dead line
/// no answer ever comes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// Connections for ordinary steps.
const STEPS: u32 = 10;

/// Further connections, for what a provider answered.
const COMMITS: u32 = 2;

/// Connections to a server.
#[derive(Clone)]
pub(crate) struct Postgres {
    steps: PgPool,
    commits: PgPool,
}

impl Postgres {
    pub(crate) async fn connect(url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| StoreError::InvalidUrl)?
            .application_name("token-broker")
            // Poolers refuse start-up parameters that they do not know.
            .extra_float_digits(None);
        // The pool would retry a refused connection and then report only that time ran out.
        let first = timeout(ACQUIRE_TIMEOUT, options.connect())
            .await
            .map_err(|_| StoreError::Unreachable(sqlx::Error::PoolTimedOut))?
            .map_err(StoreError::Unreachable)?;
        first.close().await?;
        let pool = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                // The pool's own ping would wait for ever on a dead line.
                .after_release(|connection, _| {
                    with_timeout(connection.ping()).map_ok(|()| true).boxed()
                })
                .connect_lazy_with(options.clone())
        };
        Ok(Self { steps: pool(STEPS), commits: pool(COMMITS) })
    }

    /// The same server, over the connections that are reserved for what a provider answered.
    pub(crate) fn durable(&self) -> Self {
        Self { steps: self.commits.clone(), commits: self.commits.clone() }
    }

    /// A connection outside both pools, made on first use and kept while it lives.
    pub(crate) fn connection_apart(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(self.steps.connect_options().as_ref().clone())
    }

    pub(crate) async fn begin(&self) -> Result<Transaction<'static, sqlx::Postgres>, sqlx::Error> {
        let begun = timeout(ACQUIRE_TIMEOUT, self.steps.begin_with(BEGIN)).await;
        begun.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    pub(crate) async fn close(&self) {
        tokio::join!(self.steps.close(), self.commits.close());
    }

    /// Runs the migrations that are missing, all or none, one process at a time.
    pub(crate) async fn migrate(&self, migrator: &Migrator) -> Result<(), MigrateError> {
        let mut connection = self.steps.connect_options().connect().await?;
        let migrated = with_migration_lock(&mut connection, migrator).await;
        connection.close().await?;
        migrated
    }
}

/// Runs all migrations in one transaction: the lock ends with it, and a pooler keeps to one server
/// connection. The driver's named statements must not outlive it there.
async fn with_migration_lock(
    connection: &mut PgConnection,
    migrator: &Migrator,
) -> Result<(), MigrateError> {
    let mut turn = connection.begin_with(BEGIN_MIGRATION).await?;
    let migrated = migrator.run(&mut *turn).await;
    turn.clear_cached_statements().await?;
    migrated?;
    Ok(turn.commit().await?)
}

/// Gives up on a statement that is not answered in time. Its effect is then unknown, as after a lost
/// connection.
pub(crate) async fn with_timeout<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(ANSWER_TIMEOUT, statement)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Postgres")
    }
}
