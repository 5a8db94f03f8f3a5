//! Statements, rows and transactions that read alike on both engines.
//!
//! A [`Statement`] is an SQL text with its values. It runs alone on an [`Engine`], or as a part of
//! a [`Tx`].

use std::time::Duration;

use futures_util::{Stream, TryStreamExt as _};
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, Either, Executor as _, Postgres, SqlSafeStr, SqlStr, Sqlite, Transaction,
    postgres::{PgArguments, PgQueryResult, PgRow},
    query::Query,
    sqlite::{SqliteArguments, SqliteQueryResult, SqliteRow},
};
use uuid::Uuid;

use super::{Engine, postgres::with_timeout, row::Row};
use crate::{
    domain::{
        connection::{ConnectionId, GrantType, State},
        consent::LinkId,
        slug::Slug,
    },
    seal::{Sealed, secret::Digest},
    store::StoreError,
};

/// An SQL statement and the values of `$1`, `$2` and so on.
#[must_use]
pub(crate) struct Statement {
    sql: SqlStr,
    values: Vec<Value>,
}

/// A value of the only two types that the schema has.
#[derive(Clone)]
pub(crate) enum Value {
    Number(Option<i64>),
    Text(Option<String>),
}

/// The result of a statement.
struct Outcome {
    rows: Vec<Row>,
    affected: u64,
}

/// Begins a statement; its values are bound in the order of their numbers.
pub(crate) fn query(sql: impl SqlSafeStr) -> Statement {
    Statement { sql: sql.into_sql_str(), values: Vec::new() }
}

/// The placeholders of a list of `count` values whose first is `$first`: `($3, $4, $5)`.
pub(crate) fn placeholders(first: usize, count: usize) -> String {
    let numbers: Vec<_> = (first..first + count).map(|number| format!("${number}")).collect();
    format!("({})", numbers.join(", "))
}

impl Statement {
    /// Gives the next placeholder its value.
    pub(crate) fn bind(mut self, value: impl Bind) -> Self {
        self.values.push(value.value());
        self
    }

    /// Gives the next placeholders their values.
    pub(crate) fn bind_all(self, values: impl IntoIterator<Item: Bind>) -> Self {
        values.into_iter().fold(self, Self::bind)
    }

    /// Runs it. Returns how many rows it wrote.
    pub(crate) async fn execute<'a>(self, on: impl Into<On<'a>>) -> Result<u64, StoreError> {
        Ok(self.run(on.into()).await?.affected)
    }

    /// Its first row, which it always has.
    pub(crate) async fn fetch_one<'a>(self, on: impl Into<On<'a>>) -> Result<Row, StoreError> {
        let row = self.run(on.into()).await?.rows.into_iter().next();
        row.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    /// Its first row, if it has any.
    pub(crate) async fn fetch_optional<'a>(
        self,
        on: impl Into<On<'a>>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.run(on.into()).await?.rows.into_iter().next())
    }

    /// Its rows.
    pub(crate) async fn fetch_all<'a>(self, on: impl Into<On<'a>>) -> Result<Vec<Row>, StoreError> {
        Ok(self.run(on.into()).await?.rows)
    }

    /// Whether it finds a row.
    pub(crate) async fn finds<'a>(self, on: impl Into<On<'a>>) -> Result<bool, StoreError> {
        Ok(!self.run(on.into()).await?.rows.is_empty())
    }

    /// Locks the row that it selects until the transaction ends. False when it finds none.
    ///
    /// This is the place where the engines differ. On SQLite the transaction holds the lock of the
    /// whole database from its beginning. An update that changes nothing would lock on both, but on
    /// PostgreSQL it would also notify every replica and leave a dead row.
    pub(crate) async fn lock(mut self, tx: &mut Tx) -> Result<bool, StoreError> {
        if matches!(tx, Tx::Postgres(_)) {
            let sql = format!("{} FOR NO KEY UPDATE", self.sql.as_str());
            self.sql = AssertSqlSafe(sql).into_sql_str();
        }
        self.finds(tx).await
    }

    async fn run(self, on: On<'_>) -> Result<Outcome, StoreError> {
        match on {
            On::Alone(Engine::Postgres(postgres)) => {
                let mut tx = postgres.begin().await?;
                let rows = tx.fetch_many(self.for_postgres());
                let outcome = with_timeout(Outcome::of_postgres(rows)).await?;
                with_timeout(tx.commit()).await?;
                Ok(outcome)
            }
            On::Alone(Engine::Sqlite(pool)) => {
                Ok(Outcome::of_sqlite(pool.fetch_many(self.for_sqlite())).await?)
            }
            On::Tx(Tx::Postgres(tx)) => {
                let rows = tx.fetch_many(self.for_postgres());
                Ok(with_timeout(Outcome::of_postgres(rows)).await?)
            }
            On::Tx(Tx::Sqlite(tx)) => {
                Ok(Outcome::of_sqlite(tx.fetch_many(self.for_sqlite())).await?)
            }
        }
    }

    /// Without a name: the server forgets the statement when the next one comes.
    fn for_postgres(self) -> Query<'static, Postgres, PgArguments> {
        let query = sqlx::query(self.sql).persistent(false);
        self.values.into_iter().fold(query, |query, value| match value {
            Value::Number(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
        })
    }

    fn for_sqlite(self) -> Query<'static, Sqlite, SqliteArguments> {
        self.values.into_iter().fold(sqlx::query(self.sql), |query, value| match value {
            Value::Number(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
        })
    }
}

impl Outcome {
    async fn of_postgres(
        rows: impl Stream<Item = Result<Either<PgQueryResult, PgRow>, sqlx::Error>>,
    ) -> Result<Self, sqlx::Error> {
        let none = Self { rows: Vec::new(), affected: 0 };
        let add = async |mut all: Self, next| {
            match next {
                Either::Left(done) => all.affected += PgQueryResult::rows_affected(&done),
                Either::Right(row) => all.rows.push(Row::Postgres(row)),
            }
            Ok(all)
        };
        rows.try_fold(none, add).await
    }

    async fn of_sqlite(
        rows: impl Stream<Item = Result<Either<SqliteQueryResult, SqliteRow>, sqlx::Error>>,
    ) -> Result<Self, sqlx::Error> {
        let none = Self { rows: Vec::new(), affected: 0 };
        let add = async |mut all: Self, next| {
            match next {
                Either::Left(done) => all.affected += SqliteQueryResult::rows_affected(&done),
                Either::Right(row) => all.rows.push(Row::Sqlite(row)),
            }
            Ok(all)
        };
        rows.try_fold(none, add).await
    }
}

/// Where a statement runs.
pub(crate) enum On<'a> {
    /// Alone.
    Alone(&'a Engine),
    /// In a transaction.
    Tx(&'a mut Tx),
}

impl<'a> From<&'a Engine> for On<'a> {
    fn from(engine: &'a Engine) -> Self {
        Self::Alone(engine)
    }
}

impl<'a> From<&'a mut Tx> for On<'a> {
    fn from(tx: &'a mut Tx) -> Self {
        Self::Tx(tx)
    }
}

/// A transaction. It ends by [`Tx::commit`], [`Tx::roll_back`] or [`Tx::fail`], each with the
/// result of the step. Dropped, as by `?`, it rolls back.
#[must_use]
pub(crate) enum Tx {
    Postgres(Transaction<'static, Postgres>),
    Sqlite(Transaction<'static, Sqlite>),
}

impl Tx {
    /// Makes the step's changes stand.
    pub(crate) async fn commit<T>(self, value: T) -> Result<T, StoreError> {
        match self {
            Self::Postgres(tx) => with_timeout(tx.commit()).await?,
            Self::Sqlite(tx) => tx.commit().await?,
        }
        Ok(value)
    }

    /// Ends the step with nothing changed.
    #[expect(clippy::unnecessary_wraps, reason = "reads as the other two ends of a step")]
    pub(crate) fn roll_back<T>(self, value: T) -> Result<T, StoreError> {
        drop(self);
        Ok(value)
    }

    /// Ends the step with nothing changed and an error.
    pub(crate) fn fail<T>(self, error: StoreError) -> Result<T, StoreError> {
        drop(self);
        Err(error)
    }

    /// Locks a connection until the transaction ends, so that steps which touch it take turns. False
    /// when there is no such connection.
    pub(crate) async fn lock_connection(&mut self, id: ConnectionId) -> Result<bool, StoreError> {
        query("SELECT 1 FROM connections WHERE id = $1").bind(id).lock(self).await
    }
}

/// What can be bound to a placeholder.
pub(crate) trait Bind {
    /// The null of its type, which PostgreSQL must know.
    const NULL: Value;

    fn value(self) -> Value;
}

impl<T: Bind> Bind for Option<T> {
    const NULL: Value = T::NULL;

    fn value(self) -> Value {
        self.map_or(Self::NULL, T::value)
    }
}

macro_rules! bind {
    ($column:ident: $($type:ty => |$value:ident| $stored:expr;)+) => {$(
        impl Bind for $type {
            const NULL: Value = Value::$column(None);

            fn value(self) -> Value {
                let $value = self;
                Value::$column(Some($stored))
            }
        }
    )+};
}

bind! { Number:
    bool => |yes| i64::from(yes);
    Duration => |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    i64 => |number| number;
    Timestamp => |time| time.as_millisecond();
    u32 => |number| i64::from(number);
    usize => |number| i64::try_from(number).unwrap_or(i64::MAX);
}

bind! { Text:
    &Digest => |digest| digest.to_string();
    &Sealed => |sealed| sealed.as_str().to_owned();
    &Slug => |name| name.to_string();
    &str => |text| text.to_owned();
    &String => |text| text.clone();
    ConnectionId => |id| id.to_string();
    Digest => |digest| digest.to_string();
    GrantType => |grant_type| grant_type.to_string();
    LinkId => |id| id.to_string();
    State => |state| state.to_string();
    String => |text| text;
    Uuid => |id| id.to_string();
}
