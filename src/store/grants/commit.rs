use jiff::Timestamp;

use crate::{
    domain::{
        connection::{Account, Connection, ConnectionId, LastError, State, Vars},
        consent::CONFIRM_LIFE,
        grant::SealedGrant,
    },
    seal::{Sealed, secret::Digest},
    store::{
        Store, StoreError, engine::in_transaction, identity::COUNT_GRANT, json, millis, now,
        optional_millis,
    },
};

/// The words of the states for which [`State::refreshes`] holds.
macro_rules! refreshing {
    () => {
        "('active', 'backing_off', 'blocked_config', 'suspect', 'uncertain')"
    };
}
pub(crate) use refreshing;

/// Drops the grant of connection `$2` that waits to be confirmed: the one received at `$3`, `$4` ago at
/// most.
const CONFIRM: &str = concat!(
    "DELETE FROM pending_grants
    WHERE connection_id = $2 AND received_at = $3 AND received_at > ",
    now!(),
    " - $4"
);

/// Where a grant comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Somebody consented, for another account perhaps: what came before is not theirs.
    Consent {
        /// The connection as it was when somebody judged whether the grant is for it: the grant lands
        /// only if the account is still the same, and nobody deleted the connection meanwhile.
        judged: &'a Connection,
    },
    /// It follows from the grant before it, or nobody has to consent.
    Refresh,
}

/// A grant to be stored. It lands if the connection still holds the generation before it.
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
    /// The commit of a grant that nobody consented to anew: all that is known of the connection
    /// stays.
    #[must_use]
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

impl Store {
    /// Stores a grant if the connection still holds the generation before it, whoever holds the
    /// lease: the connection is active, its claim and its failures are over. A consent empties its
    /// escrow. False, with nothing changed, when another grant was stored first, the account is another
    /// than was judged, or the connection is gone.
    ///
    /// A connection that is being revoked stays so, with the grant of a refresh to revoke, and takes none
    /// of a consent: what it held is still to be revoked. One that is revoked takes none at all. One that is quarantined stays so until it is released.
    ///
    /// # Errors
    ///
    /// When the database does not answer; the same commit may be tried again for as long as it takes.
    pub async fn commit_grant(&self, commit: &Commit<'_>) -> Result<bool, StoreError> {
        self.commit(commit, false).await
    }

    /// Stores the pending grant whose account was confirmed, sealed anew, as
    /// [`Store::commit_grant`] does, and drops it from where it waited. False, too, when another
    /// grant waits there by now or it waited longer than [`CONFIRM_LIFE`].
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn commit_confirmed(&self, commit: &Commit<'_>) -> Result<bool, StoreError> {
        self.commit(commit, true).await
    }

    async fn commit(&self, commit: &Commit<'_>, confirms: bool) -> Result<bool, StoreError> {
        let activate = concat!(
            "UPDATE connections SET
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
                changed_at = ",
            now!(),
            " WHERE id = $2 AND state <> 'revoked'
                AND ($10 = 0 OR state <> 'revoking' AND account_id IS NOT DISTINCT FROM $11)"
        );
        let replace = "UPDATE grants SET generation = $3, access = $4, refresh = $5, scopes = $6,
                received_at = $7, expires_at = $8, parent_hash = $9, asked_at = $10,
                consented = CASE WHEN $11 THEN $3 ELSE consented END,
                lease_until = NULL, attempt_id = NULL, attempt_started_at = NULL,
                attempt_refresh_hash = NULL, attempts = 0, crashes = 0
            WHERE connection_id = $1 AND generation = $2";
        let bury = concat!(
            "INSERT INTO refresh_tombstones (refresh_hash, connection_id, buried_at)
            SELECT attempt_refresh_hash, connection_id, ",
            now!(),
            " FROM grants WHERE connection_id = $2 AND attempt_refresh_hash IS NOT NULL
                AND attempt_refresh_hash <> COALESCE($3, '')
            ON CONFLICT DO NOTHING"
        );
        let Commit { connection, grant, .. } = commit;
        let id = connection.to_string();
        let origin = grant.origin.as_ref();
        let (consented, judged_for) = match commit.source {
            Source::Consent { judged } => (true, judged.account.as_ref()),
            Source::Refresh => (false, None),
        };
        in_transaction!(self.durable(), |tx| {
            let activated = sqlx::query(activate)
                .bind(self.ahead())
                .bind(&id)
                .bind(optional_millis(commit.refresh_at))
                .bind(commit.account.map(|account| account.id.as_str()))
                .bind(commit.account.and_then(|account| account.name.as_deref()))
                .bind(commit.account.map(|account| json(&account.aliases)))
                .bind(commit.vars.map(json))
                .bind(commit.scopes.map(json))
                .bind(commit.token_url)
                .bind(i64::from(consented))
                .bind(judged_for.map(|account| account.id.as_str()))
                .execute(&mut *tx)
                .await?;
            if activated.rows_affected() == 0 {
                return Ok(false);
            }
            let spent = sqlx::query(bury).bind(self.ahead()).bind(&id);
            spent.bind(commit.refresh_hash.map(|hash| hash.to_string())).execute(&mut *tx).await?;
            let replaced = sqlx::query(replace)
                .bind(&id)
                .bind(grant.generation() - 1)
                .bind(grant.generation())
                .bind(grant.access.as_str())
                .bind(grant.refresh.as_ref().map(Sealed::as_str))
                .bind(json(&grant.scopes))
                .bind(grant.received_at.as_millisecond())
                .bind(grant.expires_at.as_millisecond())
                .bind(origin.and_then(|origin| origin.parent).map(|parent| parent.to_string()))
                .bind(optional_millis(origin.map(|origin| origin.asked_at)))
                .bind(consented)
                .execute(&mut *tx)
                .await?;
            if replaced.rows_affected() == 0 {
                return Ok(false);
            }
            if consented {
                sqlx::query("DELETE FROM escrow WHERE connection_id = $1")
                    .bind(&id)
                    .execute(&mut *tx)
                    .await?;
            }
            if confirms {
                let confirmed = sqlx::query(CONFIRM)
                    .bind(self.ahead())
                    .bind(&id)
                    .bind(grant.received_at.as_millisecond())
                    .bind(millis(CONFIRM_LIFE))
                    .execute(&mut *tx)
                    .await?;
                if confirmed.rows_affected() == 0 {
                    return Ok(false);
                }
            }
            sqlx::query(COUNT_GRANT).execute(&mut *tx).await?;
        });
        Ok(true)
    }

    /// Records a refresh that brought no grant, and releases its lease. False, with nothing changed,
    /// when a grant was stored meanwhile or the claim went to somebody else.
    ///
    /// A connection that left the refreshing states meanwhile keeps its state.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn record_failure(&self, failure: &Failure<'_>) -> Result<bool, StoreError> {
        let describe = concat!(
            "UPDATE connections SET
                state = CASE WHEN state IN ",
            refreshing!(),
            " THEN $3 ELSE state END,
                reason = CASE WHEN state IN ",
            refreshing!(),
            " THEN $4 ELSE reason END,
                last_error_code = $5, last_error_message = $6, last_error_at = $7,
                refresh_at = CASE WHEN state IN ('revoked', 'revoking') THEN refresh_at ELSE $8 END,
                failures = $9, changed_at = ",
            now!(),
            " WHERE id = $2"
        );
        let bury = concat!(
            "INSERT INTO refresh_tombstones (refresh_hash, connection_id, buried_at)
            SELECT attempt_refresh_hash, connection_id, ",
            now!(),
            " FROM grants WHERE connection_id = $2 AND attempt_id = $3
                AND attempt_refresh_hash IS NOT NULL ON CONFLICT DO NOTHING"
        );
        let keep = "UPDATE grants SET lease_until = NULL
            WHERE connection_id = $1 AND generation = $2 AND attempt_id = $3";
        // What was refused stays known, in case many are refused and it is taken back.
        let condemn = "UPDATE grants SET lease_until = NULL, attempts = attempts - 1
            WHERE connection_id = $1 AND generation = $2 AND attempt_id = $3";
        let end = "UPDATE grants SET lease_until = NULL, attempt_id = NULL,
                attempt_started_at = NULL, attempt_refresh_hash = NULL, attempts = attempts - 1
            WHERE connection_id = $1 AND generation = $2 AND attempt_id = $3";
        let release = match failure.state {
            State::Uncertain => keep,
            State::NeedsConsent => condemn,
            _ => end,
        };
        let id = failure.connection.to_string();
        in_transaction!(self.durable(), |tx| {
            sqlx::query(describe)
                .bind(self.ahead())
                .bind(&id)
                .bind(failure.state.as_str())
                .bind(failure.reason)
                .bind(&failure.error.code)
                .bind(&failure.error.message)
                .bind(failure.error.at.as_millisecond())
                .bind(optional_millis(failure.refresh_at))
                .bind(i64::from(failure.failures))
                .execute(&mut *tx)
                .await?;
            if failure.state == State::NeedsConsent {
                sqlx::query(bury)
                    .bind(self.ahead())
                    .bind(&id)
                    .bind(failure.attempt)
                    .execute(&mut *tx)
                    .await?;
            }
            let released = sqlx::query(release)
                .bind(&id)
                .bind(failure.from_generation)
                .bind(failure.attempt)
                .execute(&mut *tx)
                .await?;
            if released.rows_affected() == 0 {
                return Ok(false);
            }
        });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_states_that_sql_refreshes_are_those_that_refresh() {
        let words: Vec<_> = State::ALL
            .iter()
            .filter(|state| state.refreshes())
            .map(|state| format!("'{state}'"))
            .collect();
        assert_eq!(refreshing!(), format!("({})", words.join(", ")));
    }
}
