//! amoCRM accounts from before 2020: an API key becomes a code that arrives at the callback with
//! neither state nor cookie. It is accepted only while such an exchange is pending for that client
//! and account host.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use secrecy::SecretString;
use uuid::Uuid;

use super::exchange::Exchange;
use crate::{
    audit::{By, Kind},
    broker::{Broker, BrokerError, ConnectionView, NewConnection},
    domain::{
        connection::{GrantType, Vars},
        consent::{KEY_EXCHANGE_LIFE, KeyExchange, Outcome},
        slug::Slug,
    },
    provider::{Verdict, amocrm},
    seal::secret::Digest,
    store::retry::retry_forever,
};

/// How many codes are tried for one exchange.
const MAX_TRIES: i64 = 5;

/// What an API-key exchange needs.
#[derive(Debug)]
pub struct KeyExchangeRequest {
    /// The account's own host, such as `example.amocrm.ru`.
    pub account_host: String,
    /// The login of the key's owner.
    pub login: String,
    /// The API key.
    pub api_key: SecretString,
}

impl Broker {
    /// Makes a connection by exchanging an API key. The connection is live once the code has
    /// arrived and the account is the one of `account_host`.
    ///
    /// # Errors
    ///
    /// When the provider has no such exchange, the host is not one of its accounts, no way into the
    /// connection is open, the provider refuses, or the store fails.
    pub async fn connect_with_api_key(
        self: &Arc<Self>,
        by: &By,
        new: NewConnection,
        request: KeyExchangeRequest,
    ) -> Result<ConnectionView, BrokerError> {
        let client = Arc::clone(self.client_by_name(&new.client)?);
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
                self.ensure_accepts_grants(&record.connection)?;
                record
            }
            Some(_) => {
                return Err(BrokerError::Conflict(format!(
                    "connection `{name}` belongs to another client"
                )));
            }
            None => {
                self.ensure_not_frozen(&name, &new.client)?;
                let grant_type = Some(GrantType::AuthorizationCode);
                self.create_connection(by, NewConnection { grant_type, ..new }).await?;
                self.store.record(name.as_str()).await?.ok_or(BrokerError::Internal)?
            }
        };
        let now = self.clock.now();
        let pending = KeyExchange {
            id: Uuid::now_v7(),
            connection: record.connection.id,
            client: client.name.clone(),
            account_host: host,
            requested_at: now,
            expires_at: now + KEY_EXCHANGE_LIFE,
        };
        self.store.insert_exchange(&pending).await?;
        let reply = self.outbound.send(&client.profile, outbound, None).await;
        let accepted = reply.and_then(|reply| amocrm::read_key_exchange(&client.profile, &reply));
        if let Err(error) = accepted {
            if error.verdict != Verdict::Ambiguous {
                self.store.end_exchange(pending.id).await?;
            }
            return Err(BrokerError::Conflict(format!(
                "the provider did not accept the API key: {}",
                error.message
            )));
        }
        self.note_of(Kind::ConsentBegun, by, &record.connection, "API key");
        tracing::info!(connection = %name, "API key accepted; the code is on its way");
        self.view(&name).await
    }

    /// A code arrived from an API-key exchange. It is exchanged after the answer, because the
    /// provider waits for 3 s at the most and does not send it again.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Invalid`] when no exchange is pending for this client and account host.
    pub async fn finish_key_exchange(
        self: &Arc<Self>,
        client: &Slug,
        params: &BTreeMap<String, String>,
        peer: Option<IpAddr>,
    ) -> Result<(), BrokerError> {
        let by = By::browser(peer);
        let refused = || {
            self.record_anonymous_refusal(&by, "no API-key exchange");
            BrokerError::Invalid("no API-key exchange is pending for this account".to_owned())
        };
        let client = Arc::clone(self.clients.get(client).ok_or_else(refused)?);
        let code = params.get("code").filter(|code| !code.is_empty()).ok_or_else(refused)?;
        let vars = client
            .profile
            .capture(|name| params.get(name).map(String::as_str))
            .map_err(|_| refused())?;
        let host = vars.get(amocrm::ACCOUNT_HOST).ok_or_else(refused)?;
        let turn = self.visitors.turn().await?;
        // Anybody can send a code: a few may be tried, and only the right one ends the exchange.
        let pending = self.store.try_exchange(&client.name, host, MAX_TRIES).await?;
        let pending = pending.ok_or_else(refused)?;
        drop(turn);
        let code = SecretString::from(code.as_str());
        let broker = Arc::clone(self);
        self.tasks.spawn(async move {
            let Ok(Some(record)) = broker.store.record_by_id(pending.connection).await else {
                tracing::error!("the connection of an API-key exchange could not be read");
                return;
            };
            if let Err(refusal) = broker.ensure_accepts_grants(&record.connection) {
                tracing::warn!(%refusal, "the code of an API-key exchange is not exchanged");
                broker.note_ending(&by, &record.connection, Err(&refusal));
                return;
            }
            let under_way = Digest::of(&code);
            if let Err(error) =
                broker.store.begin_code_exchange(&under_way, pending.connection).await
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
            let outcome = broker.exchange(&client, record, exchange).await;
            retry_forever(|| broker.store.durable().end_code_exchange(&under_way)).await;
            broker.raise_watermark();
            broker.note_ending(&by, &connection, outcome.as_ref());
            match outcome.map(|ending| ending.outcome) {
                Ok(Outcome::Failed) => tracing::warn!("the code of an API-key exchange failed"),
                Ok(outcome) => {
                    retry_forever(|| broker.store.end_exchange(pending.id)).await;
                    tracing::info!(%outcome, "API-key exchange ended");
                }
                Err(error) => tracing::error!(%error, "API-key exchange failed"),
            }
        });
        Ok(())
    }
}
