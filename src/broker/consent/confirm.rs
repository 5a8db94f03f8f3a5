//! Confirmation: somebody says that the account that consented is the one that was meant.

use std::{net::IpAddr, sync::Arc};

use crate::{
    audit::{Actor, EventKind},
    broker::{
        BrokerError, Caller, ConnectionView,
        access::{Access, ensure_not_quarantined},
        audit::AuditLog,
        cache::Cache,
        clients::Clients,
        connections::Connections,
        recovery::Recovery,
        refresh::{commit::Committer, schedule::due_at},
        vault::Vault,
    },
    domain::{caller::Verb, slug::Slug},
    seal::secret::Digest,
    store::{self, Store},
};

/// Confirms accounts.
#[derive(Debug)]
pub(crate) struct Confirmations {
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) access: Arc<Access>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) committer: Arc<Committer>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) audit: Arc<AuditLog>,
}

impl Confirmations {
    /// Accepts the account that consented, named by the provider's id of it.
    pub(crate) async fn confirm(
        &self,
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
        let by = Actor::new(caller.label(), peer);
        self.access.ensure_caller_not_frozen(caller)?;
        let unknown = || BrokerError::no_connection(name);
        let slug: Slug = name.parse().map_err(|_| unknown())?;
        let record = self.store.record(slug.as_str()).await?.ok_or_else(unknown)?;
        let Some(pending) = &record.pending else {
            return Err(BrokerError::Conflict(format!(
                "connection `{name}` has nothing to confirm"
            )));
        };
        self.access.ensure_not_deleted(&record.connection)?;
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
            if !self.store.drop_pending_until(id, pending.grant.received_at).await? {
                return Err(changed());
            }
            self.audit.emit_for(
                EventKind::AccountMismatch,
                &by,
                &record.connection,
                "confirmed another",
            );
            self.cache.reload(id).await?;
            return Err(BrokerError::Invalid(
                "another account consented than the one named in `account`; its tokens were \
                 discarded"
                    .to_owned(),
            ));
        }
        let open = self.vault.open(id, &pending.grant)?;
        let next = self.committer.seal_live(id, record.generation() + 1, &open);
        let commit = store::Commit {
            connection: id,
            grant: &next,
            source: store::Source::Consent { judged: &record.connection },
            refresh_at: due_at(
                self.clients.of_connection(&record.connection.client)?,
                &record.connection,
                &next,
            ),
            account: pending.account.as_ref(),
            vars: Some(&pending.vars),
            scopes: None,
            token_url: pending.token_url.as_deref(),
            refresh_hash: open.refresh_hash(),
        };
        if !self.store.durable().commit_confirmed(&commit).await? {
            return Err(changed());
        }
        tracing::info!(connection.name = %name, by = %caller.label(), "account confirmed");
        let confirmed = self.audit.about_connection(
            self.audit.event(EventKind::AccountConfirmed, &by),
            &record.connection,
        );
        self.audit
            .emit(&confirmed.with_grant(Digest::of(&open.access).fingerprint(), next.generation()));
        self.recovery.raise_watermark();
        let record = self.cache.reload(id).await?;
        self.connections.view(&record.connection.name).await
    }
}

/// Another grant took the place of the one that was looked at.
fn changed() -> BrokerError {
    BrokerError::Conflict("the connection changed at this moment; confirm again".to_owned())
}
