//! The end of a connection: nobody is served any more, what it holds is revoked at the provider, and
//! only then is it forgotten. What nobody can revoke from here is left to a person, who says when it
//! is done.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use jiff::Timestamp;
use secrecy::SecretString;
use serde::Serialize;
use strum::{Display, IntoStaticStr};
use tokio::task::spawn_blocking;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    BrokerError, RefreshReason, access::ensure_not_quarantined, audit::AuditLog, cache::Cache,
    clients::Clients, limits::Limits, process::Process, provider_calls::ProviderCalls,
    vault::Vault,
};
use crate::{
    audit::{Actor, EventKind},
    domain::{
        broker_code,
        connection::{Connection, ConnectionId, GrantType, LastError, State, backoff},
        slug::Slug,
    },
    provider::{ProviderError, Verdict, client::Client},
    seal::{
        OpenError,
        secret::{self, Digest},
    },
    spool::Spool,
    store::{DeletionStep, Revocable, Revoking, Store, StoreError, retry::retry_forever},
};

/// The safety margin of a claim over the call that it covers.
const LEASE_SLACK: Duration = Duration::from_secs(20);

/// The fate of the tokens of a deleted connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(Display, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Revocation {
    /// A person has removed the application at the provider: the connection is forgotten.
    Acknowledged,
    /// Nobody can revoke them from here: a person has to remove the application at the provider,
    /// and then to delete the connection once more.
    Manual,
    /// There is nothing that a person granted: the connection is forgotten.
    None,
    /// They are being revoked; the connection is forgotten when that is done.
    Revoking,
}

/// The answer to the deletion of a connection.
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
struct RevokingGuard<'a>(&'a Deletions, ConnectionId);

impl Drop for RevokingGuard<'_> {
    fn drop(&mut self) {
        self.0.revoking.remove(&self.1);
    }
}

/// Ends connections.
#[derive(Debug)]
pub(crate) struct Deletions {
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) calls: Arc<ProviderCalls>,
    pub(crate) spool: Spool,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) process: Arc<Process>,
    /// The deleted connections whose revocation is under way here.
    pub(crate) revoking: DashMap<ConnectionId, ()>,
}

impl Deletions {
    /// Deletes a connection: from now on nothing of it is served. It is forgotten at once when nobody
    /// granted anything; otherwise when its tokens are revoked, or when a person has removed the
    /// application at the provider and it is deleted once more.
    pub(crate) async fn delete(&self, by: &Actor, name: &str) -> Result<Deleted, BrokerError> {
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
                let grant = record.grant.as_ref();
                let held = grant.and_then(|grant| self.vault.refresh_hash(id, grant));
                self.store.require_manual_removal(id, held.as_ref()).await?;
                Revocation::Manual
            }
        };
        self.audit.emit_for(EventKind::ConnectionDeleted, by, connection, revocation.into());
        self.after_deletion(connection, revocation).await?;
        let provider = self.clients.title_of(connection);
        Ok(Deleted {
            connection: slug,
            revocation,
            detail: match revocation {
                Revocation::Acknowledged => "the connection is forgotten".to_owned(),
                Revocation::Manual => self.clients.removal_task(connection),
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
                self.cache.remove(name.as_str(), *id);
                self.erase_spooled(*id).await;
            }
            Revocation::Manual => {
                self.erase_spooled(*id).await;
                self.cache.reload(*id).await?;
            }
            Revocation::Revoking => drop(self.cache.reload(*id).await?),
        }
        tracing::info!(connection.name = %name, %revocation, "connection deleted");
        Ok(())
    }

    /// True if the tokens of a connection can be revoked at its provider.
    fn revokes(&self, connection: &Connection) -> bool {
        let client = self.clients.get(&connection.client);
        client.is_some_and(|client| client.profile.revocation.is_some())
    }

    /// Forgets what has ended: links, consents, unconfirmed grants, key exchanges, keys, old events,
    /// and the files of grants that were stored a while ago.
    pub(crate) async fn purge(&self) -> Result<(), StoreError> {
        let spool = self.spool.clone();
        if let Ok(Err(error)) = spawn_blocking(move || spool.sweep()).await {
            tracing::warn!(%error, "cannot remove the files of stored grants");
        }
        self.store.purge_expired().await?;
        self.audit.purge().await.map(drop)
    }

    /// Starts up to `limit` revocations that are due at each provider, and leaves them to run.
    pub(crate) async fn start_revocations(self: &Arc<Self>, limit: u32) -> Result<(), BrokerError> {
        for (id, client) in self.revocations_due(limit).await? {
            let deletions = Arc::clone(self);
            self.process.tasks.spawn(async move { deletions.revoke_all(id, &client).await });
        }
        Ok(())
    }

    /// As [`Deletions::start_revocations`], and waits for them: a step of the background, for tests.
    /// Returns how many there were.
    pub(crate) async fn revoke_due(&self, limit: u32) -> Result<usize, BrokerError> {
        let due = self.revocations_due(limit).await?;
        for (id, client) in &due {
            self.revoke_all(*id, client).await;
        }
        Ok(due.len())
    }

    async fn revocations_due(&self, limit: u32) -> Result<Vec<(ConnectionId, Slug)>, BrokerError> {
        let mut due = Vec::new();
        for (provider, _) in self.limits.gates() {
            if self.process.draining.is_cancelled() {
                break;
            }
            let clients = self.clients.at_provider(provider);
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
        let _guard = RevokingGuard(self, id);
        let Ok(client) = self.clients.of_connection(client).map(Arc::clone) else { return };
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

    /// One step: claims the connection, revokes one token and erases it. True when there may be more
    /// to do at once.
    async fn revoke_next(&self, id: ConnectionId, client: &Client) -> Result<bool, BrokerError> {
        // A deletion does not wait for breakers that failed refreshes opened: only the pace counts.
        let turn = self.limits.gate(client).enter(&client.name, RefreshReason::Operator);
        let Some(turn) = self.process.draining.run_until_cancelled(turn).await else {
            return Ok(false);
        };
        turn?;
        let attempt = format!("{}.{}", self.process.replica, Uuid::now_v7());
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
        let spent = refresh.as_ref().map(Digest::of);
        let refused = match self.calls.revoke(client, &connection.vars, access, refresh).await {
            Ok(()) => None,
            Err(error) if matches!(error.verdict, Verdict::Refused { .. }) => {
                tracing::warn!(
                    connection.name = %connection.name, status = error.status, code = error.code,
                    "not revoked: a person has to remove the application at the provider"
                );
                Some(last_error(error, self.process.clock.now()))
            }
            Err(error) => {
                self.revoke_later(&connection, &attempt, error).await?;
                return Ok(false);
            }
        };
        let (spent, refused) = (spent.as_ref(), refused.as_ref());
        let erase = || self.store.durable().erase_token(id, &attempt, held.holding, spent, refused);
        Ok(retry_forever(erase).await)
    }

    /// The tokens that open. An error, to be tried again, where a key is missing that may come yet.
    fn open_revocable(
        &self,
        id: ConnectionId,
        held: &Revocable,
    ) -> Result<(Option<SecretString>, Option<SecretString>), ProviderError> {
        let refresh = known(self.vault.open_refresh(id, &held.grant))?;
        Ok((known(self.vault.open_access(id, &held.grant))?, refresh.flatten()))
    }

    async fn revoke_later(
        &self,
        connection: &Connection,
        attempt: &str,
        error: ProviderError,
    ) -> Result<(), BrokerError> {
        let pause = backoff(connection.failures.saturating_add(1), secret::random_seed());
        let asked = match error.verdict {
            Verdict::Busy { retry_after } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        tracing::warn!(
            connection.name = %connection.name, verdict = ?error.verdict, status = error.status,
            code = error.code, "not revoked yet: {}", error.message
        );
        let now = self.process.clock.now();
        let (error, until) = (last_error(error, now), now + pause.max(asked));
        self.store.defer_revocation(connection.id, attempt, &error, until).await?;
        self.cache.reload(connection.id).await?;
        Ok(())
    }

    /// Nothing is left to be revoked. True when something has come meanwhile.
    async fn finish(&self, connection: &Connection, attempt: &str) -> Result<bool, BrokerError> {
        let Connection { id, name, .. } = connection;
        match self.store.finish_deletion(*id, attempt).await? {
            DeletionStep::Forgotten => {
                self.cache.remove(name.as_str(), *id);
                self.erase_spooled(*id).await;
                tracing::info!(connection.name = %name, "its tokens are revoked; it is forgotten");
                self.audit.emit_for(
                    EventKind::TokensRevoked,
                    &Actor::broker(),
                    connection,
                    "revoked",
                );
                Ok(false)
            }
            DeletionStep::LeftToPerson => {
                self.audit.emit_for(
                    EventKind::TokensRevoked,
                    &Actor::broker(),
                    connection,
                    "left to a person",
                );
                self.erase_spooled(*id).await;
                self.cache.reload(*id).await?;
                Ok(false)
            }
            DeletionStep::NotYet => Ok(true),
        }
    }

    /// Removes what lies of a connection in this replica's spool, and what was put aside.
    async fn erase_spooled(&self, id: ConnectionId) {
        let spool = self.spool.clone();
        let erased = spawn_blocking(move || spool.erase(id)).await;
        if !matches!(erased, Ok(Ok(()))) {
            tracing::error!(connection.id = %id, "the spool may still hold sealed tokens of it");
        }
    }
}

fn last_error(error: ProviderError, at: Timestamp) -> LastError {
    LastError { code: error.code, message: error.message, at }
}

/// The token that opens; none where it never will. An error where its key may come yet.
fn known<T>(opened: Result<T, OpenError>) -> Result<Option<T>, ProviderError> {
    match opened {
        Ok(token) => Ok(Some(token)),
        Err(error @ OpenError::UnknownKey(_)) => {
            let message = format!("A token to revoke is {error}.");
            Err(ProviderError::new(Verdict::NotSent, None, broker_code::UNKNOWN_KEY, message))
        }
        Err(error) => {
            tracing::error!(%error, "a token to revoke does not open");
            Ok(None)
        }
    }
}
