//! Second thoughts: connections that are neither refreshed as usual nor given up.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    commit::refreshing,
    schedule::{list, listed},
};
use crate::{
    domain::{
        connection::{ConnectionId, LastError, Record, State},
        slug::Slug,
    },
    store::{
        Store, StoreError,
        engine::{in_transaction, on},
        millis, now, optional_millis,
    },
};

/// Lets go of the claim of connection `$2`, if one has run out, where its grant is still of generation
/// `$3` after `$4` open attempts, and nobody is refreshing it.
const EXPIRE_LEASE_AS_SEEN: &str = concat!(
    "UPDATE grants SET lease_until = NULL,
        crashes = crashes + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END
    WHERE connection_id = $2 AND generation = $3 AND attempts = $4
        AND (lease_until IS NULL OR lease_until <= ",
    now!(),
    ")"
);

impl Store {
    /// A connection has nothing that may be presented: a person must consent, or, with `until`, it is
    /// left alone while its token lives. `why` says so to whoever asks, and keeps readers from asking
    /// again. False, with nothing changed, when the connection is not as it was seen: somebody
    /// refreshes it, or has.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn give_up_refresh(
        &self,
        seen: &Record,
        until: Option<Timestamp>,
        why: &LastError,
    ) -> Result<bool, StoreError> {
        let verdict = until.is_none().then_some((State::NeedsConsent, why.code.as_str()));
        self.step_back(seen, verdict, Some(why), until).await
    }

    /// Lets what the connection holds be presented to a token endpoint, which its profile has, from
    /// now on.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn accept_endpoint(
        &self,
        id: ConnectionId,
        token_url: &str,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE connections SET token_url = $1 WHERE id = $2";
        on!(self, |pool| {
            sqlx::query(sql).bind(token_url).bind(id.to_string()).execute(pool).await?;
        });
        Ok(())
    }

    /// Stops the refreshes of a connection before anything is claimed, for a reason that somebody has
    /// to look at: until then it is tried again at `until` only. False, with nothing changed, when the
    /// connection is not as it was seen: somebody refreshes it, has, or deleted it.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn suspend_refresh(
        &self,
        seen: &Record,
        state: State,
        reason: &str,
        error: Option<&LastError>,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        self.step_back(seen, Some((state, reason)), error, Some(until)).await
    }

    /// Lets go of a connection that nobody refreshes, as it was seen, until it is due at `until`. What
    /// is not given stays: its state with the reason, its last error.
    async fn step_back(
        &self,
        seen: &Record,
        verdict: Option<(State, &str)>,
        error: Option<&LastError>,
        until: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        let describe = concat!(
            "UPDATE connections SET state = COALESCE($3, state), reason = COALESCE($4, reason),
                last_error_code = COALESCE($5, last_error_code),
                last_error_message = COALESCE($6, last_error_message),
                last_error_at = COALESCE($7, last_error_at), refresh_at = $8, changed_at = ",
            now!(),
            " WHERE id = $2 AND state IN ",
            refreshing!()
        );
        let id = seen.connection.id.to_string();
        in_transaction!(self, |tx| {
            let described = sqlx::query(describe)
                .bind(self.ahead())
                .bind(&id)
                .bind(verdict.map(|(state, _)| state.as_str()))
                .bind(verdict.map(|(_, reason)| reason))
                .bind(error.map(|error| error.code.as_str()))
                .bind(error.map(|error| error.message.as_str()))
                .bind(error.map(|error| error.at.as_millisecond()))
                .bind(optional_millis(until))
                .execute(&mut *tx)
                .await?;
            let let_go = sqlx::query(EXPIRE_LEASE_AS_SEEN)
                .bind(self.ahead())
                .bind(&id)
                .bind(seen.generation())
                .bind(i64::from(seen.open_attempts))
                .execute(&mut *tx)
                .await?;
            if described.rows_affected() == 0 || let_go.rows_affected() == 0 {
                return Ok(false);
            }
        });
        Ok(true)
    }

    /// Doubts an active connection whose tokens are reported as refused however new they are. Its
    /// next refresh is due as before, and ends the doubt.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn suspect_reports(&self, id: ConnectionId) -> Result<(), StoreError> {
        let sql = concat!(
            "UPDATE connections SET state = 'suspect', reason = 'rejected', changed_at = ",
            now!(),
            " WHERE id = $2 AND state = 'active'"
        );
        on!(self, |pool| {
            sqlx::query(sql).bind(self.ahead()).bind(id.to_string()).execute(pool).await?;
        });
        Ok(())
    }

    /// Takes back the verdicts of the last `within` on connections of these clients: their refresh
    /// tokens may be presented again from `until` on. What was given up unasked is no verdict of the
    /// provider's, and stands. Returns how many there were.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn revert_refusals(
        &self,
        clients: impl IntoIterator<Item = &Slug>,
        within: Duration,
        until: Timestamp,
    ) -> Result<u64, StoreError> {
        let doubt = concat!(
            "UPDATE connections SET state = 'suspect', reason = 'mass_refusal', refresh_at = $4,
                changed_at = ",
            now!(),
            " WHERE state = 'needs_consent'
                AND last_error_code NOT IN ('lost_in_rotation', 'no_refresh_token')
                AND last_error_at > ",
            now!(),
            " - $3 AND ",
            listed!("client", "$2"),
            " AND id IN (SELECT connection_id FROM grants WHERE attempt_refresh_hash IS NOT NULL)"
        );
        let unbury = concat!(
            "DELETE FROM refresh_tombstones WHERE buried_at > ",
            now!(),
            " - $2 AND refresh_hash IN (
                SELECT g.attempt_refresh_hash FROM grants g
                JOIN connections c ON c.id = g.connection_id
                WHERE c.state = 'suspect' AND c.reason = 'mass_refusal')"
        );
        let clients = list(clients);
        let doubted = in_transaction!(self, |tx| {
            let doubted = sqlx::query(doubt)
                .bind(self.ahead())
                .bind(clients)
                .bind(millis(within))
                .bind(until.as_millisecond())
                .execute(&mut *tx)
                .await?;
            let unbury = sqlx::query(unbury).bind(self.ahead()).bind(millis(within));
            unbury.execute(&mut *tx).await?;
            doubted.rows_affected()
        });
        Ok(doubted)
    }
}
