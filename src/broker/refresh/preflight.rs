//! What stops a refresh before anything is claimed: a row that went back, another token endpoint than the
//! one that issued the tokens, a connection over which processes die.

use std::time::Duration;

use super::in_flight::RefreshReason;
use crate::{
    broker::{Broker, BrokerError},
    domain::connection::{Connection, LastError, Record, State},
    provider::client::Client,
};

/// How many attempts may end without a word before the connection is left alone for a while: it may
/// be the one that kills those who try.
const MAX_CRASHES: u32 = 3;

/// How long a connection is left alone that is in doubt, unless somebody looks at it.
pub(crate) const SUSPECT_PAUSE: Duration = Duration::from_hours(1);

impl Broker {
    /// A row that lacks a grant which this process has had was put back by somebody who can write the
    /// database: its refresh token is spent. What this replica remembers of it is stored again.
    pub(crate) async fn check_generation_rollback(
        &self,
        record: &Record,
    ) -> Result<(), BrokerError> {
        let connection = &record.connection;
        let held = self.memory.connection(connection.name.as_str());
        let known = held.filter(|live| live.connection.id == connection.id);
        if known.is_none_or(|live| live.generation <= record.generation()) {
            return Ok(());
        }
        self.replay_recent_grants().await;
        let again = self.refresh_cache(connection.id).await?;
        if again.generation() > record.generation() {
            return Err(BrokerError::Unavailable {
                reason: "a grant that the database had forgotten was stored again".to_owned(),
                retry_after: Duration::from_secs(1),
            });
        }
        let now = self.clock.now();
        let message = "the database holds an older grant than the one last seen";
        let error =
            LastError { code: "went_back".to_owned(), message: message.to_owned(), at: now };
        tracing::error!(connection = %connection.name, "{message}; nothing is refreshed from it");
        let until = now + SUSPECT_PAUSE;
        self.store
            .suspend_refresh(record, State::Suspect, "went_back", Some(&error), until)
            .await?;
        Err(BrokerError::Unavailable { reason: message.to_owned(), retry_after: SUSPECT_PAUSE })
    }

    /// What one token endpoint issued is sent to no other because a profile was changed, unless an
    /// operator asks for it.
    pub(crate) async fn check_token_endpoint(
        &self,
        client: &Client,
        record: &Record,
        why: RefreshReason,
    ) -> Result<(), BrokerError> {
        let Connection { id, name, .. } = &record.connection;
        let now_at = client.profile.token.url.as_str();
        match &record.token_url {
            Some(issued_at) if issued_at == now_at => return Ok(()),
            Some(issued_at) if why != RefreshReason::Operator && record.grant.is_some() => {
                let message = format!(
                    "its tokens were issued at {issued_at}, and the profile says {now_at} now; an \
                     operator who refreshes the connection accepts that"
                );
                tracing::error!(connection = %name, "{message}");
                let now = self.clock.now();
                let code = "token_url_changed".to_owned();
                let error = LastError { code, message: message.clone(), at: now };
                let until = now + SUSPECT_PAUSE;
                let state = State::EndpointChanged;
                self.store
                    .suspend_refresh(record, state, "token_url_changed", Some(&error), until)
                    .await?;
                self.refresh_cache(*id).await?;
                return Err(BrokerError::Misconfigured(message));
            }
            _ => self.store.accept_endpoint(*id, now_at).await?,
        }
        Ok(())
    }

    /// Leaves a connection alone whose last attempts all ended without a word. True if it does.
    pub(crate) async fn check_crash_loop(&self, record: &Record) -> Result<bool, BrokerError> {
        // The claim that ran out is one of them; without one it is the next try, an hour later.
        if record.claimed_at.is_none() || record.crashes + 1 < MAX_CRASHES {
            return Ok(false);
        }
        tracing::error!(
            connection = %record.connection.name,
            "{MAX_CRASHES} attempts to refresh it ended without a word: it is left alone for an hour"
        );
        let until = self.clock.now() + SUSPECT_PAUSE;
        let suspected =
            self.store.suspend_refresh(record, State::Suspect, "crashes", None, until).await?;
        self.refresh_cache(record.connection.id).await?;
        Ok(suspected)
    }
}
