//! The schedule of refreshes: which connections are due, postponements, and leases that have run out.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::{
    refreshing_states,
    transitions::{Schedule, Transition},
};
use crate::{
    domain::{
        connection::{ConnectionId, State},
        slug::Slug,
    },
    store::{
        Store, StoreError,
        engine::{
            row::Row,
            statement::{placeholders, query},
        },
    },
};

/// A connection that is due.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Due {
    /// Its id.
    pub id: ConnectionId,
    /// The client it goes through.
    pub client: Slug,
    /// 0 comes first: the last attempt has no known outcome, and a grace period may soon end. 2 comes
    /// last: the connection is suspect.
    pub rank: i64,
    /// When its token ends; none if it has none.
    pub expires_at: Option<Timestamp>,
}

impl Store {
    /// The connections of these clients to refresh now: due, or claimed under a lease that has run
    /// out; by [`Due::rank`], and then those whose token ends first. Connections of other clients take
    /// none of the `limit`: a replica that cannot refresh them must not wait behind them.
    pub async fn due(
        &self,
        clients: impl IntoIterator<Item = &Slug>,
        limit: u32,
    ) -> Result<Vec<Due>, StoreError> {
        let clients: Vec<_> = clients.into_iter().collect();
        if clients.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT c.id, c.client, g.expires_at,
                CAST(CASE WHEN c.state = 'suspect' THEN 2 WHEN g.attempts > 0 THEN 0 ELSE 1 END
                    AS BIGINT) AS rank
            FROM connections c JOIN grants g ON g.connection_id = c.id
            WHERE c.client IN {clients} AND c.state IN {refreshing}
                AND COALESCE(g.lease_until, c.refresh_at) <= (SELECT now_ms FROM clock) + $1
            ORDER BY rank, COALESCE(g.expires_at, 0), c.id LIMIT $2",
            clients = placeholders(3, clients.len()),
            refreshing = refreshing_states(),
        );
        let due = query(AssertSqlSafe(sql)).bind(self.offset()).bind(limit).bind_all(clients);
        due.fetch_all(&self.engine).await?.iter().map(due_connection).collect()
    }

    /// Moves the next refresh, and releases a claim whose lease has run out, so that it does not make
    /// the connection due before; the attempt is counted as abandoned. False when there is no such
    /// connection, or it was deleted.
    pub async fn defer_refresh(
        &self,
        id: ConnectionId,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let expire = "
            UPDATE grants SET lease_until = NULL, abandoned_attempts = abandoned_attempts + 1
            WHERE connection_id = $2 AND lease_until <= (SELECT now_ms FROM clock) + $1";
        let defer = Transition {
            schedule: Schedule::At(until),
            ..Transition::within(|state: State| !state.is_deleted())
        };
        let mut tx = self.begin().await?;
        if !defer.apply(&mut tx, id, self.offset()).await? {
            return tx.roll_back(false);
        }
        query(expire).bind(self.offset()).bind(id).execute(&mut tx).await?;
        tx.commit(true).await
    }

    /// Counts a report that the API refused a token, if none was counted within `floor` and the
    /// connection still holds that generation. Returns how many there were within `window`, this one
    /// included, on all replicas; none when it does not count.
    pub async fn count_report(
        &self,
        id: ConnectionId,
        generation: i64,
        floor: Duration,
        window: Duration,
    ) -> Result<Option<i64>, StoreError> {
        let sql = "
            UPDATE grants SET reported_at = now_ms + $1,
                reports = CASE WHEN reports_since > now_ms + $1 - $5 THEN reports + 1 ELSE 1 END,
                reports_since =
                    CASE WHEN reports_since > now_ms + $1 - $5 THEN reports_since ELSE now_ms + $1 END
            FROM clock
            WHERE connection_id = $2 AND generation = $3
                AND (reported_at IS NULL OR reported_at <= now_ms + $1 - $4)
            RETURNING reports";
        let counted = query(sql)
            .bind(self.offset())
            .bind(id)
            .bind(generation)
            .bind(floor)
            .bind(window)
            .fetch_optional(&self.engine)
            .await?;
        counted.map(|row| row.number("reports")).transpose()
    }

    /// Ends the leases of a replica that has died and is back; its attempts stay as evidence. Returns
    /// how many there were.
    pub async fn expire_leases_of(&self, replica: &str) -> Result<u64, StoreError> {
        let sql = "
            UPDATE grants SET lease_until = now_ms + $1 FROM clock
            WHERE lease_until > now_ms + $1 AND substr(attempt_id, 1, CAST($3 AS INTEGER)) = $2";
        let prefix = format!("{replica}.");
        let expire = query(sql).bind(self.offset()).bind(&prefix).bind(prefix.len());
        expire.execute(&self.engine).await
    }
}

fn due_connection(row: &Row) -> Result<Due, StoreError> {
    Ok(Due {
        id: row.parsed("id")?,
        client: row.parsed("client")?,
        rank: row.number("rank")?,
        expires_at: row.time_or_null("expires_at")?,
    })
}
