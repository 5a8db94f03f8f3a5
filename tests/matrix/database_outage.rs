//! A database that goes away and comes back, on both engines.

use sqlx::{Connection as _, SqliteConnection};

use crate::{cuttable_connection::CuttableConnection, support::database::TestDatabase};

/// The way to keep the broker from its database.
pub(crate) enum DatabaseOutage {
    /// Somebody else holds the write lock of an SQLite file, and does not let go.
    Locked { url: String, holder: Option<SqliteConnection> },
    /// The line to PostgreSQL is cut.
    Cut(CuttableConnection),
}

impl DatabaseOutage {
    /// Puts itself between the database and whoever opens it from now on.
    pub(crate) async fn before(database: &mut TestDatabase) -> Self {
        let url = database.plain_url().to_owned();
        if url.starts_with("sqlite:") {
            return Self::Locked { url, holder: None };
        }
        Self::Cut(CuttableConnection::before(database).await)
    }

    pub(crate) async fn begin(&mut self) {
        match self {
            Self::Locked { url, holder } => {
                let mut connection = SqliteConnection::connect(url).await.unwrap();
                sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
                *holder = Some(connection);
            }
            Self::Cut(line) => line.cut(),
        }
    }

    pub(crate) async fn end(&mut self) {
        match self {
            Self::Locked { holder, .. } => {
                let mut connection = holder.take().unwrap();
                sqlx::query("ROLLBACK").execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Cut(line) => line.mend(),
        }
    }
}
