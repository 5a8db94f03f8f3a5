use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

use super::{Store, StoreError, engine::Engine};

/// The migrations, oldest first: the words for people, the text for PostgreSQL and for SQLite.
const MIGRATIONS: &[(&str, &str, &str)] = &[
    (
        "init",
        include_str!("../../migrations/postgres/0001_init.sql"),
        include_str!("../../migrations/sqlite/0001_init.sql"),
    ),
    (
        "siblings and escrow",
        include_str!("../../migrations/postgres/0002_siblings_and_escrow.sql"),
        include_str!("../../migrations/sqlite/0002_siblings_and_escrow.sql"),
    ),
    (
        "identity",
        include_str!("../../migrations/postgres/0003_identity.sql"),
        include_str!("../../migrations/sqlite/0003_identity.sql"),
    ),
];

/// How the database's schema compares with what this program knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SchemaStatus {
    /// What this program needs.
    Current,
    /// No schema yet.
    Fresh,
    /// A newer program has migrated it; this one must not touch it.
    Newer {
        /// The database's version.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// [`Store::migrate`] brings it up to date.
    Older {
        /// The database's version.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
}

impl Store {
    /// Compares the schema with what this program knows. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn schema_status(&self) -> Result<SchemaStatus, StoreError> {
        let exists = match &self.engine {
            Engine::Postgres(pool) => {
                sqlx::query("SELECT 1 WHERE to_regclass('_sqlx_migrations') IS NOT NULL")
                    .fetch_optional(pool)
                    .await?
                    .is_some()
            }
            Engine::Sqlite(pool) => {
                sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'")
                    .fetch_optional(pool)
                    .await?
                    .is_some()
            }
        };
        if !exists {
            return Ok(SchemaStatus::Fresh);
        }
        let sql = "SELECT max(version) FROM _sqlx_migrations WHERE success";
        let found: Option<i64> =
            super::engine::on!(self, |pool| sqlx::query(sql).fetch_one(pool).await?.try_get(0)?);
        let known = known();
        Ok(match found {
            None => SchemaStatus::Fresh,
            Some(found) if found < known => SchemaStatus::Older { found, known },
            Some(found) if found > known => SchemaStatus::Newer { found, known },
            Some(_) => SchemaStatus::Current,
        })
    }

    /// Brings the schema up to date. Replicas that start together take turns.
    ///
    /// # Errors
    ///
    /// [`StoreError::NewerSchema`], with nothing changed; or when a migration fails, which leaves the
    /// schema as it was before that migration.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        if let SchemaStatus::Newer { found, known } = self.schema_status().await? {
            return Err(StoreError::NewerSchema { found, known });
        }
        let migrated = match &self.engine {
            Engine::Postgres(pool) => {
                // The limits of a step are too short for a migration and for waiting one's turn.
                let options = pool.connect_options().as_ref().clone();
                let mut connection = options
                    .options([("statement_timeout", "0"), ("lock_timeout", "60s")])
                    .connect()
                    .await?;
                let migrated = migrator(&self.engine).run(&mut connection).await;
                connection.close().await?;
                migrated
            }
            Engine::Sqlite(pool) => migrator(&self.engine).run(pool).await,
        };
        migrated.map_err(StoreError::Migration)
    }
}

/// The newest version this program knows.
fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

fn migrator(engine: &Engine) -> Migrator {
    let migrations = (1..).zip(MIGRATIONS).map(|(version, &(words, postgres, sqlite))| {
        let sql = match engine {
            Engine::Postgres(_) => postgres,
            Engine::Sqlite(_) => sqlite,
        };
        Migration::new(version, words.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(migrations.collect())
}
