//! The errors of the store.

use sqlx::migrate::MigrateError;

use crate::domain::slug::Slug;

/// The reason why a step failed. Every message is one line and holds neither SQL nor the URL.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A stored value cannot be understood: somebody else wrote it, or a newer program.
    #[error("the stored {what} cannot be understood")]
    Corrupt {
        /// The column, and the row where it is known.
        what: String,
    },
    /// The database refused the step, for a reason that should not arise.
    #[error("the database refused: {}", first_line(.0))]
    Database(#[source] sqlx::Error),
    /// The database was made by a build from before the first release.
    #[error(
        "the database was made by an earlier build of token-broker, whose schema this one cannot \
         migrate: name a new, empty database, and let each account consent again"
    )]
    EarlierBuild,
    /// The setting does not name a database.
    #[error("the database URL is not valid: expected `postgres://…`, `sqlite:FILE` or a file path")]
    InvalidUrl,
    /// The schema could not be brought up to date.
    #[error("the database schema could not be migrated: {}", first_line(.0))]
    Migration(#[source] MigrateError),
    /// The name is in use.
    #[error("the name `{0}` is taken")]
    NameTaken(Slug),
    /// A newer token-broker has migrated this database.
    #[error(
        "the database has schema version {found}, but this program knows only {known}: run a newer token-broker"
    )]
    NewerSchema {
        /// The database's version.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// The database cannot be reached now; the same step may succeed later.
    #[error("the database cannot be reached: {}", first_line(.0))]
    Unreachable(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unreachable(error),
            sqlx::Error::Database(ref refusal)
                if refusal.code().is_some_and(|code| is_passing(&code)) =>
            {
                Self::Unreachable(error)
            }
            _ => Self::Database(error),
        }
    }
}

/// Whether the same step may succeed later. Of PostgreSQL: SQLSTATE classes 08 (connection), 40
/// (serialization, deadlock), 53 (resources) and 57 (operator intervention, which includes
/// `statement_timeout`), 55P03 (`lock_timeout`) and 25006 (a standby, or a primary that was made
/// read-only). Of SQLite: BUSY, CANTOPEN and their extended forms, whose low byte is 5 or 14.
fn is_passing(code: &str) -> bool {
    let sqlite = code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff);
    matches!(sqlite, Some(5 | 14))
        || ["25006", "55P03"].contains(&code)
        || (code.len() == 5 && ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)))
}

fn first_line(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::is_passing;

    #[test]
    fn a_refusal_that_says_not_now_is_passing() {
        for code in
            ["08006", "40P01", "53300", "57014", "57P03", "55P03", "25006", "5", "261", "517", "14"]
        {
            assert!(is_passing(code), "{code}");
        }
        for code in ["23505", "42P01", "28P01", "1", "19", "2067", "787"] {
            assert!(!is_passing(code), "{code}");
        }
    }
}
