//! What the broker remembers: one [`Store`] over SQLite or PostgreSQL.
//!
//! The SQL is written once. It keeps to what both engines understand: `$n` placeholders, `TEXT` and
//! `BIGINT`, times as Unix milliseconds, lists and maps as JSON; only `migrations/` has a text per
//! engine. A method is a whole step: no transaction leaves this room.
//!
//! # Whose clock?
//!
//! Replicas' clocks differ, so every lease and deadline is compared with the database's, read from
//! the view `clock`. By convention `$1` of a statement that needs the time is
//! [`Clock::offset_ms`], zero outside tests.
//!
//! # Why is there no deadlock?
//!
//! A step that writes a connection together with what it owns, or adds an attempt at a consent, writes
//! the row in `connections` first; that row is the lock. A claim touches `grants` alone. What touches a
//! link without its connection takes the link before its attempts. The row of a service or operator
//! comes even before that of a connection, and the one row of `identity` comes last.
mod access;
mod connections;
mod consent;
mod engine;
mod events;
mod grants;
mod identity;
mod meta;
mod reencryption;
mod retention;

use std::{fmt, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;

use crate::clock::Clock;
use engine::Engine;

pub use self::{
    consent::consents::LinkInserted,
    grants::{
        claims::ClaimRejected,
        commit::{Commit, Failure, Source},
        fallback::FallbackGrant,
        revocations::{DeletionStep, Holding, REMOVE_AT_PROVIDER, Revocable, Revoking},
        schedule::Due,
    },
    reencryption::{SEALED_COLUMNS, SealedColumn, SealedCount, SealedValue},
    retention::{PURGES, Purged},
};
pub use connections::Changes;
pub use engine::EngineKind;
pub use engine::error::StoreError;
pub use engine::schema::SchemaStatus;

/// The broker's memory. Clones share their connections.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
    clock: Clock,
    fence: identity::Fence,
}

impl Store {
    /// Opens the database that `url` names: `postgres://user@host/database`, `sqlite:file`, or the
    /// path of an SQLite file, which is made if it is missing.
    ///
    /// Nothing is read or changed yet: see [`Store::schema_status`] and [`Store::migrate`].
    ///
    /// # Errors
    ///
    /// When the URL makes no sense or the database cannot be reached.
    pub async fn connect(url: &SecretString, clock: Clock) -> Result<Self, StoreError> {
        let engine = Engine::connect(url).await?;
        Ok(Self { engine, clock, fence: identity::Fence::default() })
    }

    /// Which engine it is.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    /// Asks the database for a sign of life.
    ///
    /// # Errors
    ///
    /// When it gives none within the time limits.
    pub async fn ping(&self) -> Result<(), StoreError> {
        engine::on!(self, |pool| {
            sqlx::query("SELECT 1").execute(pool).await?;
        });
        Ok(())
    }

    /// Waits for running steps and closes the connections. Later steps fail.
    pub async fn close(&self) {
        engine::on!(self, |pool| pool.close().await);
    }

    /// The same store for what a provider answered: it gets through when all other steps wait.
    fn durable(&self) -> Self {
        Self { engine: self.engine.durable(), ..self.clone() }
    }

    /// What to bind as `$1` of a statement that needs the time.
    fn ahead(&self) -> i64 {
        self.clock.offset_ms()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.engine()).finish()
    }
}

/// The current time in SQL, on the database's clock; the statement's `$1` is [`Store::ahead`].
macro_rules! now {
    () => {
        "((SELECT now_ms FROM clock) + $1)"
    };
}
use now;

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn optional_millis(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::as_millisecond)
}

/// A list or map as the JSON text that the store keeps.
fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("lists and maps with text as keys are always valid JSON")
}
