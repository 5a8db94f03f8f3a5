//! The way to PostgreSQL, straight or through a pooler in transaction mode.
//!
//! Behind such a pooler every transaction may run on another server connection, so nothing is
//! carried from one to the next: no setting, no lock, no prepared statement. Each transaction sets
//! its own limits as it begins, and statements have no name. The driver sends even those in two
//! parts, the text first and the values once it knows their types; between the two a pooler could
//! let somebody else's text in, so a statement alone is a transaction as well.

use std::{fmt, io, str::FromStr as _, time::Duration};

use futures_util::{
    StreamExt as _, TryFutureExt as _, TryStreamExt as _,
    future::{BoxFuture, FutureExt as _, ready},
    stream::{self, BoxStream},
};
use sqlx::{
    ConnectOptions as _, Connection as _, Either, Execute, Executor, PgConnection, PgPool, SqlStr,
    Transaction,
    error::BoxDynError,
    migrate::{MigrateError, Migrator},
    postgres::{
        PgArguments, PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo,
    },
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

/// As [`BEGIN`] for the one that migrates, after those before it: a step's limits are too short.
const BEGIN_IN_TURN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL statement_timeout = 0;
    SET LOCAL lock_timeout = '60s';
    SELECT pg_advisory_xact_lock(hashtextextended('token-broker ' || current_schema(), 0))";

/// How long to wait for the server's word on a statement, a little longer than it may take: on a line
/// that is dead no word ever comes.
const UNANSWERED: Duration = Duration::from_secs(6);

/// How many steps run at once.
const STEPS: u32 = 10;

/// How many more store what a provider answered meanwhile.
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
                // The pool itself would wait for ever for the answer of a line that is dead.
                .after_release(|connection, _| {
                    answered(connection.ping()).map_ok(|()| true).boxed()
                })
                .connect_lazy_with(options.clone())
        };
        Ok(Self { steps: pool(STEPS), commits: pool(COMMITS) })
    }

    /// The same server over the connections that are kept for what a provider answered.
    pub(crate) fn durable(&self) -> Self {
        Self { steps: self.commits.clone(), commits: self.commits.clone() }
    }

    /// One more connection, made when it is first needed and kept for as long as it lives.
    pub(crate) fn connection_apart(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(self.steps.connect_options().as_ref().clone())
    }

    pub(crate) async fn begin(&self) -> Result<Step, sqlx::Error> {
        let begun = timeout(ACQUIRE_TIMEOUT, self.steps.begin_with(BEGIN)).await;
        begun.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(Step)
    }

    pub(crate) async fn close(&self) {
        tokio::join!(self.steps.close(), self.commits.close());
    }

    /// Runs what is still to be run, all of it or nothing, one process after the other.
    pub(crate) async fn migrate(&self, migrator: &Migrator) -> Result<(), MigrateError> {
        let mut connection = self.steps.connect_options().connect().await?;
        let migrated = in_turn(&mut connection, migrator).await;
        connection.close().await?;
        migrated
    }
}

/// The lock ends with the transaction. That is one for all migrations, so that a pooler keeps to
/// one server; there the driver's names for its own statements must not outlive it.
async fn in_turn(connection: &mut PgConnection, migrator: &Migrator) -> Result<(), MigrateError> {
    let mut turn = connection.begin_with(BEGIN_IN_TURN).await?;
    let migrated = migrator.run(&mut *turn).await;
    turn.clear_cached_statements().await?;
    migrated?;
    Ok(turn.commit().await?)
}

/// Gives a statement up that is not answered. What becomes of it is unknown then, as when the
/// connection is lost.
async fn answered<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(UNANSWERED, statement)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Postgres")
    }
}

/// A transaction. Dropping it rolls back.
#[derive(Debug)]
pub(crate) struct Step(Transaction<'static, sqlx::Postgres>);

impl Step {
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        answered(self.0.commit()).await
    }
}

/// What the driver yields of a statement: rows, and at its end how many it changed.
type Yield = Either<PgQueryResult, PgRow>;

impl<'c> Executor<'c> for &'c mut Step {
    type Database = sqlx::Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Yield, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        let rows = answered(self.0.fetch_many(Unnamed(query)).try_collect::<Vec<_>>());
        rows.map_ok(|rows| stream::iter(rows.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        answered(self.0.fetch_optional(Unnamed(query))).boxed()
    }

    fn prepare_with<'e>(
        self,
        _: SqlStr,
        _: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        never_prepared()
    }
}

/// A statement alone.
impl<'c> Executor<'c> for &'c Postgres {
    type Database = sqlx::Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Yield, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        let whole = async move {
            let mut step = self.begin().await?;
            let rows: Vec<_> = step.fetch_many(query).try_collect().await?;
            step.commit().await?;
            Ok(stream::iter(rows.into_iter().map(Ok)))
        };
        whole.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, sqlx::Postgres>,
    {
        let whole = async move {
            let mut step = self.begin().await?;
            let row = step.fetch_optional(query).await?;
            step.commit().await?;
            Ok(row)
        };
        whole.boxed()
    }

    fn prepare_with<'e>(
        self,
        _: SqlStr,
        _: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        never_prepared()
    }
}

fn never_prepared<'e>() -> BoxFuture<'e, Result<PgStatement, sqlx::Error>> {
    let error = sqlx::Error::Protocol("no statement outlives its transaction".to_owned());
    ready(Err(error)).boxed()
}

/// A statement that the server forgets when the next one comes.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, sqlx::Postgres>> Execute<'q, sqlx::Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}
