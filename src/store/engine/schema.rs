//! The schema: its migrations, and how that of a database compares with them.

use sqlx::migrate::{MigrateError, Migrator};

use super::{Engine, statement::query};
use crate::store::{Store, StoreError};

/// How the database's schema compares with the one that this program knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SchemaStatus {
    /// It is the same.
    Current,
    /// A build from before the first release has made it. There is no way from there to here.
    EarlierBuild,
    /// There is none yet.
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

impl SchemaStatus {
    /// Refuses a database that this program must not touch.
    ///
    /// # Errors
    ///
    /// [`StoreError::EarlierBuild`] and [`StoreError::NewerSchema`].
    pub fn usable(self) -> Result<Self, StoreError> {
        match self {
            Self::EarlierBuild => Err(StoreError::EarlierBuild),
            Self::Newer { found, known } => Err(StoreError::NewerSchema { found, known }),
            Self::Current | Self::Fresh | Self::Older { .. } => Ok(self),
        }
    }
}

impl Store {
    /// Compares the schema with the one that this program knows. Changes nothing.
    pub async fn schema_status(&self) -> Result<SchemaStatus, StoreError> {
        let (exists, first_differs) = match &self.engine {
            Engine::Postgres(_) => (
                "SELECT 1 WHERE to_regclass('_sqlx_migrations') IS NOT NULL",
                "SELECT 1 FROM _sqlx_migrations
                WHERE version = 1 AND encode(checksum, 'hex') <> $1",
            ),
            Engine::Sqlite(_) => (
                "SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'",
                "SELECT 1 FROM _sqlx_migrations
                WHERE version = 1 AND lower(hex(checksum)) <> $1",
            ),
        };
        if !query(exists).finds(&self.engine).await? {
            return Ok(SchemaStatus::Fresh);
        }
        let migrator = migrator(&self.engine);
        if query(first_differs).bind(first_checksum(&migrator)).finds(&self.engine).await? {
            return Ok(SchemaStatus::EarlierBuild);
        }
        let newest = "SELECT max(version) AS version FROM _sqlx_migrations WHERE success";
        let newest = query(newest).fetch_one(&self.engine).await?.number_or_null("version")?;
        let known = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
        Ok(match newest {
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
    /// Those of [`SchemaStatus::usable`], with nothing changed. [`StoreError::Migration`], which leaves
    /// PostgreSQL's schema as it was, and SQLite's as it was before the migration that failed.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.schema_status().await?.usable()?;
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

/// The migrations of an engine. One that was released never changes. The migrator's own lock is off: it
/// belongs to a session, and there is none behind a pooler.
fn migrator(engine: &Engine) -> Migrator {
    let mut migrator = match engine {
        Engine::Postgres(_) => sqlx::migrate!("migrations/postgres"),
        Engine::Sqlite(_) => sqlx::migrate!("migrations/sqlite"),
    };
    migrator.set_locking(false);
    migrator
}

/// The checksum of the first migration, in hexadecimal.
fn first_checksum(migrator: &Migrator) -> String {
    let first = migrator.iter().next().expect("there is a first migration");
    hex::encode(&first.checksum)
}
