//! Connections as operators and services see them: made, listed, refreshed, deleted.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    BrokerError, Caller, RefreshReason,
    access::Access,
    audit::AuditLog,
    cache::{Cache, CachedConnection},
    clients::Clients,
    refresh::SingleFlight,
};
use crate::{
    audit::{Actor, EventKind},
    clock::Clock,
    domain::{
        connection::{Account, Connection, ConnectionId, GrantType, LastError, State, Vars},
        slug::Slug,
    },
    provider::client::choose_grant,
    store::Store,
};

/// A connection to be made.
#[derive(Clone, Debug)]
pub struct NewConnection {
    /// Its name.
    pub name: Slug,
    /// The client it goes through.
    pub client: Slug,
    /// How it obtains tokens, where that differs from the client's way.
    pub grant_type: Option<GrantType>,
    /// The scopes, where they differ from the client's.
    pub scopes: Option<Vec<String>>,
    /// The account whose consent needs no confirmation.
    pub expected_account: Option<String>,
}

/// A connection without its tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ConnectionView {
    /// Its name.
    #[schema(value_type = String, example = "avito-main")]
    pub name: Slug,
    /// The client it goes through.
    #[schema(value_type = String, example = "avito")]
    pub client: Slug,
    /// The provider of that client; none while the configuration lacks the client.
    pub provider: Option<String>,
    /// How it obtains its tokens.
    pub grant_type: GrantType,
    /// Where it stands.
    pub state: State,
    /// Why it stands there, as a stable word.
    pub reason: Option<String>,
    /// The account at the provider, once known.
    pub account: Option<Account>,
    /// The account that consented and waits to be confirmed.
    pub pending_account: Option<Account>,
    /// The account that is expected.
    pub expected_account: Option<String>,
    /// The scopes that are asked for.
    pub scopes: Vec<String>,
    /// The scopes that were granted.
    pub granted_scopes: Vec<String>,
    /// How many grants it has held.
    pub generation: i64,
    /// When the access token ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// When the next refresh is due.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub refresh_at: Option<Timestamp>,
    /// Passing failures in a row.
    pub failures: u32,
    /// The last failure since the last success.
    pub last_error: Option<LastError>,
    /// The task of a person, where the broker can do no more.
    pub task: Option<String>,
    /// Whether it, its client or its provider is frozen: nothing of it is served then.
    pub frozen: bool,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Makes, lists and refreshes connections.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) store: Store,
    pub(crate) cache: Arc<Cache>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) access: Arc<Access>,
    pub(crate) flights: Arc<SingleFlight>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) clock: Clock,
}

impl Connections {
    /// Makes a connection. One that obtains its tokens by client credentials has its first token
    /// when this returns, or says in `last_error` why not.
    pub(crate) async fn create(
        &self,
        by: &Actor,
        new: NewConnection,
    ) -> Result<ConnectionView, BrokerError> {
        let client = self.clients.named(&new.client)?;
        let grant_type = choose_grant(&client.profile, new.grant_type.or(Some(client.grant_type)))
            .map_err(BrokerError::Invalid)?;
        if let Some(scopes) = &new.scopes {
            client
                .check_scopes(scopes)
                .map_err(|problem| BrokerError::Invalid(format!("`scopes`: {problem}")))?;
        }
        let now = self.clock.now();
        let direct = grant_type == GrantType::ClientCredentials;
        let connection = Connection {
            id: ConnectionId::new(),
            name: new.name.clone(),
            client: new.client,
            grant_type,
            scopes: new.scopes.unwrap_or_else(|| client.scopes.clone()),
            state: if direct { State::Active } else { State::PendingConsent },
            reason: None,
            account: None,
            expected_account: new.expected_account,
            vars: Vars::new(),
            created_at: now,
            refresh_at: direct.then_some(now),
            failures: 0,
            last_error: None,
        };
        if let Some(taken) = self.store.record(new.name.as_str()).await? {
            self.access.ensure_not_deleted(&taken.connection)?;
        }
        self.store.create(&connection).await?;
        self.cache.reload(connection.id).await?;
        tracing::info!(connection.name = %new.name, "connection made");
        self.audit.emit_for(EventKind::ConnectionMade, by, &connection, "");
        if direct {
            // A failure is recorded with the connection, and the refresher tries again.
            let _ = self.flights.refresh(&connection, 0, RefreshReason::Created).await;
        }
        self.view(&new.name).await
    }

    /// The connections that a caller may see, by name.
    pub(crate) fn list(&self, caller: &Caller) -> Vec<ConnectionView> {
        self.cache
            .connections()
            .iter()
            .filter(|live| sees(caller, live.connection.name.as_str()))
            .map(|live| self.view_of(live))
            .collect()
    }

    /// One connection, if the caller may see it.
    ///
    /// # Errors
    ///
    /// [`BrokerError::NotFound`] when it does not exist or is not the caller's to know.
    pub(crate) async fn view_for(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<ConnectionView, BrokerError> {
        if !sees(caller, name) {
            return Err(BrokerError::no_connection(name));
        }
        Ok(self.view_of(&*self.cache.cached_or_load(name).await?))
    }

    pub(crate) async fn view(&self, name: &Slug) -> Result<ConnectionView, BrokerError> {
        Ok(self.view_of(&*self.cache.cached_or_load(name.as_str()).await?))
    }

    fn view_of(&self, live: &CachedConnection) -> ConnectionView {
        let connection = &live.connection;
        let grant = live.grant.as_ref();
        ConnectionView {
            name: connection.name.clone(),
            client: connection.client.clone(),
            provider: self.clients.provider_of(&connection.client).map(Slug::to_string),
            grant_type: connection.grant_type,
            state: connection.state,
            reason: connection.reason.clone(),
            account: connection.account.clone(),
            pending_account: live.pending_account.clone(),
            expected_account: connection.expected_account.clone(),
            scopes: connection.scopes.clone(),
            granted_scopes: grant.map(|grant| grant.scopes.clone()).unwrap_or_default(),
            generation: live.generation,
            expires_at: grant.map(|grant| grant.expires_at),
            refresh_at: connection.refresh_at,
            failures: connection.failures,
            last_error: connection.last_error.clone(),
            task: (connection.state == State::Revoked)
                .then(|| self.clients.removal_task(connection)),
            frozen: self.access.is_frozen(connection),
            created_at: connection.created_at,
        }
    }

    /// Refreshes a connection now, whatever its schedule or backoff says.
    pub(crate) async fn refresh_now(
        &self,
        by: &Actor,
        name: &str,
    ) -> Result<ConnectionView, BrokerError> {
        let live = self.cache.cached_or_load(name).await?;
        let connection = &live.connection;
        if let Some(refusal) = BrokerError::of_state(connection) {
            return Err(refusal);
        }
        if !connection.state.refreshes() {
            return Err(BrokerError::Conflict(format!("the connection is {}", connection.state)));
        }
        self.audit.emit_for(EventKind::RefreshAsked, by, connection, "");
        self.flights.refresh(connection, live.generation, RefreshReason::Operator).await?;
        self.view(&connection.name).await
    }
}

fn sees(caller: &Caller, name: &str) -> bool {
    match caller {
        Caller::Operator(_) => true,
        Caller::Service(service) => service.sees(name),
    }
}
