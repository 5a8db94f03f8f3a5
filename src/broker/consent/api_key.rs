//! amoCRM accounts from before 2020: an API key becomes a code that arrives at the callback with
//! neither state nor cookie. It is accepted only while such an exchange is pending for that client
//! and account host.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use secrecy::SecretString;
use uuid::Uuid;

use super::exchange::{CodeExchange, Exchange};
use crate::{
    audit::{Actor, EventKind},
    broker::{
        BrokerError, ConnectionView, NewConnection, access::Access, audit::AuditLog, cache::Cache,
        clients::Clients, connections::Connections, limits::Limits, process::Process,
        provider_calls::ProviderCalls,
    },
    domain::{
        connection::{GrantType, Vars},
        consent::{KEY_EXCHANGE_LIFE, KeyExchange, Outcome},
        slug::Slug,
    },
    provider::{Verdict, amocrm},
    seal::secret::Digest,
    store::{Store, retry::retry_forever},
};

/// Codes that are tried for one exchange.
const MAX_TRIES: i64 = 5;

/// The request of an API-key exchange.
#[derive(Debug)]
pub struct KeyExchangeRequest {
    /// The account's own host, such as `example.amocrm.ru`.
    pub account_host: String,
    /// The login of the key's owner.
    pub login: String,
    /// The API key.
    pub api_key: SecretString,
}

/// Exchanges of API keys.
#[derive(Debug)]
pub(crate) struct ApiKeys {
    pub(crate) store: Store,
    pub(crate) cache: Arc<Cache>,
    pub(crate) access: Arc<Access>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) calls: Arc<ProviderCalls>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) exchange: Arc<CodeExchange>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) process: Arc<Process>,
}

impl ApiKeys {
    /// Makes a connection by exchanging an API key. The connection is live once the code has
    /// arrived and the account is the one of `account_host`.
    pub(crate) async fn connect(
        &self,
        by: &Actor,
        new: NewConnection,
        request: KeyExchangeRequest,
    ) -> Result<ConnectionView, BrokerError> {
        let client = Arc::clone(self.clients.named(&new.client)?);
        let host = client
            .profile
            .check_var(amocrm::ACCOUNT_HOST, &request.account_host)
            .map_err(|error| BrokerError::Invalid(format!("`account_host`: {error}")))?;
        let vars = Vars::from([(amocrm::ACCOUNT_HOST.to_owned(), host.clone())]);
        let outbound = amocrm::key_exchange(&client, &request.login, &request.api_key, &vars)
            .map_err(|error| BrokerError::Invalid(error.to_string()))?;
        let name = new.name.clone();
        let record = match self.store.record(name.as_str()).await? {
            Some(record) if record.connection.client == new.client => {
                self.access.ensure_accepts_grants(&record.connection)?;
                record
            }
            Some(_) => {
                return Err(BrokerError::Conflict(format!(
                    "connection `{name}` belongs to another client"
                )));
            }
            None => {
                self.access.ensure_not_frozen(&name, &new.client)?;
                let grant_type = Some(GrantType::AuthorizationCode);
                self.connections.create(by, NewConnection { grant_type, ..new }).await?;
                self.store.record(name.as_str()).await?.ok_or(BrokerError::Internal)?
            }
        };
        let now = self.process.clock.now();
        let pending = KeyExchange {
            id: Uuid::now_v7(),
            connection: record.connection.id,
            client: client.name.clone(),
            account_host: host,
            requested_at: now,
            expires_at: now + KEY_EXCHANGE_LIFE,
        };
        self.store.insert_exchange(&pending).await?;
        if let Err(error) = self.calls.exchange_api_key(&client, outbound).await {
            if error.verdict != Verdict::Ambiguous {
                self.store.end_exchange(pending.id).await?;
            }
            return Err(BrokerError::Conflict(format!(
                "the provider did not accept the API key: {}",
                error.message
            )));
        }
        self.audit.emit_for(EventKind::ConsentBegun, by, &record.connection, "API key");
        tracing::info!(connection.name = %name, "API key accepted; the code is on its way");
        self.connections.view(&name).await
    }

    /// A code arrived from an API-key exchange. It is exchanged after the answer, because the
    /// provider waits for 3 s at the most and does not send it again.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Invalid`] when no exchange is pending for this client and account host.
    pub(crate) async fn finish(
        self: &Arc<Self>,
        client: &Slug,
        params: &BTreeMap<String, String>,
        peer: Option<IpAddr>,
    ) -> Result<(), BrokerError> {
        let by = Actor::browser(peer);
        let refused = || {
            self.audit.record_anonymous_refusal(&by, "no API-key exchange");
            BrokerError::Invalid("no API-key exchange is pending for this account".to_owned())
        };
        let client = Arc::clone(self.clients.get(client).ok_or_else(refused)?);
        let code = params.get("code").filter(|code| !code.is_empty()).ok_or_else(refused)?;
        let vars = client
            .profile
            .capture(|name| params.get(name).map(String::as_str))
            .map_err(|_| refused())?;
        let host = vars.get(amocrm::ACCOUNT_HOST).ok_or_else(refused)?;
        let turn = self.limits.public_turn().await?;
        // Anybody can send a code: a few may be tried, and only the right one ends the exchange.
        let pending = self.store.try_exchange(&client.name, host, MAX_TRIES).await?;
        let pending = pending.ok_or_else(refused)?;
        drop(turn);
        let code = SecretString::from(code.as_str());
        let exchanges = Arc::clone(self);
        self.process.tasks.spawn(async move {
            let Ok(Some(record)) = exchanges.store.record_by_id(pending.connection).await else {
                tracing::error!("the connection of an API-key exchange could not be read");
                return;
            };
            if let Err(refusal) = exchanges.access.ensure_accepts_grants(&record.connection) {
                tracing::warn!(%refusal, "the code of an API-key exchange is not exchanged");
                exchanges.audit.record_ending(&by, &record.connection, None, Err(&refusal));
                return;
            }
            let under_way = Digest::of(&code);
            if let Err(error) =
                exchanges.store.begin_code_exchange(&under_way, pending.connection).await
            {
                tracing::error!(%error, "the code of an API-key exchange is not exchanged");
                return;
            }
            // The host names the account: its first label is the subdomain that the account reports.
            let subdomain = pending.account_host.split('.').next().map(str::to_owned);
            let expected_account = record.connection.expected_account.clone().or(subdomain);
            let scopes = record.connection.scopes.clone();
            let exchange = Exchange {
                code,
                verifier: None,
                redirect_uri: &client.redirect_uri,
                vars,
                scopes: &scopes,
                expected_account: expected_account.as_deref(),
                own_browser: false,
            };
            let connection = record.connection.clone();
            let outcome = exchanges.exchange.run(&client, record, exchange).await;
            retry_forever(|| exchanges.store.durable().end_code_exchange(&under_way)).await;
            let grant = exchanges.cache.grant_label(&connection);
            exchanges.audit.record_ending(&by, &connection, grant, outcome.as_ref());
            match outcome.map(|ending| ending.outcome) {
                Ok(Outcome::Failed) => tracing::warn!("the code of an API-key exchange failed"),
                Ok(outcome) => {
                    retry_forever(|| exchanges.store.end_exchange(pending.id)).await;
                    tracing::info!(%outcome, "API-key exchange ended");
                }
                Err(error) => tracing::error!(%error, "API-key exchange failed"),
            }
        });
        Ok(())
    }
}
