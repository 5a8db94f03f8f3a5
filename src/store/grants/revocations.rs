//! Deleted connections on their way out: whatever they hold is revoked at the provider first, and a
//! row is forgotten only when that is done or a person has said so.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    fallback::sealed_grant,
    schedule::{list, listed},
    spent_tokens::MARK_SPENT,
};
use crate::{
    domain::{
        connection::{Connection, ConnectionId, LastError},
        grant::SealedGrant,
        slug::Slug,
    },
    seal::secret::Digest,
    store::{
        Store, StoreError,
        connections::{record, select_records},
        engine::{in_transaction, on, row::RowExt},
        millis, now,
    },
};

/// Why a connection stays as `revoked`, or will: the word for a person's task.
pub const REMOVE_AT_PROVIDER: &str = "remove_at_provider";

/// Where a deleted connection holds what is still to be revoked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holding {
    /// As a fallback grant, under this id.
    Fallback(Uuid),
    /// As its grant, of this generation.
    Grant(i64),
    /// As a grant that waited for its account to be confirmed, received at this time.
    Pending(Timestamp),
}

/// Tokens that are still to be revoked, sealed as they were held.
#[derive(Clone, Debug)]
pub struct Revocable {
    /// Where they are held.
    pub holding: Holding,
    /// The grant.
    pub grant: SealedGrant,
}

/// A deleted connection that is claimed for revocation.
#[derive(Clone, Debug)]
pub struct Revoking {
    /// The connection.
    pub connection: Connection,
    /// What is to be revoked next; none when nothing is left.
    pub next: Option<Revocable>,
}

/// How the revocation of a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeletionStep {
    /// All is revoked: the connection is forgotten.
    Forgotten,
    /// It is a person's turn: the connection stays as `revoked`.
    LeftToPerson,
    /// Something is left to be revoked, or it is no longer being revoked.
    NotYet,
}

/// Forgets by which ways a connection could get a grant; the attempts go with their links.
const DELETE_PENDING_CONSENTS: [&str; 2] = [
    "DELETE FROM consent_links WHERE connection_id = $1",
    "DELETE FROM key_exchanges WHERE connection_id = $1",
];

/// Empties a grant and keeps its place: a late one must not take the generation again.
macro_rules! erase_grant {
    ($($rest:expr),*) => {
        concat!(
            "UPDATE grants SET access = NULL, refresh = NULL, scopes = NULL, received_at = NULL,
                expires_at = NULL, parent_hash = NULL, asked_at = NULL, lease_until = NULL,
                attempt_id = NULL, attempt_started_at = NULL, attempt_refresh_hash = NULL,
                attempts = 0, crashes = 0
            WHERE connection_id = $1 ",
            $($rest),*
        )
    };
}

/// Buries the refresh token that was last presented for connection `$2`.
const MARK_PRESENTED_SPENT: &str = concat!(
    "INSERT INTO refresh_tombstones (refresh_hash, connection_id, buried_at)
    SELECT attempt_refresh_hash, connection_id, ",
    now!(),
    " FROM grants WHERE connection_id = $2 AND attempt_refresh_hash IS NOT NULL
    ON CONFLICT DO NOTHING"
);

/// Whether a code of this connection is being exchanged: there is or will be a grant of it.
macro_rules! exchanging {
    ($id:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM code_exchanges WHERE connection_id = ",
            $id,
            " AND ends_at > ",
            now!(),
            ")"
        )
    };
}

/// Puts connection `$2` on the list of what polling replicas must forget.
pub(crate) const LIST_DELETED: &str = concat!(
    "INSERT INTO deleted_connections (id, name, deleted_at) SELECT id, name, ",
    now!(),
    " FROM connections WHERE id = $2 ON CONFLICT (id) DO NOTHING"
);

impl Store {
    /// Forgets a connection that was never granted anything and is not about to be, as
    /// [`Store::delete`] does. False, with nothing changed, when there is or was a grant, a refresh or
    /// the exchange of a code is under way, or there is no such connection.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn delete_ungranted(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let lock = "UPDATE connections SET name = name WHERE id = $1";
        let granted = concat!(
            "SELECT 1 FROM grants WHERE connection_id = $2
                AND (generation > 0 OR lease_until IS NOT NULL)
            UNION ALL SELECT 1 FROM pending_grants WHERE connection_id = $2
            UNION ALL SELECT 1 FROM escrow WHERE connection_id = $2
            UNION ALL SELECT 1 WHERE ",
            exchanging!("$2")
        );
        let id = id.to_string();
        in_transaction!(self, |tx| {
            let locked = sqlx::query(lock).bind(&id).execute(&mut *tx).await?;
            let granted = sqlx::query(granted).bind(self.ahead()).bind(&id);
            let granted = granted.fetch_optional(&mut *tx).await?;
            if locked.rows_affected() == 0 || granted.is_some() {
                return Ok(false);
            }
            sqlx::query(LIST_DELETED).bind(self.ahead()).bind(&id).execute(&mut *tx).await?;
            let forget = "DELETE FROM connections WHERE id = $1";
            sqlx::query(forget).bind(&id).execute(&mut *tx).await?;
        });
        Ok(true)
    }

    /// Begins the end of a connection: it is `revoking` and due, its tokens stay sealed where they
    /// are until they are revoked, and no consent leads to it any more. False when it was begun
    /// already, or there is no such connection.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn begin_deletion(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let begin = concat!(
            "UPDATE connections SET state = 'revoking', reason = NULL, failures = 0,
                last_error_code = NULL, last_error_message = NULL, last_error_at = NULL,
                refresh_at = ",
            now!(),
            ", changed_at = ",
            now!(),
            " WHERE id = $2 AND state NOT IN ('revoked', 'revoking')"
        );
        let id = id.to_string();
        in_transaction!(self, |tx| {
            let begun = sqlx::query(begin).bind(self.ahead()).bind(&id).execute(&mut *tx).await?;
            if begun.rows_affected() == 0 {
                return Ok(false);
            }
            for close in DELETE_PENDING_CONSENTS {
                sqlx::query(close).bind(&id).execute(&mut *tx).await?;
            }
        });
        Ok(true)
    }

    /// Ends a connection whose tokens nobody can revoke from here: it is `revoked` with the reason
    /// [`REMOVE_AT_PROVIDER`], and all that it held is gone. The refresh token `held` and the one
    /// that was presented last are buried. False when there is no such connection.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn require_manual_removal(
        &self,
        id: ConnectionId,
        held: Option<&Digest>,
    ) -> Result<bool, StoreError> {
        let leave = concat!(
            "UPDATE connections SET state = 'revoked', reason = 'remove_at_provider',
                refresh_at = NULL, changed_at = ",
            now!(),
            " WHERE id = $2"
        );
        let id = id.to_string();
        in_transaction!(self, |tx| {
            let left = sqlx::query(leave).bind(self.ahead()).bind(&id).execute(&mut *tx).await?;
            if left.rows_affected() == 0 {
                return Ok(false);
            }
            if let Some(hash) = held {
                let bury =
                    sqlx::query(MARK_SPENT).bind(self.ahead()).bind(hash.to_string()).bind(&id);
                bury.execute(&mut *tx).await?;
            }
            sqlx::query(MARK_PRESENTED_SPENT)
                .bind(self.ahead())
                .bind(&id)
                .execute(&mut *tx)
                .await?;
            let shreds = [
                erase_grant!(),
                "DELETE FROM pending_grants WHERE connection_id = $1",
                "DELETE FROM escrow WHERE connection_id = $1",
            ];
            for sql in shreds.into_iter().chain(DELETE_PENDING_CONSENTS) {
                sqlx::query(sql).bind(&id).execute(&mut *tx).await?;
            }
        });
        Ok(true)
    }

    /// The connections of these clients whose revocation is due, the longest due first. One that is
    /// being refreshed, or revoked by somebody, or whose code is being exchanged, is due when that is
    /// over.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn revocations_due(
        &self,
        clients: impl IntoIterator<Item = &Slug>,
        limit: u32,
    ) -> Result<Vec<(ConnectionId, Slug)>, StoreError> {
        let sql = concat!(
            "SELECT c.id, c.client FROM connections c JOIN grants g ON g.connection_id = c.id
            WHERE c.state = 'revoking' AND ",
            listed!("c.client", "$3"),
            " AND c.refresh_at <= ",
            now!(),
            " AND COALESCE(g.lease_until, 0) <= ",
            now!(),
            " AND NOT ",
            exchanging!("c.id"),
            " ORDER BY c.refresh_at, c.id LIMIT $2"
        );
        on!(self, |pool| {
            let rows = sqlx::query(sql)
                .bind(self.ahead())
                .bind(i64::from(limit))
                .bind(list(clients))
                .fetch_all(pool)
                .await?;
            let due = |row| Ok((RowExt::parsed(row, "id")?, RowExt::parsed(row, "client")?));
            rows.iter().map(due).collect()
        })
    }

    /// Claims a connection that is due to be revoked, for `lease`. None when somebody else holds its
    /// claim, its code is being exchanged, it is not due, or it is not being revoked.
    ///
    /// # Errors
    ///
    /// When the database does not answer; a claim that stands all the same runs out.
    pub async fn claim_revocation(
        &self,
        id: ConnectionId,
        attempt: &str,
        lease: Duration,
    ) -> Result<Option<Revoking>, StoreError> {
        let claim = concat!(
            "UPDATE grants SET lease_until = ",
            now!(),
            " + $4, attempt_id = $3, attempt_started_at = ",
            now!(),
            " WHERE connection_id = $2 AND COALESCE(lease_until, 0) <= ",
            now!(),
            " AND EXISTS (SELECT 1 FROM connections
                WHERE id = $2 AND state = 'revoking' AND refresh_at <= ",
            now!(),
            ") AND NOT ",
            exchanging!("$2")
        );
        let read = select_records!("WHERE c.id = $1");
        let fallback = "SELECT * FROM escrow WHERE connection_id = $1
            ORDER BY put_at, id LIMIT 1";
        let id = id.to_string();
        Ok(in_transaction!(self, |tx| {
            let claimed = sqlx::query(claim)
                .bind(self.ahead())
                .bind(&id)
                .bind(attempt)
                .bind(millis(lease))
                .execute(&mut *tx)
                .await?;
            if claimed.rows_affected() == 0 {
                return Ok(None);
            }
            let record = record(&sqlx::query(read).bind(&id).fetch_one(&mut *tx).await?)?;
            let next = if let Some(grant) = record.grant {
                Some(Revocable { holding: Holding::Grant(grant.generation()), grant })
            } else if let Some(pending) = record.pending {
                let holding = Holding::Pending(pending.grant.received_at);
                Some(Revocable { holding, grant: pending.grant })
            } else {
                let row = sqlx::query(fallback).bind(&id).fetch_optional(&mut *tx).await?;
                row.as_ref().map(revocable).transpose()?
            };
            Some(Revoking { connection: record.connection, next })
        }))
    }

    /// Shreds what was revoked, or what the provider refused to revoke; then it will be a person's
    /// task, with the refusal as the last error. The claim ends, and what is left is due. The refresh
    /// token is buried. False when this attempt no longer holds the claim: nothing is shredded then.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn erase_token(
        &self,
        id: ConnectionId,
        attempt: &str,
        holding: Holding,
        refresh: Option<&Digest>,
        refusal: Option<&LastError>,
    ) -> Result<bool, StoreError> {
        let describe = concat!(
            "UPDATE connections SET failures = 0, changed_at = ",
            now!(),
            ", reason = CASE WHEN $3 IS NULL THEN reason ELSE 'remove_at_provider' END,
                last_error_code = COALESCE($3, last_error_code),
                last_error_message = COALESCE($4, last_error_message),
                last_error_at = COALESCE($5, last_error_at)
            WHERE id = $2 AND state = 'revoking'"
        );
        let text = id.to_string();
        in_transaction!(self.durable(), |tx| {
            let described = sqlx::query(describe)
                .bind(self.ahead())
                .bind(&text)
                .bind(refusal.map(|error| error.code.as_str()))
                .bind(refusal.map(|error| error.message.as_str()))
                .bind(refusal.map(|error| error.at.as_millisecond()))
                .execute(&mut *tx)
                .await?;
            let released = sqlx::query(RELEASE).bind(&text).bind(attempt).execute(&mut *tx).await?;
            if described.rows_affected() == 0 || released.rows_affected() == 0 {
                return Ok(false);
            }
            if let Some(hash) = refresh {
                let bury =
                    sqlx::query(MARK_SPENT).bind(self.ahead()).bind(hash.to_string()).bind(&text);
                bury.execute(&mut *tx).await?;
            }
            let shredded = match holding {
                Holding::Grant(generation) => {
                    let sql = erase_grant!("AND generation = $2");
                    sqlx::query(sql).bind(&text).bind(generation).execute(&mut *tx).await
                }
                Holding::Pending(received_at) => {
                    let sql =
                        "DELETE FROM pending_grants WHERE connection_id = $1 AND received_at = $2";
                    let received_at = received_at.as_millisecond();
                    sqlx::query(sql).bind(&text).bind(received_at).execute(&mut *tx).await
                }
                Holding::Fallback(escrowed) => {
                    let sql = "DELETE FROM escrow WHERE connection_id = $1 AND id = $2";
                    sqlx::query(sql).bind(&text).bind(escrowed.to_string()).execute(&mut *tx).await
                }
            };
            shredded?;
        });
        Ok(true)
    }

    /// Puts a revocation off that failed for a passing reason: nothing is shredded. The claim ends.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the claim then runs out, and it is tried again.
    pub async fn defer_revocation(
        &self,
        id: ConnectionId,
        attempt: &str,
        error: &LastError,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let describe = concat!(
            "UPDATE connections SET failures = failures + 1, refresh_at = $3, last_error_code = $4,
                last_error_message = $5, last_error_at = $6, changed_at = ",
            now!(),
            " WHERE id = $2 AND state = 'revoking'
                AND EXISTS (SELECT 1 FROM grants WHERE connection_id = $2 AND attempt_id = $7)"
        );
        let id = id.to_string();
        in_transaction!(self, |tx| {
            sqlx::query(describe)
                .bind(self.ahead())
                .bind(&id)
                .bind(until.as_millisecond())
                .bind(&error.code)
                .bind(&error.message)
                .bind(error.at.as_millisecond())
                .bind(attempt)
                .execute(&mut *tx)
                .await?;
            sqlx::query(RELEASE).bind(&id).bind(attempt).execute(&mut *tx).await?;
        });
        Ok(())
    }

    /// Ends a revocation when nothing is left to be revoked.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn finish_deletion(
        &self,
        id: ConnectionId,
        attempt: &str,
    ) -> Result<DeletionStep, StoreError> {
        // Locks the connection: what is stored for it meanwhile comes before or after all of this.
        let lock = concat!(
            "UPDATE connections SET changed_at = ",
            now!(),
            " WHERE id = $2 AND state = 'revoking'"
        );
        let left = "SELECT 1 FROM grants WHERE connection_id = $1
                AND (access IS NOT NULL OR COALESCE(attempt_id, '') <> $2)
            UNION ALL SELECT 1 FROM pending_grants WHERE connection_id = $1
            UNION ALL SELECT 1 FROM escrow WHERE connection_id = $1";
        let leave = "UPDATE connections SET state = 'revoked', refresh_at = NULL
            WHERE id = $1 AND reason = 'remove_at_provider'";
        let id = id.to_string();
        Ok(in_transaction!(self, |tx| {
            let locked = sqlx::query(lock).bind(self.ahead()).bind(&id).execute(&mut *tx).await?;
            let left = sqlx::query(left).bind(&id).bind(attempt).fetch_optional(&mut *tx).await?;
            sqlx::query(RELEASE).bind(&id).bind(attempt).execute(&mut *tx).await?;
            if locked.rows_affected() == 0 || left.is_some() {
                DeletionStep::NotYet
            } else if sqlx::query(leave).bind(&id).execute(&mut *tx).await?.rows_affected() == 1 {
                DeletionStep::LeftToPerson
            } else {
                sqlx::query(LIST_DELETED).bind(self.ahead()).bind(&id).execute(&mut *tx).await?;
                let forget = "DELETE FROM connections WHERE id = $1";
                sqlx::query(forget).bind(&id).execute(&mut *tx).await?;
                DeletionStep::Forgotten
            }
        }))
    }
}

/// Lets go of the claim that this attempt holds.
const RELEASE: &str = "UPDATE grants SET lease_until = NULL, attempt_id = NULL,
        attempt_started_at = NULL
    WHERE connection_id = $1 AND attempt_id = $2";

fn revocable(row: &impl RowExt) -> Result<Revocable, StoreError> {
    Ok(Revocable { holding: Holding::Fallback(row.parsed("id")?), grant: sealed_grant(row)? })
}
