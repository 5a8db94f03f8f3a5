//! The end of a connection: nobody is served any more, what it holds is revoked at the provider, and
//! only then is it forgotten. What nobody can revoke from here is left to a person, who says when it
//! is done.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;
use serde::Serialize;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Broker, BrokerError,
    recovery::quarantine::ensure_not_quarantined,
    refresh::in_flight::RefreshReason,
};
use crate::{
    audit::{By, Kind},
    domain::{
        connection::{Connection, ConnectionId, GrantType, LastError, State, backoff},
        slug::Slug,
    },
    provider::{ProviderError, RevokedToken, Verdict, client::Client, read_revocation, request},
    seal::{
        OpenError, Place, Sealed,
        secret::{self, Digest},
    },
    store::{DeletionStep, Revocable, Revoking, retry::retry_forever},
    words::words,
};

/// What a claim is longer than the call that it covers.
const LEASE_SLACK: Duration = Duration::from_secs(20);

words! {
    /// What became of the tokens of a connection that was deleted.
    Revocation {
        /// A person has removed the application at the provider: the connection is forgotten.
        Acknowledged = "acknowledged",
        /// Nobody can revoke them from here: a person has to remove the application at the provider,
        /// and then to delete the connection once more.
        Manual = "manual",
        /// There is nothing that a person granted: the connection is forgotten.
        None = "none",
        /// They are being revoked; the connection is forgotten when that is done.
        Revoking = "revoking",
    }
}

/// What became of a connection that was deleted.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Deleted {
    /// The connection; it is served no more.
    #[schema(value_type = String)]
    pub connection: Slug,
    /// What became of its tokens.
    pub revocation: Revocation,
    /// What remains to be done, and for whom.
    pub detail: String,
}

/// Takes the connection off the list of those that are being revoked here, however that ends.
struct Under<'a>(&'a Broker, ConnectionId);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.revoking.remove(&self.1);
    }
}

impl Broker {
    /// Deletes a connection: from now on nothing of it is served. It is forgotten at once when nobody
    /// granted anything; otherwise when its tokens are revoked, or when a person has removed the
    /// application at the provider and it is deleted once more.
    ///
    /// # Errors
    ///
    /// When it does not exist or the store fails.
    pub async fn delete_connection(&self, by: &By, name: &str) -> Result<Deleted, BrokerError> {
        let unknown = || BrokerError::no_connection(name);
        let slug: Slug = name.parse().map_err(|_| unknown())?;
        let record = self.store.record(slug.as_str()).await?.ok_or_else(unknown)?;
        let connection = &record.connection;
        let id = connection.id;
        let revocation = match connection.state {
            State::Revoked => {
                self.store.delete(id).await?;
                Revocation::Acknowledged
            }
            _ if self.store.delete_ungranted(id).await? => Revocation::None,
            _ if self.revokes(connection) => {
                ensure_not_quarantined(connection)?;
                self.store.begin_deletion(id).await?;
                Revocation::Revoking
            }
            _ if connection.grant_type == GrantType::ClientCredentials => {
                self.store.delete(id).await?;
                Revocation::None
            }
            _ => {
                let held = record.grant.as_ref().map(|grant| self.open_refresh(id, grant));
                let held = held.and_then(Result::ok).flatten().as_ref().map(Digest::of);
                self.store.require_manual_removal(id, held.as_ref()).await?;
                Revocation::Manual
            }
        };
        self.note_of(Kind::ConnectionDeleted, by, connection, revocation.as_str());
        self.after_deletion(connection, revocation).await?;
        let provider = self.title_of(connection);
        Ok(Deleted {
            connection: slug,
            revocation,
            detail: match revocation {
                Revocation::Acknowledged => "the connection is forgotten".to_owned(),
                Revocation::Manual => self.task_of(connection),
                Revocation::None => format!(
                    "nobody granted anything that {provider} could take back; tokens that the \
                     client got for itself end by themselves"
                ),
                Revocation::Revoking => format!(
                    "{provider} is asked to revoke its tokens for as long as it takes; then the \
                     connection is forgotten"
                ),
            },
        })
    }

    async fn after_deletion(
        &self,
        connection: &Connection,
        revocation: Revocation,
    ) -> Result<(), BrokerError> {
        let Connection { id, name, .. } = connection;
        match revocation {
            Revocation::Acknowledged | Revocation::None => {
                self.memory.forget(name.as_str(), *id);
                self.shred_spool(*id).await;
            }
            Revocation::Manual => {
                self.shred_spool(*id).await;
                self.refresh_cache(*id).await?;
            }
            Revocation::Revoking => drop(self.refresh_cache(*id).await?),
        }
        tracing::info!(connection = %name, %revocation, "connection deleted");
        Ok(())
    }

    /// Whether the tokens of a connection can be revoked at its provider.
    fn revokes(&self, connection: &Connection) -> bool {
        let client = self.clients.get(&connection.client);
        client.is_some_and(|client| client.profile.revocation.is_some())
    }

    fn title_of(&self, connection: &Connection) -> &str {
        let client = self.clients.get(&connection.client);
        client.map_or("the provider", |client| client.profile.title.as_str())
    }

    fn task_of(&self, connection: &Connection) -> String {
        let provider = self.title_of(connection);
        format!(
            "its tokens may live on at {provider}: remove the application in the account there, or \
             ask its owner to; then delete the connection once more"
        )
    }

    /// What a person has to do for a connection, as a sentence.
    pub(crate) fn persons_task(&self, connection: &Connection) -> Option<String> {
        (connection.state == State::Revoked).then(|| self.task_of(connection))
    }

    /// A name is free again when its deleted connection is forgotten.
    pub(crate) fn ensure_not_deleted(&self, connection: &Connection) -> Result<(), BrokerError> {
        let name = &connection.name;
        match connection.state {
            State::Revoking => Err(BrokerError::Conflict(format!(
                "connection `{name}` was deleted, and its tokens are being revoked; the name is free \
                 when that is done"
            ))),
            State::Revoked => Err(BrokerError::Conflict(format!(
                "connection `{name}` was deleted, and {}; that frees the name",
                self.task_of(connection)
            ))),
            _ => Ok(()),
        }
    }

    /// Starts up to `limit` revocations that are due at each provider, and leaves them to run.
    ///
    /// # Errors
    ///
    /// When the store cannot say what is due. How each one went is recorded with its connection.
    pub async fn start_revocations(self: &Arc<Self>, limit: u32) -> Result<(), BrokerError> {
        for (id, client) in self.revocations_due(limit).await? {
            let broker = Arc::clone(self);
            self.tasks.spawn(async move { broker.revoke_all(id, &client).await });
        }
        Ok(())
    }

    /// As [`Broker::start_revocations`], and waits for them: a step of the background, for tests.
    /// Returns how many there were.
    ///
    /// # Errors
    ///
    /// As [`Broker::start_revocations`].
    pub async fn revoke_due(&self, limit: u32) -> Result<usize, BrokerError> {
        let due = self.revocations_due(limit).await?;
        for (id, client) in &due {
            self.revoke_all(*id, client).await;
        }
        Ok(due.len())
    }

    async fn revocations_due(&self, limit: u32) -> Result<Vec<(ConnectionId, Slug)>, BrokerError> {
        let mut due = Vec::new();
        for provider in self.gates.keys() {
            if self.closing.is_cancelled() {
                break;
            }
            let clients = self.clients_of(provider).map(|client| &client.name);
            due.extend(self.store.revocations_due(clients, limit).await?);
        }
        due.retain(|(id, _)| !self.revoking.contains_key(id));
        Ok(due)
    }

    /// Revokes what a deleted connection holds, one token after the other, until nothing is left or
    /// it must wait.
    async fn revoke_all(&self, id: ConnectionId, client: &Slug) {
        if self.revoking.insert(id, ()).is_some() {
            return;
        }
        let _under = Under(self, id);
        let Ok(client) = self.client(client).map(Arc::clone) else { return };
        loop {
            match self.revoke_next(id, &client).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(connection.id = %id, %error, "the revocation is tried again");
                    return;
                }
            }
        }
    }

    /// One step: claims the connection, revokes one token and shreds it. True when there may be more
    /// to do at once.
    async fn revoke_next(&self, id: ConnectionId, client: &Client) -> Result<bool, BrokerError> {
        // Whoever deletes a connection is not kept waiting for what failed before: only the pace counts.
        let turn = self.gate(client).enter(&client.name, RefreshReason::Operator);
        let Some(turn) = self.closing.run_until_cancelled(turn).await else { return Ok(false) };
        turn?;
        let attempt = format!("{}.{}", self.replica, Uuid::now_v7());
        let lease = client.profile.token.timeout + LEASE_SLACK;
        let Some(claimed) = self.store.claim_revocation(id, &attempt, lease).await? else {
            return Ok(false);
        };
        let Revoking { connection, next } = claimed;
        let Some(held) = next else { return self.finish(&connection, &attempt).await };
        let (access, refresh) = match self.open_revocable(id, &held) {
            Ok(tokens) => tokens,
            Err(lacking) => {
                self.revoke_later(&connection, &attempt, lacking).await?;
                return Ok(false);
            }
        };
        let buried = refresh.as_ref().map(Digest::of);
        let refused = match self.revoke(client, &connection, access, refresh).await {
            Ok(()) => None,
            Err(error) if matches!(error.verdict, Verdict::Refused { .. }) => {
                tracing::warn!(
                    connection = %connection.name, status = error.status, code = error.code,
                    "not revoked: a person has to remove the application at the provider"
                );
                Some(last_error(error, self.clock.now()))
            }
            Err(error) => {
                self.revoke_later(&connection, &attempt, error).await?;
                return Ok(false);
            }
        };
        let (buried, refused) = (buried.as_ref(), refused.as_ref());
        let shred = || self.store.durable().erase_token(id, &attempt, held.holding, buried, refused);
        Ok(retry_forever(shred).await)
    }

    /// Asks the provider to revoke one grant by the token that its profile names, or by the other one
    /// where it lacks that.
    async fn revoke(
        &self,
        client: &Client,
        connection: &Connection,
        access: Option<SecretString>,
        refresh: Option<SecretString>,
    ) -> Result<(), ProviderError> {
        let refused = |code: &str| Verdict::Refused { reason: code.to_owned() };
        let refuse = |code, message: &str| ProviderError::new(refused(code), None, code, message);
        let Some(revocation) = &client.profile.revocation else {
            return Err(refuse("no_revocation", "The provider's profile offers no revocation."));
        };
        let access = access.map(|token| (RevokedToken::Access, token));
        let refresh = refresh.map(|token| (RevokedToken::Refresh, token));
        let token = match revocation.token {
            RevokedToken::Access => access.or(refresh),
            RevokedToken::Refresh => refresh.or(access),
        };
        let Some((kind, token)) = token else {
            return Err(refuse("integrity_error", "The stored tokens do not open."));
        };
        let request = request::revoke(client, kind, &token, &connection.vars).map_err(|error| {
            let message = format!("The request cannot be made: {error}.");
            ProviderError::new(Verdict::Misconfigured, None, "not_sent", message)
        })?;
        let reply = self.outbound.send(&client.profile, request, None).await?;
        read_revocation(&reply)
    }

    /// The tokens that open. An error, to be tried again, where a key is lacking that may come yet.
    fn open_revocable(
        &self,
        id: ConnectionId,
        held: &Revocable,
    ) -> Result<(Option<SecretString>, Option<SecretString>), ProviderError> {
        let record = id.to_string();
        let open = |field, sealed: &Sealed| {
            let place = Place { record: &record, field, generation: held.generation };
            match self.keyring.open(place, sealed) {
                Ok(token) => Ok(Some(token)),
                Err(error @ OpenError::UnknownKey(_)) => {
                    let message = format!("A token to revoke is {error}.");
                    Err(ProviderError::new(Verdict::NotSent, None, "unknown_key", message))
                }
                Err(error) => {
                    tracing::error!(%error, "a token to revoke does not open");
                    Ok(None)
                }
            }
        };
        let [access, refresh] = held.fields();
        let refresh = held.refresh.as_ref().map(|sealed| open(refresh, sealed)).transpose()?;
        Ok((open(access, &held.access)?, refresh.flatten()))
    }

    async fn revoke_later(
        &self,
        connection: &Connection,
        attempt: &str,
        error: ProviderError,
    ) -> Result<(), BrokerError> {
        let mut seed = [0; 2];
        seed.copy_from_slice(&secret::random_bytes::<2>());
        let pause = backoff(connection.failures.saturating_add(1), u16::from_be_bytes(seed));
        let asked = match error.verdict {
            Verdict::Busy { retry_after } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        tracing::warn!(
            connection = %connection.name, verdict = ?error.verdict, status = error.status,
            code = error.code, "not revoked yet: {}", error.message
        );
        let now = self.clock.now();
        let (error, until) = (last_error(error, now), now + pause.max(asked));
        self.store.defer_revocation(connection.id, attempt, &error, until).await?;
        self.refresh_cache(connection.id).await?;
        Ok(())
    }

    /// Nothing is left to be revoked. True when something has come meanwhile.
    async fn finish(&self, connection: &Connection, attempt: &str) -> Result<bool, BrokerError> {
        let Connection { id, name, .. } = connection;
        match self.store.finish_deletion(*id, attempt).await? {
            DeletionStep::Forgotten => {
                self.memory.forget(name.as_str(), *id);
                self.shred_spool(*id).await;
                tracing::info!(connection = %name, "its tokens are revoked; it is forgotten");
                self.note_of(Kind::TokensRevoked, &By::broker(), connection, "revoked");
                Ok(false)
            }
            DeletionStep::LeftToPerson => {
                self.note_of(Kind::TokensRevoked, &By::broker(), connection, "left to a person");
                self.shred_spool(*id).await;
                self.refresh_cache(*id).await?;
                Ok(false)
            }
            DeletionStep::NotYet => Ok(true),
        }
    }

    /// Removes what lies of a connection in this replica's spool, and what was put aside.
    async fn shred_spool(&self, id: ConnectionId) {
        let spool = self.spool.clone();
        let shredded = spawn_blocking(move || spool.erase(id)).await;
        if !matches!(shredded, Ok(Ok(()))) {
            tracing::error!(connection.id = %id, "the spool may still hold sealed tokens of it");
        }
    }
}

fn last_error(error: ProviderError, at: Timestamp) -> LastError {
    LastError { code: error.code, message: error.message, at }
}
