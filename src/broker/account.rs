//! Whose account a token is for, as the provider tells.

use secrecy::SecretString;

use super::Broker;
use crate::{
    client::Client,
    connection::{Account, Record, Vars},
    provider::{ProviderError, Verdict, read_account, request},
};

impl Broker {
    /// Asks whose account a client-credentials token is for: good to know, never a condition.
    pub(super) async fn learn_account(
        &self,
        client: &Client,
        record: &Record,
        access: &SecretString,
    ) {
        let account = self.account(client, access, &record.connection.vars).await;
        match account {
            Ok(Some(account)) => {
                let stored = self.store.set_account(record.connection.id, &account).await;
                if stored.is_ok() {
                    let _ = self.reload(record.connection.id).await;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::info!("the account could not be read: {}", error.message),
        }
    }

    /// The account that an access token is for; none where the profile names no way to ask.
    pub(super) async fn account(
        &self,
        client: &Client,
        access: &SecretString,
        vars: &Vars,
    ) -> Result<Option<Account>, ProviderError> {
        let Some(request) = request::account(client, access, vars) else { return Ok(None) };
        let request = request.map_err(|error| ProviderError {
            verdict: Verdict::Misconfigured,
            status: None,
            code: "account_call".to_owned(),
            message: error.to_string(),
            salvaged_refresh: None,
        })?;
        let reply = self.outbound.send(&client.profile, request, None).await?;
        read_account(&client.profile, &reply).map(Some)
    }
}
