//! The database: one [`Store`] over SQLite or PostgreSQL.
//!
//! `engine` makes the two databases look alike; `grants`, `consent` and `access` hold the steps of
//! those subjects; the other files hold one subject each. A public method is one whole step: no
//! transaction leaves this room. May use `domain`, `seal`, `clock` and the types of `audit`. Used by
//! the broker, the command line and the wiring in `app`.
//!
//! # The SQL
//!
//! The SQL is written once. It keeps to what both engines understand: `$n` placeholders, `TEXT` and
//! `BIGINT`, times as Unix milliseconds, lists and maps as JSON. Only `migrations/` has a text for each
//! engine.
//!
//! # Time
//!
//! The clocks of replicas differ, so every lease and deadline is compared with the clock of the
//! database, which the view `clock` shows. The time in a statement is `now_ms + $1`, or
//! `(SELECT now_ms FROM clock) + $1`. `$1` is [`Clock::offset_ms`]: how far a test has moved the
//! clock, and zero outside tests.
//!
//! # Errors
//!
//! Every step fails with [`StoreError`] when the database does not answer, or when a row cannot be
//! understood. An unanswered step may have happened all the same; the steps are made so that repeating
//! one does no harm, but for those that count. The documentation of a method names only further errors.
//!
//! # Locks
//!
//! There is no deadlock, because rows are locked in one order: a service or operator, then a
//! connection, then what it owns, and the one row of `identity` last. A step that writes a connection
//! together with what it owns, or adds an attempt at a consent, locks the row in `connections` first.
//! A claim locks a row of `grants` alone. A step that touches a link without its connection locks the link
//! before its attempts.
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
pub mod retry;

use std::fmt;

use secrecy::SecretString;

use crate::clock::Clock;
use engine::{
    Engine,
    statement::{Tx, query},
};

pub use self::{
    consent::consents::LinkInserted,
    grants::{
        claims::{Claim, ClaimRejected},
        commit::{Commit, Failure, Source},
        fallback::FallbackGrant,
        revocations::{DeletionStep, Holding, REMOVE_AT_PROVIDER, Revocable, Revoking},
        schedule::Due,
    },
    meta::DEPLOYMENT,
    reencryption::{SEALED_COLUMNS, SealedColumn, SealedCount, SealedValue},
    retention::{PURGES, Purged},
};
pub use connections::Changes;
pub use engine::EngineKind;
pub use engine::error::StoreError;
pub use engine::schema::SchemaStatus;

/// The database. Clones share their connections.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
    clock: Clock,
    fence: identity::Fence,
}

/// The steps that store what a provider answered, which exists nowhere else. They get through when all
/// other steps wait for a connection. See [`Store::durable`].
#[derive(Clone, Debug)]
pub struct DurableStore(Store);

impl Store {
    /// Opens the database that `url` names: `postgres://user@host/database`, `sqlite:file`, or the
    /// path of an SQLite file, which is made if it is missing.
    ///
    /// Nothing is read or changed yet: see [`Store::schema_status`] and [`Store::migrate`].
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidUrl`] as well.
    pub async fn connect(url: &SecretString, clock: Clock) -> Result<Self, StoreError> {
        let engine = Engine::connect(url).await?;
        Ok(Self { engine, clock, fence: identity::Fence::default() })
    }

    /// The engine's name.
    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    /// Checks that the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        query("SELECT 1").execute(&self.engine).await?;
        Ok(())
    }

    /// Waits for running steps and closes the connections. Later steps fail.
    pub async fn close(&self) {
        self.engine.close().await;
    }

    /// The steps that store what a provider answered.
    pub fn durable(&self) -> DurableStore {
        DurableStore(Self { engine: self.engine.durable(), ..self.clone() })
    }

    /// Begins a transaction.
    async fn begin(&self) -> Result<Tx, StoreError> {
        self.engine.begin().await
    }

    /// The value of `$1` in a statement that needs the time.
    fn offset(&self) -> i64 {
        self.clock.offset_ms()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.engine()).finish()
    }
}

/// A list or map as the JSON text that is stored.
fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("lists and maps with text as keys are always valid JSON")
}
