//! The two ends of a refresh: a grant is stored, or the failure is recorded.

use jiff::Timestamp;
use sqlx::AssertSqlSafe;
use strum::VariantArray as _;

use super::refreshing_states;
use crate::{
    domain::{
        connection::{Account, Connection, ConnectionId, LastError, State, Vars},
        consent::CONFIRM_LIFE,
        grant::SealedGrant,
    },
    seal::secret::Digest,
    store::{DurableStore, StoreError, engine::statement::query, identity::COUNT_GRANT, json},
};

/// Where a grant comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A consent, perhaps for another account: the grants before it are not of this account.
    Consent {
        /// The connection as it was when the grant was accepted for it. The grant is stored only if the
        /// account is still the same and the connection was not deleted meanwhile.
        judged: &'a Connection,
    },
    /// A refresh of the grant before it, or a client that needs no consent.
    Refresh,
}

/// A grant to be stored, if the connection still holds the generation before it.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// Whose it is.
    pub connection: ConnectionId,
    /// The grant; its generation is one more than the one it replaces.
    pub grant: &'a SealedGrant,
    /// Where it comes from.
    pub source: Source<'a>,
    /// When the next refresh is due.
    pub refresh_at: Option<Timestamp>,
    /// Whose account it is; none leaves what is known.
    pub account: Option<&'a Account>,
    /// The connection's variables; none leaves what is known.
    pub vars: Option<&'a Vars>,
    /// The scopes to ask for from now on; none leaves them.
    pub scopes: Option<&'a [String]>,
    /// The token endpoint that issued the grant, as the profile has it; none leaves what is known.
    pub token_url: Option<&'a str>,
    /// The digest of the grant's refresh token: another one that was presented for it is spent.
    pub refresh_hash: Option<Digest>,
}

impl<'a> Commit<'a> {
    /// The commit of a refresh: all that is known of the connection stays.
    pub fn refreshed(
        connection: ConnectionId,
        grant: &'a SealedGrant,
        refresh_at: Option<Timestamp>,
        refresh_hash: Option<Digest>,
    ) -> Self {
        Self {
            connection,
            grant,
            source: Source::Refresh,
            refresh_at,
            account: None,
            vars: None,
            scopes: None,
            token_url: None,
            refresh_hash,
        }
    }
}

/// A refresh that brought no grant.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// Whose refresh it was.
    pub connection: ConnectionId,
    /// The generation it started from.
    pub from_generation: i64,
    /// The attempt that claimed it.
    pub attempt: &'a str,
    /// The state it leads to. [`State::Uncertain`] keeps the attempt as evidence.
    pub state: State,
    /// Why, for a state that needs a reason.
    pub reason: Option<&'a str>,
    /// What went wrong.
    pub error: &'a LastError,
    /// When to try again.
    pub refresh_at: Option<Timestamp>,
    /// Passing failures in a row, this one included.
    pub failures: u32,
}

impl DurableStore {
    /// Stores a grant if the connection still holds the generation before it, whoever holds the
    /// lease. False, with nothing changed, when it does not.
    ///
    /// The connection becomes active, the claim and its failures end, and a refresh token that was
    /// presented for the grant is spent unless it is the grant's own. A consent also deletes the
    /// fallback grants, and is refused when the account is another one than it was accepted for.
    ///
    /// A connection that is being revoked stays so: it takes the grant of a refresh, to revoke it, and
    /// none of a consent. One that is revoked takes no grant. One in quarantine stays there.
    pub async fn commit_grant(self, commit: &Commit<'_>) -> Result<bool, StoreError> {
        self.commit(commit, false).await
    }

    /// Stores the grant that waits to be confirmed, as [`DurableStore::commit_grant`] does, and deletes
    /// it from where it waited. False, too, when another grant waits there by now or it waited longer
    /// than [`CONFIRM_LIFE`].
    pub async fn commit_confirmed(self, commit: &Commit<'_>) -> Result<bool, StoreError> {
        self.commit(commit, true).await
    }

    async fn commit(self, commit: &Commit<'_>, confirms: bool) -> Result<bool, StoreError> {
        let activate = "
            UPDATE connections SET
                state = CASE WHEN state IN ('revoking', 'quarantined') THEN state ELSE 'active' END,
                reason = CASE WHEN state IN ('revoking', 'quarantined') THEN reason END,
                account_id = CASE WHEN $4 IS NULL THEN account_id ELSE $4 END,
                account_name = CASE WHEN $4 IS NULL THEN account_name ELSE $5 END,
                account_aliases = CASE WHEN $4 IS NULL THEN account_aliases ELSE $6 END,
                vars = COALESCE($7, vars), scopes = COALESCE($8, scopes),
                token_url = COALESCE($9, token_url),
                refresh_at = CASE WHEN state = 'revoking' THEN refresh_at ELSE $3 END,
                failures = 0,
                last_error_code = NULL, last_error_message = NULL, last_error_at = NULL,
                changed_at = (SELECT now_ms FROM clock) + $1
            WHERE id = $2 AND state <> 'revoked'
                AND ($10 = 0 OR state <> 'revoking' AND account_id IS NOT DISTINCT FROM $11)";
        let mark_presented_spent = "
            INSERT INTO spent_tokens (refresh_hash, connection_id, marked_at)
            SELECT attempt_refresh_hash, connection_id, (SELECT now_ms FROM clock) + $1
            FROM grants WHERE connection_id = $2 AND attempt_refresh_hash IS NOT NULL
                AND attempt_refresh_hash <> COALESCE($3, '')
            ON CONFLICT DO NOTHING";
        let replace = "
            UPDATE grants SET generation = $3, access = $4, refresh = $5, scopes = $6,
                received_at = $7, expires_at = $8, parent_hash = $9, asked_at = $10,
                consented_generation = CASE WHEN $11 = 1 THEN $3 ELSE consented_generation END,
                lease_until = NULL, attempt_id = NULL, attempt_started_at = NULL,
                attempt_refresh_hash = NULL, attempts = 0, abandoned_attempts = 0
            WHERE connection_id = $1 AND generation = $2";
        let take_pending = "
            DELETE FROM pending_grants
            WHERE connection_id = $2 AND received_at = $3
                AND received_at > (SELECT now_ms FROM clock) + $1 - $4";
        let (id, grant, offset) = (commit.connection, commit.grant, self.0.offset());
        let origin = grant.origin.as_ref();
        let (consented, accepted_for) = match commit.source {
            Source::Consent { judged } => (true, judged.account.as_ref()),
            Source::Refresh => (false, None),
        };
        let mut tx = self.0.begin().await?;
        let activated = query(activate)
            .bind(offset)
            .bind(id)
            .bind(commit.refresh_at)
            .bind(commit.account.map(|account| &account.id))
            .bind(commit.account.and_then(|account| account.name.as_deref()))
            .bind(commit.account.map(|account| json(&account.aliases)))
            .bind(commit.vars.map(json))
            .bind(commit.scopes.map(json))
            .bind(commit.token_url)
            .bind(consented)
            .bind(accepted_for.map(|account| &account.id))
            .execute(&mut tx)
            .await?;
        if activated == 0 {
            return tx.roll_back(false);
        }
        query(mark_presented_spent)
            .bind(offset)
            .bind(id)
            .bind(commit.refresh_hash)
            .execute(&mut tx)
            .await?;
        let replaced = query(replace)
            .bind(id)
            .bind(grant.generation() - 1)
            .bind(grant.generation())
            .bind(&grant.access)
            .bind(grant.refresh.as_ref())
            .bind(json(&grant.scopes))
            .bind(grant.received_at)
            .bind(grant.expires_at)
            .bind(origin.and_then(|origin| origin.parent))
            .bind(origin.map(|origin| origin.asked_at))
            .bind(consented)
            .execute(&mut tx)
            .await?;
        if replaced == 0 {
            return tx.roll_back(false);
        }
        if consented {
            let sql = "DELETE FROM fallback_grants WHERE connection_id = $1";
            query(sql).bind(id).execute(&mut tx).await?;
        }
        if confirms {
            let taken = query(take_pending)
                .bind(offset)
                .bind(id)
                .bind(grant.received_at)
                .bind(CONFIRM_LIFE)
                .execute(&mut tx)
                .await?;
            if taken == 0 {
                return tx.roll_back(false);
            }
        }
        query(COUNT_GRANT).execute(&mut tx).await?;
        tx.commit(true).await
    }

    /// Records a refresh that brought no grant, and releases its lease. False, with nothing changed,
    /// when a grant was stored meanwhile or the claim went to somebody else.
    ///
    /// A connection that left the refreshing states meanwhile keeps its state.
    pub async fn record_failure(self, failure: &Failure<'_>) -> Result<bool, StoreError> {
        debug_assert!(
            State::VARIANTS.iter().all(|from| !from.refreshes() || from.may_become(failure.state)),
            "not in the table of transitions: a failed refresh to {}",
            failure.state
        );
        let refreshing = refreshing_states();
        let describe = format!(
            "UPDATE connections SET
                state = CASE WHEN state IN {refreshing} THEN $3 ELSE state END,
                reason = CASE WHEN state IN {refreshing} THEN $4 ELSE reason END,
                last_error_code = $5, last_error_message = $6, last_error_at = $7,
                refresh_at = CASE WHEN state IN ('revoked', 'revoking') THEN refresh_at ELSE $8 END,
                failures = $9, changed_at = (SELECT now_ms FROM clock) + $1
            WHERE id = $2"
        );
        let mark_presented_spent = "
            INSERT INTO spent_tokens (refresh_hash, connection_id, marked_at)
            SELECT attempt_refresh_hash, connection_id, (SELECT now_ms FROM clock) + $1
            FROM grants WHERE connection_id = $2 AND attempt_id = $3
                AND attempt_refresh_hash IS NOT NULL
            ON CONFLICT DO NOTHING";
        let release = match failure.state {
            // The attempt stays as evidence.
            State::Uncertain => {
                "UPDATE grants SET lease_until = NULL
                WHERE connection_id = $1 AND generation = $2 AND attempt_id = $3"
            }
            // The refused token stays known, in case many are refused and the verdict is taken back.
            State::NeedsConsent => {
                "UPDATE grants SET lease_until = NULL, attempts = attempts - 1
                WHERE connection_id = $1 AND generation = $2 AND attempt_id = $3"
            }
            _ => {
                "UPDATE grants SET lease_until = NULL, attempt_id = NULL,
                    attempt_started_at = NULL, attempt_refresh_hash = NULL, attempts = attempts - 1
                WHERE connection_id = $1 AND generation = $2 AND attempt_id = $3"
            }
        };
        let (id, offset) = (failure.connection, self.0.offset());
        let mut tx = self.0.begin().await?;
        query(AssertSqlSafe(describe))
            .bind(offset)
            .bind(id)
            .bind(failure.state)
            .bind(failure.reason)
            .bind(&failure.error.code)
            .bind(&failure.error.message)
            .bind(failure.error.at)
            .bind(failure.refresh_at)
            .bind(failure.failures)
            .execute(&mut tx)
            .await?;
        if failure.state == State::NeedsConsent {
            let mark = query(mark_presented_spent).bind(offset).bind(id).bind(failure.attempt);
            mark.execute(&mut tx).await?;
        }
        let released = query(release)
            .bind(id)
            .bind(failure.from_generation)
            .bind(failure.attempt)
            .execute(&mut tx)
            .await?;
        if released == 0 {
            return tx.roll_back(false);
        }
        tx.commit(true).await
    }
}
