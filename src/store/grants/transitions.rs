//! Changes of state outside the two ends of a refresh: suspended, given up, suspected, reinstated.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::AssertSqlSafe;
use strum::VariantArray as _;

use super::states;
use crate::{
    domain::{
        connection::{ConnectionId, LastError, State},
        record::Record,
        slug::Slug,
    },
    store::{
        Store, StoreError,
        connections::holds_generation,
        engine::statement::{Tx, placeholders, query},
    },
};

/// A change of a connection: its state with the reason, its last error, its schedule.
#[derive(Clone, Copy)]
pub(crate) struct Transition<'a> {
    /// The states in which it applies; in any other it does nothing.
    pub(crate) from: fn(State) -> bool,
    /// The next state and its reason; none leaves both.
    pub(crate) to: Option<(State, Option<&'a str>)>,
    /// The error that led to it; none leaves the last one.
    pub(crate) error: Option<&'a LastError>,
    /// The next refresh.
    pub(crate) schedule: Schedule,
    /// Whether it counts as one more passing failure.
    pub(crate) fails: bool,
}

/// When the next refresh is due.
#[derive(Clone, Copy)]
pub(crate) enum Schedule {
    /// As before.
    Unchanged,
    /// At this time.
    At(Timestamp),
    /// Never.
    Never,
}

impl<'a> Transition<'a> {
    /// A change within the states that a rule selects.
    pub(crate) fn within(from: fn(State) -> bool) -> Self {
        Self { from, to: None, error: None, schedule: Schedule::Unchanged, fails: false }
    }

    /// A change from one of the states that a rule selects to another one.
    pub(crate) fn to(from: fn(State) -> bool, state: State, reason: Option<&'a str>) -> Self {
        Self { to: Some((state, reason)), ..Self::within(from) }
    }

    /// Applies it. False when the connection is in another state, or there is none.
    pub(crate) async fn apply(
        &self,
        tx: &mut Tx,
        id: ConnectionId,
        offset: i64,
    ) -> Result<bool, StoreError> {
        if let Some((to, _)) = self.to {
            let from = State::VARIANTS.iter().filter(|state| (self.from)(**state));
            debug_assert!(
                from.clone().all(|from| from.may_become(to)),
                "not in the table of transitions: {:?} to {to}",
                from.collect::<Vec<_>>(),
            );
        }
        let sql = format!(
            "UPDATE connections SET
                state = COALESCE($3, state),
                reason = CASE WHEN $3 IS NULL THEN reason ELSE $4 END,
                last_error_code = COALESCE($5, last_error_code),
                last_error_message = COALESCE($6, last_error_message),
                last_error_at = COALESCE($7, last_error_at),
                refresh_at = CASE WHEN $8 = 1 THEN $9 ELSE refresh_at END,
                failures = failures + $10,
                changed_at = (SELECT now_ms FROM clock) + $1
            WHERE id = $2 AND state IN {}",
            states(self.from)
        );
        let (scheduled, refresh_at) = match self.schedule {
            Schedule::Unchanged => (false, None),
            Schedule::At(time) => (true, Some(time)),
            Schedule::Never => (true, None),
        };
        let applied = query(AssertSqlSafe(sql))
            .bind(offset)
            .bind(id)
            .bind(self.to.map(|(state, _)| state))
            .bind(self.to.and_then(|(_, reason)| reason))
            .bind(self.error.map(|error| &error.code))
            .bind(self.error.map(|error| &error.message))
            .bind(self.error.map(|error| error.at))
            .bind(scheduled)
            .bind(refresh_at)
            .bind(self.fails)
            .execute(tx)
            .await?;
        Ok(applied == 1)
    }
}

impl Store {
    /// Gives up on a connection that has no refresh token to present: a person must consent, or,
    /// with `until`, it is left alone while its token lives. `why` says so to readers, and keeps them
    /// from asking again. False, with nothing changed, when the connection is not as it was seen:
    /// somebody refreshes it, or has.
    pub async fn give_up_refresh(
        &self,
        seen: &Record,
        until: Option<Timestamp>,
        why: &LastError,
    ) -> Result<bool, StoreError> {
        let change = match until {
            Some(until) => {
                Transition { schedule: Schedule::At(until), ..Transition::within(State::refreshes) }
            }
            None => Transition {
                schedule: Schedule::Never,
                ..Transition::to(State::refreshes, State::NeedsConsent, Some(&why.code))
            },
        };
        self.transition(seen, Transition { error: Some(why), ..change }).await
    }

    /// Stops the refreshes of a connection before anything is claimed, for a reason that somebody has
    /// to look at: until then it is tried again at `until` only. False, with nothing changed, when the
    /// connection is not as it was seen: somebody refreshes it, has, or deleted it.
    pub async fn suspend_refresh(
        &self,
        seen: &Record,
        state: State,
        reason: &str,
        error: Option<&LastError>,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let change = Transition {
            error,
            schedule: Schedule::At(until),
            ..Transition::to(State::refreshes, state, Some(reason))
        };
        self.transition(seen, change).await
    }

    /// Applies a change to a connection that nobody refreshes, and releases a claim whose lease has run
    /// out. False, with nothing changed, when the connection is not as it was seen.
    async fn transition(&self, seen: &Record, change: Transition<'_>) -> Result<bool, StoreError> {
        let release = "
            UPDATE grants SET lease_until = NULL,
                abandoned_attempts = abandoned_attempts
                    + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END
            WHERE connection_id = $2 AND generation = $3 AND attempts = $4
                AND (lease_until IS NULL OR lease_until <= (SELECT now_ms FROM clock) + $1)";
        let id = seen.connection.id;
        let mut tx = self.begin().await?;
        let changed = change.apply(&mut tx, id, self.offset()).await?;
        let released = query(release)
            .bind(self.offset())
            .bind(id)
            .bind(seen.generation())
            .bind(seen.open_attempts)
            .execute(&mut tx)
            .await?;
        if !changed || released == 0 {
            return tx.roll_back(false);
        }
        tx.commit(true).await
    }

    /// Accepts the token endpoint that the profile has now: from now on the tokens of the connection
    /// may be presented to it.
    pub async fn accept_endpoint(
        &self,
        id: ConnectionId,
        token_url: &str,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE connections SET token_url = $1 WHERE id = $2";
        query(sql).bind(token_url).bind(id).execute(&self.engine).await?;
        Ok(())
    }

    /// Marks a connection whose grant of this generation does not open. False, with nothing changed,
    /// when it holds another one by now, was deleted, or there is no such connection.
    pub async fn mark_unreadable(
        &self,
        id: ConnectionId,
        generation: i64,
    ) -> Result<bool, StoreError> {
        let alive = |state: State| !state.is_deleted();
        let change = Transition::to(alive, State::IntegrityError, None);
        let mut tx = self.begin().await?;
        let marked = change.apply(&mut tx, id, self.offset()).await?;
        // Read under the lock of the update: a grant that is being stored is seen.
        if !marked || !holds_generation(&mut tx, id, generation).await? {
            return tx.roll_back(false);
        }
        tx.commit(true).await
    }

    /// Suspects an active connection whose tokens are reported as refused however new they are. Its
    /// next refresh is due as before, and ends the suspicion.
    pub async fn suspect_reports(&self, id: ConnectionId) -> Result<(), StoreError> {
        let active = |state| state == State::Active;
        let change = Transition::to(active, State::Suspect, Some("rejected"));
        let mut tx = self.begin().await?;
        change.apply(&mut tx, id, self.offset()).await?;
        tx.commit(()).await
    }

    /// Takes back the refusals of the last `within` on connections of these clients: their refresh
    /// tokens may be presented again from `until` on. A connection that was given up without asking
    /// the provider stays so. Returns how many there were.
    pub async fn revert_refusals(
        &self,
        clients: impl IntoIterator<Item = &Slug>,
        within: Duration,
        until: Timestamp,
    ) -> Result<u64, StoreError> {
        let clients: Vec<_> = clients.into_iter().collect();
        if clients.is_empty() {
            return Ok(0);
        }
        let suspect = format!(
            "UPDATE connections SET state = 'suspect', reason = 'mass_refusal', refresh_at = $3,
                changed_at = now_ms + $1
            FROM clock
            WHERE state = 'needs_consent' AND client IN {clients}
                AND last_error_code NOT IN ('lost_in_rotation', 'no_refresh_token')
                AND last_error_at > now_ms + $1 - $2
                AND id IN (SELECT connection_id FROM grants WHERE attempt_refresh_hash IS NOT NULL)",
            clients = placeholders(4, clients.len()),
        );
        let unmark_spent = "
            DELETE FROM spent_tokens
            WHERE marked_at > (SELECT now_ms FROM clock) + $1 - $2 AND refresh_hash IN (
                SELECT g.attempt_refresh_hash FROM grants g
                JOIN connections c ON c.id = g.connection_id
                WHERE c.state = 'suspect' AND c.reason = 'mass_refusal')";
        let mut tx = self.begin().await?;
        let suspected = query(AssertSqlSafe(suspect))
            .bind(self.offset())
            .bind(within)
            .bind(until)
            .bind_all(clients)
            .execute(&mut tx)
            .await?;
        query(unmark_spent).bind(self.offset()).bind(within).execute(&mut tx).await?;
        tx.commit(suspected).await
    }
}
