//! A fresh database for each test, on the engine it asks for.

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection,
    postgres::PgConnectOptions,
};
use tempfile::TempDir;
use token_broker::{
    clock::Clock,
    domain::connection::{ConnectionId, State},
    seal::secret,
    store::Store,
};

use super::pooler::Pooler;

/// The variable with the URL of a PostgreSQL server and a user who may create schemas.
const TEST_DATABASE_URL: &str = "TEST_DATABASE_URL";

/// A migrated database that is gone with the test, and a clock that the test moves by hand.
pub(crate) struct TestDatabase {
    /// The store under test.
    pub(crate) store: Store,
    /// The store's clock.
    pub(crate) clock: Clock,
    /// The URL of the same database.
    pub(crate) url: SecretString,
    place: Place,
    pooler: Option<Pooler>,
}

enum Place {
    Folder(TempDir),
    Schema { admin_url: String, name: String },
}

impl TestDatabase {
    /// An SQLite file in a folder of its own.
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        Self::open(url, Place::Folder(folder)).await
    }

    /// A schema of its own on the server that `TEST_DATABASE_URL` names.
    pub(crate) async fn postgres() -> Self {
        let admin_url = std::env::var(TEST_DATABASE_URL).unwrap_or_else(|_| {
            panic!(
                "{TEST_DATABASE_URL} is not set: run `tests/run`, which brings a PostgreSQL server"
            )
        });
        Self::postgres_at(admin_url).await
    }

    /// A schema of its own on this server.
    pub(crate) async fn postgres_at(admin_url: String) -> Self {
        let random = secret::random_bytes::<8>().map(|byte| format!("{byte:02x}")).concat();
        let name = format!("test_{random}");
        execute_on_postgres(&admin_url, format!("CREATE SCHEMA {name}")).await;
        let separator = if admin_url.contains('?') { '&' } else { '?' };
        let url = format!("{admin_url}{separator}options[search_path]={name}");
        Self::open(url, Place::Schema { admin_url, name }).await
    }

    /// As [`TestDatabase::postgres`]; whoever opens it goes through a pooler in transaction mode
    /// with three connections, but for the store under test.
    pub(crate) async fn behind_pooler() -> Self {
        let mut this = Self::postgres().await;
        if let Place::Schema { admin_url, name } = &this.place {
            let pooler = Pooler::start(admin_url, name).await;
            this.url = pooler.url.clone().into();
            this.pooler = Some(pooler);
        }
        this
    }

    /// The URL as text.
    #[expect(clippy::disallowed_methods, reason = "the URL of a test database is no secret")]
    pub(crate) fn plain_url(&self) -> &str {
        self.url.expose_secret()
    }

    async fn open(url: String, place: Place) -> Self {
        let clock = Clock::system();
        let url = SecretString::from(url);
        let store = Store::connect(&url, clock.clone()).await.unwrap();
        store.migrate().await.unwrap();
        Self { store, clock, url, place, pooler: None }
    }

    /// Runs a statement behind the store's back.
    pub(crate) async fn execute(&self, sql: &'static str) {
        self.run(sql.to_owned()).await;
    }

    /// Puts a connection into a state, behind the store's back.
    pub(crate) async fn set_state(&self, id: ConnectionId, state: State, reason: Option<&str>) {
        let reason = reason.map_or("NULL".to_owned(), |reason| format!("'{reason}'"));
        let set = format!("UPDATE connections SET state = '{state}', reason = {reason}");
        self.run(format!("{set} WHERE id = '{id}'")).await;
    }

    async fn run(&self, sql: String) {
        let url = self.plain_url();
        match self.place {
            Place::Folder(_) => {
                let mut connection = SqliteConnection::connect(url).await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Place::Schema { .. } => execute_on_postgres(url, sql).await,
        }
    }

    /// The number that a query finds.
    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        let url = self.plain_url();
        match self.place {
            Place::Folder(_) => {
                let mut connection = SqliteConnection::connect(url).await.unwrap();
                let number = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                number
            }
            Place::Schema { .. } => {
                let mut connection = self.session().await;
                let number = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                number
            }
        }
    }

    /// The query plan of a statement, as the engine prints it.
    pub(crate) async fn plan(&self, sql: &str) -> String {
        let url = self.plain_url();
        match self.place {
            Place::Folder(_) => {
                let mut connection = SqliteConnection::connect(url).await.unwrap();
                let sql = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows.iter().map(|row| row.get::<String, _>("detail") + "\n").collect()
            }
            Place::Schema { .. } => {
                let mut connection = self.session().await;
                let sql = AssertSqlSafe(format!("EXPLAIN {sql}"));
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect()
            }
        }
    }

    /// A connection of the test's own to PostgreSQL.
    pub(crate) async fn session(&self) -> PgConnection {
        connect_to_postgres(self.plain_url()).await
    }

    /// Runs a statement on PostgreSQL and holds its locks until the connection is dropped.
    pub(crate) async fn hold(&self, sql: &'static str) -> PgConnection {
        let mut connection = self.session().await;
        sqlx::raw_sql("BEGIN").execute(&mut connection).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection
    }

    /// All that the database holds, as far as anybody with access to it could read.
    pub(crate) async fn contents(&self) -> String {
        match &self.place {
            Place::Folder(folder) => {
                self.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
                let bytes = std::fs::read(folder.path().join("test.db")).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Place::Schema { admin_url, name } => {
                let mut connection = connect_to_postgres(admin_url).await;
                let sql = "SELECT query_to_xml(format('SELECT * FROM %I.%I', $1, relname), \
                     false, false, '')::text FROM pg_class \
                     WHERE relnamespace = $1::regnamespace AND relkind = 'r' ORDER BY relname";
                let tables: Vec<String> =
                    sqlx::query_scalar(sql).bind(name).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                tables.concat()
            }
        }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Place::Schema { admin_url, name } = &self.place else {
            return;
        };
        let (url, sql) = (admin_url.clone(), format!("DROP SCHEMA {name} CASCADE"));
        // The test's own runtime is busy with this very call.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(execute_on_postgres(&url, sql));
        });
        let dropped = dropping.join();
        assert!(dropped.is_ok() || std::thread::panicking(), "the test's schema was not dropped");
    }
}

async fn connect_to_postgres(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().unwrap();
    // A pooler refuses it.
    PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap()
}

async fn execute_on_postgres(url: &str, sql: String) {
    let mut connection = connect_to_postgres(url).await;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Makes two tests of a function that takes a database: `name::sqlite` and `name::postgres`.
macro_rules! on_both_engines {
    ($(#[$attribute:meta])* async fn $name:ident $($rest:tt)+) => {
        $(#[$attribute])* async fn $name $($rest)+

        mod $name {
            use $crate::support::database::TestDatabase;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name(TestDatabase::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name(TestDatabase::postgres().await).await;
            }
        }
    };
}
pub(crate) use macro_rules_attribute::apply;
pub(crate) use on_both_engines;
