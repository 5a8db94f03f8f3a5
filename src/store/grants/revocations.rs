//! Deletion: all that a connection holds is revoked at the provider first, and its row is deleted only
//! when that is done or a person has said so.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{
    fallback::sealed_grant,
    spent_tokens::mark_spent,
    transitions::{Schedule, Transition},
};
use crate::{
    domain::{
        connection::{Connection, ConnectionId, LastError, State},
        grant::{PendingGrant, SealedGrant},
        record::Record,
        slug::Slug,
    },
    seal::secret::Digest,
    store::{
        DurableStore, Store, StoreError,
        connections::{delete_listed, record, select_records},
        engine::{
            row::Row,
            statement::{Statement, Tx, placeholders, query},
        },
    },
};

/// The reason of a connection that is `revoked`, or will be: a person has to remove the application at
/// the provider.
pub const REMOVE_AT_PROVIDER: &str = "remove_at_provider";

/// Where a deleted connection holds tokens that are still to be revoked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holding {
    /// As a fallback grant with this id.
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
    /// The tokens to revoke next; none when nothing is left.
    pub next: Option<Revocable>,
}

/// How the revocation of a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeletionStep {
    /// All is revoked: the connection is deleted.
    Forgotten,
    /// The rest is a person's task: the connection stays as `revoked`.
    LeftToPerson,
    /// Something is left to be revoked, or it is no longer being revoked.
    NotYet,
}

/// Empties the grant of a connection and keeps its generation, which a late grant must not take again.
const ERASE_GRANT: &str = "
    UPDATE grants SET access = NULL, refresh = NULL, scopes = NULL, received_at = NULL,
        expires_at = NULL, parent_hash = NULL, asked_at = NULL, lease_until = NULL,
        attempt_id = NULL, attempt_started_at = NULL, attempt_refresh_hash = NULL, attempts = 0,
        abandoned_attempts = 0
    WHERE connection_id = $1";

impl Store {
    /// Deletes a connection that was never granted anything and is not about to be, as
    /// [`Store::delete`] does. False, with nothing changed, when there is or was a grant, a refresh or
    /// the exchange of a code is under way, or there is no such connection.
    pub async fn delete_ungranted(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let granted = "
            SELECT 1 FROM grants
                WHERE connection_id = $2 AND (generation > 0 OR lease_until IS NOT NULL)
            UNION ALL SELECT 1 FROM pending_grants WHERE connection_id = $2
            UNION ALL SELECT 1 FROM fallback_grants WHERE connection_id = $2
            UNION ALL SELECT 1 FROM code_exchanges
                WHERE connection_id = $2 AND ends_at > (SELECT now_ms FROM clock) + $1";
        let mut tx = self.begin().await?;
        if !tx.lock_connection(id).await?
            || query(granted).bind(self.offset()).bind(id).finds(&mut tx).await?
        {
            return tx.roll_back(false);
        }
        delete_listed(&mut tx, id, self.offset()).await?;
        tx.commit(true).await
    }

    /// Begins the deletion of a connection: it is `revoking` and due, its tokens stay sealed where they
    /// are until they are revoked, and no consent leads to it any more. False when it was begun
    /// already, or there is no such connection.
    pub async fn begin_deletion(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let begin = "
            UPDATE connections SET state = 'revoking', reason = NULL, failures = 0,
                last_error_code = NULL, last_error_message = NULL, last_error_at = NULL,
                refresh_at = now_ms + $1, changed_at = now_ms + $1
            FROM clock
            WHERE id = $2 AND state NOT IN ('revoked', 'revoking')";
        let mut tx = self.begin().await?;
        let begun = query(begin).bind(self.offset()).bind(id).execute(&mut tx).await?;
        if begun == 0 {
            return tx.roll_back(false);
        }
        delete_pending_consents(&mut tx, id).await?;
        tx.commit(true).await
    }

    /// Ends a connection whose tokens cannot be revoked from here: it is `revoked` with the reason
    /// [`REMOVE_AT_PROVIDER`], and all that it held is gone. The refresh token `held` and the one
    /// that was presented last are marked as spent. False when there is no such connection.
    pub async fn require_manual_removal(
        &self,
        id: ConnectionId,
        held: Option<&Digest>,
    ) -> Result<bool, StoreError> {
        let end = "
            UPDATE connections SET state = 'revoked', reason = 'remove_at_provider',
                refresh_at = NULL, changed_at = (SELECT now_ms FROM clock) + $1
            WHERE id = $2";
        let mark_presented_spent = "
            INSERT INTO spent_tokens (refresh_hash, connection_id, marked_at)
            SELECT attempt_refresh_hash, connection_id, (SELECT now_ms FROM clock) + $1
            FROM grants WHERE connection_id = $2 AND attempt_refresh_hash IS NOT NULL
            ON CONFLICT DO NOTHING";
        let mut tx = self.begin().await?;
        if query(end).bind(self.offset()).bind(id).execute(&mut tx).await? == 0 {
            return tx.roll_back(false);
        }
        if let Some(hash) = held {
            mark_spent(id, hash, self.offset()).execute(&mut tx).await?;
        }
        query(mark_presented_spent).bind(self.offset()).bind(id).execute(&mut tx).await?;
        for sql in [
            ERASE_GRANT,
            "DELETE FROM pending_grants WHERE connection_id = $1",
            "DELETE FROM fallback_grants WHERE connection_id = $1",
        ] {
            query(sql).bind(id).execute(&mut tx).await?;
        }
        delete_pending_consents(&mut tx, id).await?;
        tx.commit(true).await
    }

    /// The connections of these clients whose revocation is due, the longest due first. A connection
    /// that is being refreshed, is being revoked already, or whose code is being exchanged is due when
    /// that is over.
    pub async fn revocations_due(
        &self,
        clients: impl IntoIterator<Item = &Slug>,
        limit: u32,
    ) -> Result<Vec<(ConnectionId, Slug)>, StoreError> {
        let clients: Vec<_> = clients.into_iter().collect();
        if clients.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT c.id, c.client FROM connections c JOIN grants g ON g.connection_id = c.id
            WHERE c.state = 'revoking' AND c.client IN {}
                AND c.refresh_at <= (SELECT now_ms FROM clock) + $1
                AND COALESCE(g.lease_until, 0) <= (SELECT now_ms FROM clock) + $1
                AND NOT EXISTS (
                    SELECT 1 FROM code_exchanges e
                    WHERE e.connection_id = c.id AND e.ends_at > (SELECT now_ms FROM clock) + $1)
            ORDER BY c.refresh_at, c.id LIMIT $2",
            placeholders(3, clients.len())
        );
        let due = query(AssertSqlSafe(sql)).bind(self.offset()).bind(limit).bind_all(clients);
        let rows = due.fetch_all(&self.engine).await?;
        rows.iter().map(|row| Ok((row.parsed("id")?, row.parsed("client")?))).collect()
    }

    /// Claims a connection that is due to be revoked, for `lease`. None when it is claimed already,
    /// its code is being exchanged, it is not due, or it is not being revoked. When the database does
    /// not answer, a claim that stands all the same ends with its lease.
    pub async fn claim_revocation(
        &self,
        id: ConnectionId,
        attempt: &str,
        lease: Duration,
    ) -> Result<Option<Revoking>, StoreError> {
        let claim = "
            UPDATE grants SET lease_until = now_ms + $1 + $4, attempt_id = $3,
                attempt_started_at = now_ms + $1
            FROM clock
            WHERE connection_id = $2 AND COALESCE(lease_until, 0) <= now_ms + $1
                AND EXISTS (
                    SELECT 1 FROM connections
                    WHERE id = $2 AND state = 'revoking' AND refresh_at <= now_ms + $1)
                AND NOT EXISTS (
                    SELECT 1 FROM code_exchanges
                    WHERE connection_id = $2 AND ends_at > now_ms + $1)";
        let mut tx = self.begin().await?;
        let claimed = query(claim)
            .bind(self.offset())
            .bind(id)
            .bind(attempt)
            .bind(lease)
            .execute(&mut tx)
            .await?;
        if claimed == 0 {
            return tx.roll_back(None);
        }
        let read = select_records("WHERE c.id = $1").bind(id);
        let record = record(&read.fetch_one(&mut tx).await?)?;
        let next = revocable(&mut tx, &record).await?;
        tx.commit(Some(Revoking { connection: record.connection, next })).await
    }

    /// Postpones a revocation that failed for a passing reason: nothing is erased. The claim ends.
    pub async fn defer_revocation(
        &self,
        id: ConnectionId,
        attempt: &str,
        error: &LastError,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let claimed = "SELECT 1 FROM grants WHERE connection_id = $1 AND attempt_id = $2";
        let defer = Transition {
            error: Some(error),
            schedule: Schedule::At(until),
            fails: true,
            ..Transition::within(|state| state == State::Revoking)
        };
        let mut tx = self.begin().await?;
        defer.apply(&mut tx, id, self.offset()).await?;
        // Read under the lock of the update.
        if !query(claimed).bind(id).bind(attempt).finds(&mut tx).await? {
            return tx.roll_back(());
        }
        release(id, attempt).execute(&mut tx).await?;
        tx.commit(()).await
    }

    /// Ends a revocation when nothing is left to be revoked.
    pub async fn finish_deletion(
        &self,
        id: ConnectionId,
        attempt: &str,
    ) -> Result<DeletionStep, StoreError> {
        // Locks the connection: what is stored for it meanwhile comes before or after all of this.
        let touch = "
            UPDATE connections SET changed_at = (SELECT now_ms FROM clock) + $1
            WHERE id = $2 AND state = 'revoking'";
        let left = "
            SELECT 1 FROM grants
                WHERE connection_id = $1
                    AND (access IS NOT NULL OR COALESCE(attempt_id, '') <> $2)
            UNION ALL SELECT 1 FROM pending_grants WHERE connection_id = $1
            UNION ALL SELECT 1 FROM fallback_grants WHERE connection_id = $1";
        let leave_to_person = "
            UPDATE connections SET state = 'revoked', refresh_at = NULL
            WHERE id = $1 AND reason = 'remove_at_provider'";
        let mut tx = self.begin().await?;
        let touched = query(touch).bind(self.offset()).bind(id).execute(&mut tx).await?;
        let left = query(left).bind(id).bind(attempt).finds(&mut tx).await?;
        release(id, attempt).execute(&mut tx).await?;
        if touched == 0 || left {
            return tx.commit(DeletionStep::NotYet).await;
        }
        if query(leave_to_person).bind(id).execute(&mut tx).await? == 1 {
            return tx.commit(DeletionStep::LeftToPerson).await;
        }
        delete_listed(&mut tx, id, self.offset()).await?;
        tx.commit(DeletionStep::Forgotten).await
    }
}

impl DurableStore {
    /// Erases tokens that were revoked, or that the provider refused to revoke; the rest is then a
    /// person's task, with the refusal as the last error. The claim ends, and what is left is due. The
    /// refresh token is marked as spent. False, with nothing erased, when this attempt no longer holds
    /// the claim.
    pub async fn erase_token(
        self,
        id: ConnectionId,
        attempt: &str,
        holding: Holding,
        refresh: Option<&Digest>,
        refusal: Option<&LastError>,
    ) -> Result<bool, StoreError> {
        let describe = "
            UPDATE connections SET failures = 0,
                reason = CASE WHEN $3 IS NULL THEN reason ELSE 'remove_at_provider' END,
                last_error_code = COALESCE($3, last_error_code),
                last_error_message = COALESCE($4, last_error_message),
                last_error_at = COALESCE($5, last_error_at),
                changed_at = (SELECT now_ms FROM clock) + $1
            WHERE id = $2 AND state = 'revoking'";
        let mut tx = self.0.begin().await?;
        let described = query(describe)
            .bind(self.0.offset())
            .bind(id)
            .bind(refusal.map(|error| &error.code))
            .bind(refusal.map(|error| &error.message))
            .bind(refusal.map(|error| error.at))
            .execute(&mut tx)
            .await?;
        let released = release(id, attempt).execute(&mut tx).await?;
        if described == 0 || released == 0 {
            return tx.roll_back(false);
        }
        if let Some(hash) = refresh {
            mark_spent(id, hash, self.0.offset()).execute(&mut tx).await?;
        }
        let erase = match holding {
            Holding::Grant(generation) => {
                let sql = format!("{ERASE_GRANT} AND generation = $2");
                query(AssertSqlSafe(sql)).bind(id).bind(generation)
            }
            Holding::Pending(received_at) => {
                let sql =
                    "DELETE FROM pending_grants WHERE connection_id = $1 AND received_at = $2";
                query(sql).bind(id).bind(received_at)
            }
            Holding::Fallback(fallback) => {
                let sql = "DELETE FROM fallback_grants WHERE connection_id = $1 AND id = $2";
                query(sql).bind(id).bind(fallback)
            }
        };
        erase.execute(&mut tx).await?;
        tx.commit(true).await
    }
}

/// The tokens of a connection to revoke next: its grant, the one that waits for confirmation, then
/// each fallback grant.
async fn revocable(tx: &mut Tx, record: &Record) -> Result<Option<Revocable>, StoreError> {
    if let Some(grant) = record.grant.clone() {
        return Ok(Some(Revocable { holding: Holding::Grant(grant.generation()), grant }));
    }
    if let Some(PendingGrant { grant, .. }) = record.pending.clone() {
        return Ok(Some(Revocable { holding: Holding::Pending(grant.received_at), grant }));
    }
    let fallback = "
        SELECT id, generation, access, refresh, scopes, received_at, expires_at, parent_hash, asked_at
        FROM fallback_grants WHERE connection_id = $1 ORDER BY stored_at, id LIMIT 1";
    let row = query(fallback).bind(record.connection.id).fetch_optional(tx).await?;
    let revocable = |row: &Row| {
        let holding = Holding::Fallback(row.parsed("id")?);
        Ok(Revocable { holding, grant: sealed_grant(row)? })
    };
    row.as_ref().map(revocable).transpose()
}

/// Releases the claim that this attempt holds.
fn release(id: ConnectionId, attempt: &str) -> Statement {
    let sql = "
        UPDATE grants SET lease_until = NULL, attempt_id = NULL, attempt_started_at = NULL
        WHERE connection_id = $1 AND attempt_id = $2";
    query(sql).bind(id).bind(attempt)
}

/// Deletes all by which a connection could get a grant; the attempts go with their links.
async fn delete_pending_consents(tx: &mut Tx, id: ConnectionId) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM consent_links WHERE connection_id = $1",
        "DELETE FROM key_exchanges WHERE connection_id = $1",
    ] {
        query(sql).bind(id).execute(&mut *tx).await?;
    }
    Ok(())
}
