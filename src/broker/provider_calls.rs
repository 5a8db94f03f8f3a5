//! The calls to a provider that carry a token or a secret, one method each.

use secrecy::SecretString;

use crate::{
    clock::BootInstant,
    domain::{
        broker_code,
        connection::{Account, Vars},
    },
    failpoint::{Failpoints, Point},
    provider::{
        Grant, Outbound, OutboundRequest, ProviderError, RevokedToken, Verdict, amocrm,
        client::Client, read_account, read_grant, read_revocation, request,
    },
};

/// The way out to the providers.
#[derive(Debug)]
pub(crate) struct ProviderCalls {
    outbound: Outbound,
    failpoints: Failpoints,
}

impl ProviderCalls {
    pub(crate) fn new(outbound: Outbound, failpoints: Failpoints) -> Self {
        Self { outbound, failpoints }
    }

    /// One request to the token endpoint, and its answer, read. It may spend a refresh token or a
    /// code. Never sent after `send_before`, and never twice.
    pub(crate) async fn token(
        &self,
        client: &Client,
        request: OutboundRequest,
        send_before: Option<BootInstant>,
    ) -> Result<Grant, ProviderError> {
        let reply = self.outbound.send(&client.profile, request, send_before).await?;
        self.failpoints.reach(Point::Received).await;
        read_grant(&client.profile, &reply)
    }

    /// The account that an access token is for; none where the profile names no way to ask.
    pub(crate) async fn account(
        &self,
        client: &Client,
        access: &SecretString,
        vars: &Vars,
    ) -> Result<Option<Account>, ProviderError> {
        let Some(request) = request::account(client, access, vars) else { return Ok(None) };
        let request = request.map_err(|error| {
            ProviderError::new(
                Verdict::Misconfigured,
                None,
                broker_code::ACCOUNT_CALL,
                error.to_string(),
            )
        })?;
        let reply = self.outbound.send(&client.profile, request, None).await?;
        read_account(&client.profile, &reply).map(Some)
    }

    /// Revokes one grant (RFC 7009) by the token that the profile names, or by the other one where
    /// the connection lacks that.
    pub(crate) async fn revoke(
        &self,
        client: &Client,
        vars: &Vars,
        access: Option<SecretString>,
        refresh: Option<SecretString>,
    ) -> Result<(), ProviderError> {
        let refuse = |code: &str, message: &str| {
            let verdict = Verdict::Refused { reason: code.to_owned() };
            Err(ProviderError::new(verdict, None, code, message))
        };
        let Some(revocation) = &client.profile.revocation else {
            return refuse(
                broker_code::NO_REVOCATION,
                "The provider's profile offers no revocation.",
            );
        };
        let access = access.map(|token| (RevokedToken::Access, token));
        let refresh = refresh.map(|token| (RevokedToken::Refresh, token));
        let token = match revocation.token {
            RevokedToken::Access => access.or(refresh),
            RevokedToken::Refresh => refresh.or(access),
        };
        let Some((kind, token)) = token else {
            return refuse(broker_code::INTEGRITY_ERROR, "The stored tokens do not open.");
        };
        let request = request::revoke(client, kind, &token, vars).map_err(|error| {
            let message = format!("The request cannot be made: {error}.");
            ProviderError::new(Verdict::Misconfigured, None, "not_sent", message)
        })?;
        let reply = self.outbound.send(&client.profile, request, None).await?;
        read_revocation(&reply)
    }

    /// Asks amoCRM to exchange an API key for a code, which arrives at the callback.
    pub(crate) async fn exchange_api_key(
        &self,
        client: &Client,
        request: OutboundRequest,
    ) -> Result<(), ProviderError> {
        let reply = self.outbound.send(&client.profile, request, None).await?;
        amocrm::read_key_exchange(&client.profile, &reply)
    }
}
