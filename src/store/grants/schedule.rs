//! When a connection is due, and for whom.

use std::time::Duration;

use jiff::Timestamp;

use super::commit::refreshing;
use crate::{
    domain::{connection::ConnectionId, slug::Slug},
    store::{
        Store, StoreError,
        engine::{in_transaction, on, row::RowExt},
        millis, now,
    },
};

/// Any number of names as one text, ` a  b  c `; no name holds a space.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a Slug>) -> String {
    names.into_iter().flat_map(|name| [" ", name.as_str(), " "]).collect()
}

/// Whether a column's value is in such a list, on both engines: what the list loses when the name
/// is taken out of it tells whether the name was there.
macro_rules! listed {
    ($column:literal, $list:literal) => {
        concat!("replace(", $list, ", ' ' || ", $column, " || ' ', '') <> ", $list)
    };
}
pub(crate) use listed;

/// Lets go of the claim of connection `$2` if its lease has run out: it ended without a word.
const EXPIRE_LEASE: &str = concat!(
    "UPDATE grants SET lease_until = NULL, crashes = crashes + 1
    WHERE connection_id = $2 AND lease_until <= ",
    now!()
);

/// A connection that is due.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Due {
    /// Which one.
    pub id: ConnectionId,
    /// The client it goes through.
    pub client: Slug,
    /// Those with 0 come first: the last attempt has no known outcome, and its answer may soon be
    /// past asking for. Those with 2 come last: they were refused already.
    pub rank: i64,
    /// When its token ends; none if it has none.
    pub expires_at: Option<Timestamp>,
}

impl Store {
    /// The connections of these clients to refresh now: due, or claimed by somebody who let the lease
    /// run out; by [`Due::rank`], and then those whose token ends first. Those of other clients take
    /// none of the `limit`: who cannot refresh them must not wait behind them.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn due(
        &self,
        clients: impl IntoIterator<Item = &Slug>,
        limit: u32,
    ) -> Result<Vec<Due>, StoreError> {
        let sql = concat!(
            "SELECT c.id, c.client, g.expires_at, CAST(CASE WHEN c.state = 'suspect' THEN 2
                WHEN g.attempts > 0 THEN 0 ELSE 1 END AS BIGINT) AS rank
            FROM connections c JOIN grants g ON g.connection_id = c.id
            WHERE ",
            listed!("c.client", "$3"),
            " AND c.state IN ",
            refreshing!(),
            " AND COALESCE(g.lease_until, c.refresh_at) <= ",
            now!(),
            " ORDER BY rank, COALESCE(g.expires_at, 0), c.id LIMIT $2"
        );
        on!(self, |pool| {
            let rows = sqlx::query(sql)
                .bind(self.ahead())
                .bind(i64::from(limit))
                .bind(list(clients))
                .fetch_all(pool)
                .await?;
            let due = |row| {
                Ok(Due {
                    id: RowExt::parsed(row, "id")?,
                    client: RowExt::parsed(row, "client")?,
                    rank: RowExt::number(row, "rank")?,
                    expires_at: RowExt::time_or_null(row, "expires_at")?,
                })
            };
            rows.iter().map(due).collect()
        })
    }

    /// Moves the next refresh, and lets go of a claim whose lease has run out, so that it does not
    /// make the connection due before; that its attempt ended without a word stays known. False when
    /// there is no such connection, or it was deleted.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn defer_refresh(
        &self,
        id: ConnectionId,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let postpone = concat!(
            "UPDATE connections SET refresh_at = $3, changed_at = ",
            now!(),
            " WHERE id = $2 AND state NOT IN ('revoked', 'revoking')"
        );
        let id = id.to_string();
        in_transaction!(self, |tx| {
            let postponed = sqlx::query(postpone)
                .bind(self.ahead())
                .bind(&id)
                .bind(until.as_millisecond())
                .execute(&mut *tx)
                .await?;
            if postponed.rows_affected() == 0 {
                return Ok(false);
            }
            sqlx::query(EXPIRE_LEASE).bind(self.ahead()).bind(&id).execute(&mut *tx).await?;
        });
        Ok(true)
    }

    /// Counts a report that a token is refused by the API, if none was counted within `floor` and the
    /// connection holds that generation still. Returns how many there were within `window`, this one
    /// included, on all replicas; none when it does not count.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn count_report(
        &self,
        id: ConnectionId,
        generation: i64,
        floor: Duration,
        window: Duration,
    ) -> Result<Option<i64>, StoreError> {
        let sql = concat!(
            "UPDATE grants SET reported_at = ",
            now!(),
            ", reports = CASE WHEN reports_since > ",
            now!(),
            " - $5 THEN reports + 1 ELSE 1 END,
                reports_since = CASE WHEN reports_since > ",
            now!(),
            " - $5 THEN reports_since ELSE ",
            now!(),
            " END
            WHERE connection_id = $2 AND generation = $3
                AND (reported_at IS NULL OR reported_at <= ",
            now!(),
            " - $4)
            RETURNING reports"
        );
        on!(self, |pool| {
            let counted = sqlx::query(sql)
                .bind(self.ahead())
                .bind(id.to_string())
                .bind(generation)
                .bind(millis(floor))
                .bind(millis(window))
                .fetch_optional(pool)
                .await?;
            counted.map(|row| row.number("reports")).transpose()
        })
    }

    /// Ends the leases of a replica that has died and is here again; its attempts stay as evidence.
    /// Returns how many there were.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the leases then run out by themselves.
    pub async fn expire_leases_of(&self, replica: &str) -> Result<u64, StoreError> {
        let sql = concat!(
            "UPDATE grants SET lease_until = ",
            now!(),
            " WHERE lease_until > ",
            now!(),
            " AND substr(attempt_id, 1, CAST($3 AS INTEGER)) = $2"
        );
        let prefix = format!("{replica}.");
        let length = i64::try_from(prefix.len()).unwrap_or_default();
        on!(self, |pool| {
            let ended = sqlx::query(sql).bind(self.ahead()).bind(&prefix).bind(length);
            Ok(ended.execute(pool).await?.rows_affected())
        })
    }
}
