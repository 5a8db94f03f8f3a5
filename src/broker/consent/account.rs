//! Whose account a token is for, as the provider tells.

use secrecy::SecretString;

use crate::{
    broker::Broker,
    domain::{
        broker_code,
        connection::{Account, Record, Vars},
    },
    provider::{ProviderError, Verdict, client::Client, read_account, request},
};

impl Broker {
    /// Asks whose account a token is for, where that is not known yet: the client's own, or one that
    /// the provider did not tell at the consent. Good to know, never a condition; what was stored
    /// since, and perhaps for another account, stays.
    pub(crate) async fn learn_account(
        &self,
        client: &Client,
        record: &Record,
        access: &SecretString,
    ) {
        let id = record.connection.id;
        let account = self.account(client, access, &record.connection.vars).await;
        match account {
            Ok(Some(account)) => {
                let stored = self.store.set_account(id, record.generation(), &account).await;
                if stored.is_ok_and(|stored| stored) {
                    let _ = self.refresh_cache(id).await;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::info!("the account could not be read: {}", error.message),
        }
    }

    /// The account that an access token is for; none where the profile names no way to ask.
    pub(crate) async fn account(
        &self,
        client: &Client,
        access: &SecretString,
        vars: &Vars,
    ) -> Result<Option<Account>, ProviderError> {
        let Some(request) = request::account(client, access, vars) else { return Ok(None) };
        let request = request.map_err(|error| ProviderError {
            verdict: Verdict::Misconfigured,
            status: None,
            code: broker_code::ACCOUNT_CALL.to_owned(),
            message: error.to_string(),
            salvaged_refresh: None,
        })?;
        let reply = self.outbound.send(&client.profile, request, None).await?;
        read_account(&client.profile, &reply).map(Some)
    }
}
