//! Confirmation: somebody says that the account that consented is the one that was meant.

use std::{net::IpAddr, sync::Arc};

use crate::{
    audit::{By, Kind},
    broker::{
        Broker, BrokerError, Caller, ConnectionView, ReceivedGrant,
        recovery::quarantine::ensure_not_quarantined, refresh::commit::due_at,
    },
    domain::{caller::Verb, slug::Slug},
    seal::{Place, Sealed, secret::Digest},
    store,
};

impl Broker {
    /// Accepts the account that consented, named by the provider's id of it.
    ///
    /// # Errors
    ///
    /// When nothing waits, or another account consented: then its tokens are discarded.
    pub async fn confirm(
        self: &Arc<Self>,
        caller: &Caller,
        peer: Option<IpAddr>,
        name: &str,
        account: Option<&str>,
    ) -> Result<ConnectionView, BrokerError> {
        if let Caller::Service(service) = caller {
            if !service.sees(name) {
                return Err(BrokerError::no_connection(name));
            }
            if !service.may(Verb::Confirm, name) {
                return Err(BrokerError::Forbidden(
                    "this key may not confirm accounts; it needs the verb `confirm`".to_owned(),
                ));
            }
        }
        let by = By::new(caller.label(), peer);
        self.ensure_caller_not_frozen(caller)?;
        let unknown = || BrokerError::no_connection(name);
        let slug: Slug = name.parse().map_err(|_| unknown())?;
        let record = self.store.record(slug.as_str()).await?.ok_or_else(unknown)?;
        let Some(pending) = &record.pending else {
            return Err(BrokerError::Conflict(format!(
                "connection `{name}` has nothing to confirm"
            )));
        };
        self.ensure_not_deleted(&record.connection)?;
        ensure_not_quarantined(&record.connection)?;
        let id = record.connection.id;
        if pending.account.is_none() && record.connection.account.is_some() {
            return Err(BrokerError::Conflict(
                "the provider does not say who consented, and the connection belongs to a known \
                 account; delete it and connect anew"
                    .to_owned(),
            ));
        }
        if pending.account.as_ref().map(|account| account.id.as_str()) != account {
            if !self.store.drop_pending_until(id, pending.received_at).await? {
                return Err(changed());
            }
            self.note_of(Kind::AccountMismatch, &by, &record.connection, "confirmed another");
            self.refresh_cache(id).await?;
            return Err(BrokerError::Invalid(
                "another account consented than the one named in `account`; its tokens were \
                 discarded"
                    .to_owned(),
            ));
        }
        let text = id.to_string();
        let open = |field, sealed: &Sealed| {
            self.keyring
                .open(Place { record: &text, field, generation: 0 }, sealed)
                .map_err(BrokerError::from)
        };
        let access = open("pending.access", &pending.access)?;
        let refresh =
            pending.refresh.as_ref().map(|sealed| open("pending.refresh", sealed)).transpose()?;
        let received = ReceivedGrant {
            access: &access,
            refresh: refresh.as_ref(),
            scopes: pending.scopes.clone(),
            received_at: pending.received_at,
            expires_at: pending.expires_at,
            origin: None,
        };
        let next = self.seal_grant(id, record.generation() + 1, received);
        let commit = store::Commit {
            connection: id,
            grant: &next,
            source: store::Source::Consent { judged: &record.connection },
            refresh_at: due_at(self.client(&record.connection.client)?, &record.connection, &next),
            account: pending.account.as_ref(),
            vars: Some(&pending.vars),
            scopes: None,
            token_url: pending.token_url.as_deref(),
            refresh_hash: refresh.as_ref().map(Digest::of),
        };
        if !self.store.durable().commit_confirmed(&commit).await? {
            return Err(changed());
        }
        tracing::info!(connection = %name, by = %caller.label(), "account confirmed");
        let confirmed = self.of(self.record(Kind::AccountConfirmed, &by), &record.connection);
        self.note(&confirmed.with_grant(Digest::of(&access).fingerprint(), next.generation));
        self.raise_watermark();
        let record = self.refresh_cache(id).await?;
        self.view(&record.connection.name).await
    }
}

/// Another grant took the place of the one that was looked at.
fn changed() -> BrokerError {
    BrokerError::Conflict("the connection changed at this moment; confirm again".to_owned())
}
