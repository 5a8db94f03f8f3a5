//! Reading rows: every value is checked as it leaves the database.

use std::str::FromStr;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::{Row as _, postgres::PgRow, sqlite::SqliteRow};

use crate::{domain::grant_conflict::GrantLineage, seal::Sealed, store::StoreError};

/// Leaves out a row that cannot be understood, with an error in the log: one bad row must not keep
/// the others from being served.
pub(crate) fn ok_or_log<T>(what: &str, read: Result<T, StoreError>) -> Option<T> {
    read.inspect_err(|error| tracing::error!(%error, "left out a {what} that cannot be understood"))
        .ok()
}

/// A row of either engine. Its values are read by column name.
pub(crate) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

impl Row {
    pub(crate) fn text_or_null(&self, column: &str) -> Result<Option<String>, StoreError> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    pub(crate) fn number_or_null(&self, column: &str) -> Result<Option<i64>, StoreError> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(column)?,
            Self::Sqlite(row) => row.try_get(column)?,
        })
    }

    pub(crate) fn text(&self, column: &str) -> Result<String, StoreError> {
        self.text_or_null(column)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn number(&self, column: &str) -> Result<i64, StoreError> {
        self.number_or_null(column)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn time(&self, column: &str) -> Result<Timestamp, StoreError> {
        self.time_or_null(column)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn time_or_null(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        self.number_or_null(column)?
            .map(Timestamp::from_millisecond)
            .transpose()
            .map_err(|_| self.corrupt(column))
    }

    /// A value that is stored as the text it prints: a word, a name, an id, a digest.
    pub(crate) fn parsed<T: FromStr>(&self, column: &str) -> Result<T, StoreError> {
        self.parsed_or_null(column)?.ok_or_else(|| self.corrupt(column))
    }

    pub(crate) fn parsed_or_null<T: FromStr>(&self, column: &str) -> Result<Option<T>, StoreError> {
        self.text_or_null(column)?
            .map(|text| text.parse())
            .transpose()
            .map_err(|_| self.corrupt(column))
    }

    /// The refresh that brought a grant; none for a consent.
    pub(crate) fn origin(&self) -> Result<Option<GrantLineage>, StoreError> {
        let Some(asked_at) = self.time_or_null("asked_at")? else {
            return Ok(None);
        };
        Ok(Some(GrantLineage { parent: self.parsed_or_null("parent_hash")?, asked_at }))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|_| self.corrupt(column))
    }

    pub(crate) fn sealed(&self, column: &str) -> Result<Sealed, StoreError> {
        self.text(column).map(Sealed::from_stored)
    }

    pub(crate) fn sealed_or_null(&self, column: &str) -> Result<Option<Sealed>, StoreError> {
        Ok(self.text_or_null(column)?.map(Sealed::from_stored))
    }

    /// Names the column, and the row by its id or name. Never the value, which may be a secret.
    pub(crate) fn corrupt(&self, column: &str) -> StoreError {
        let mut keys = ["id", "name"].into_iter().filter(|key| *key != column);
        let key = keys.find_map(|key| self.text_or_null(key).ok().flatten());
        let row = key.map(|key| format!(" of {}", key.escape_debug())).unwrap_or_default();
        StoreError::Corrupt { what: format!("`{column}`{row}") }
    }
}
