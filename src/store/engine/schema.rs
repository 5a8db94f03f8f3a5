use sqlx::{
    Row as _, SqlSafeStr as _,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::Engine;
use crate::store::{Store, StoreError};

/// The migrations, oldest first: the words for people, the text for PostgreSQL and for SQLite.
const MIGRATIONS: &[(&str, &str, &str)] = &[
    (
        "init",
        include_str!("../../../migrations/postgres/0001_init.sql"),
        include_str!("../../../migrations/sqlite/0001_init.sql"),
    ),
    (
        "siblings and escrow",
        include_str!("../../../migrations/postgres/0002_siblings_and_escrow.sql"),
        include_str!("../../../migrations/sqlite/0002_siblings_and_escrow.sql"),
    ),
    (
        "identity",
        include_str!("../../../migrations/postgres/0003_identity.sql"),
        include_str!("../../../migrations/sqlite/0003_identity.sql"),
    ),
    (
        "hints",
        include_str!("../../../migrations/postgres/0004_hints.sql"),
        include_str!("../../../migrations/sqlite/0004_hints.sql"),
    ),
    (
        "reports",
        include_str!("../../../migrations/postgres/0005_reports.sql"),
        include_str!("../../../migrations/sqlite/0005_reports.sql"),
    ),
    (
        "token endpoint",
        include_str!("../../../migrations/postgres/0006_token_endpoint.sql"),
        include_str!("../../../migrations/sqlite/0006_token_endpoint.sql"),
    ),
    (
        "events",
        include_str!("../../../migrations/postgres/0007_events.sql"),
        include_str!("../../../migrations/sqlite/0007_events.sql"),
    ),
    (
        "break glass",
        include_str!("../../../migrations/postgres/0008_break_glass.sql"),
        include_str!("../../../migrations/sqlite/0008_break_glass.sql"),
    ),
    (
        "expiry indexes",
        include_str!("../../../migrations/postgres/0009_expiry_indexes.sql"),
        include_str!("../../../migrations/sqlite/0009_expiry_indexes.sql"),
    ),
    (
        "tombstones by time",
        include_str!("../../../migrations/postgres/0010_tombstones_by_time.sql"),
        include_str!("../../../migrations/sqlite/0010_tombstones_by_time.sql"),
    ),
    (
        "consents in flight",
        include_str!("../../../migrations/postgres/0011_consents_in_flight.sql"),
        include_str!("../../../migrations/sqlite/0011_consents_in_flight.sql"),
    ),
    (
        "requesters",
        include_str!("../../../migrations/postgres/0012_requesters.sql"),
        include_str!("../../../migrations/sqlite/0012_requesters.sql"),
    ),
    (
        "consented",
        include_str!("../../../migrations/postgres/0013_consented.sql"),
        include_str!("../../../migrations/sqlite/0013_consented.sql"),
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
            Engine::Postgres(postgres) => {
                sqlx::query("SELECT 1 WHERE to_regclass('_sqlx_migrations') IS NOT NULL")
                    .fetch_optional(postgres)
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
            super::on!(self, |pool| sqlx::query(sql).fetch_one(pool).await?.try_get(0)?);
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
    /// [`StoreError::NewerSchema`], with nothing changed; or when a migration fails, which leaves
    /// PostgreSQL's schema as it was, and SQLite's as it was before that migration.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        if let SchemaStatus::Newer { found, known } = self.schema_status().await? {
            return Err(StoreError::NewerSchema { found, known });
        }
        let migrated = match &self.engine {
            Engine::Postgres(postgres) => postgres.migrate(&migrator(&self.engine)).await,
            Engine::Sqlite(pool) => migrator(&self.engine).run(pool).await,
        };
        migrated.map_err(|error| match error {
            MigrateError::Execute(error) => error.into(),
            error => StoreError::Migration(error),
        })
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
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // Its own lock belongs to a session, and there is none behind a pooler.
    migrator.set_locking(false);
    migrator
}
