//! The consent flow: from the press of a link's button to the provider and back.
//!
//! May use: the store, the vault, access, the limiters, the provider calls, the committer and the
//! audit log. Used by the facade.

mod api_key;
mod confirm;
mod exchange;
mod links;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use url::Url;

use self::exchange::Exchange;
pub(crate) use self::{
    api_key::ApiKeys,
    confirm::Confirmations,
    exchange::CodeExchange,
    links::{Links, PublicUrls},
};
pub use self::{
    api_key::KeyExchangeRequest,
    links::{LinkPage, LinkRequest, MadeLink},
};
use super::{
    BrokerError, Gone, access::Access, audit::AuditLog, cache::Cache, clients::Clients,
    limits::Limits, process::Process, vault::Vault,
};
use crate::{
    audit::{Actor, EventKind},
    domain::{
        consent::{CONSENT_LIFE, Consent, Ending, MAX_CONSENTS, MAX_LIVE_CONSENTS, Outcome},
        slug::Slug,
    },
    provider::{Authorization, amocrm, client::Client, request},
    seal::{
        SealedField,
        secret::{self, Digest},
    },
    store::{Store, retry::retry_forever},
};

/// A callback: the query that a browser brings back from the provider, checked for duplicates.
#[derive(Debug)]
pub struct Callback {
    /// The client that the path names.
    pub client: Slug,
    /// The parameters, each at most once.
    pub params: BTreeMap<String, String>,
    /// The browser's binding, from its cookie.
    pub browser: Option<SecretString>,
    /// Where the browser is, for the record of it.
    pub peer: Option<IpAddr>,
}

/// The owners of this room.
#[derive(Debug)]
pub(crate) struct Consents {
    pub(crate) links: Arc<Links>,
    pub(crate) flow: Arc<ConsentFlow>,
    pub(crate) confirmations: Confirmations,
    pub(crate) api_keys: Arc<ApiKeys>,
}

/// Consents: from the press of a button to the callback.
#[derive(Debug)]
pub(crate) struct ConsentFlow {
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) access: Arc<Access>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) links: Arc<Links>,
    pub(crate) exchange: Arc<CodeExchange>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) process: Arc<Process>,
}

impl ConsentFlow {
    /// A person pressed the button: binds the link to their browser and returns where to go.
    pub(crate) async fn begin(
        &self,
        secret: &SecretString,
        browser: &SecretString,
        peer: Option<IpAddr>,
    ) -> Result<Url, BrokerError> {
        let by = Actor::browser(peer);
        let _turn = self.limits.public_turn().await?;
        let begun = self.begin_by(&by, secret, browser).await;
        let refused = match &begun {
            Err(BrokerError::Gone(Gone::Ended)) => "link ended",
            Err(BrokerError::Gone(Gone::OtherBrowser)) => "other browser",
            Err(BrokerError::Gone(Gone::Used)) => "link used",
            Err(BrokerError::TooMany(_)) => "too many attempts",
            Err(BrokerError::Conflict(_)) => "quarantined",
            Err(BrokerError::Frozen(_)) => "frozen",
            _ => return begun,
        };
        self.note_refused_link(&by, secret, refused).await;
        begun
    }

    /// Records that a link was refused: with its connection where there is such a link.
    async fn note_refused_link(&self, by: &Actor, secret: &SecretString, why: &str) {
        let link = self.store.link(&Digest::of(secret)).await.ok().flatten();
        match link {
            Some(link) => match self.store.record_by_id(link.connection).await {
                Ok(Some(record)) => {
                    let detail = format!("{why}, link {}", link.id);
                    self.audit.record_refusal(by, Some(&record.connection), &detail);
                }
                _ => self.audit.record_anonymous_refusal(by, why),
            },
            None => self.audit.record_anonymous_refusal(by, why),
        }
    }

    async fn begin_by(
        &self,
        by: &Actor,
        secret: &SecretString,
        browser: &SecretString,
    ) -> Result<Url, BrokerError> {
        let page = self.links.page_behind(secret, Some(browser)).await?;
        if page.link.spent_at.is_some() {
            return Err(BrokerError::Gone(Gone::Used));
        }
        let LinkPage { link, connection, .. } = page;
        self.limits.press(link.id)?;
        let browser = Digest::of(browser);
        let client = self.clients.of_connection(&connection.client)?;
        let state = secret::random();
        let verifier = client.profile.pkce().then(secret::random);
        let challenge = verifier
            .as_ref()
            .map(|verifier| URL_SAFE_NO_PAD.encode(Digest::of(verifier).as_bytes()));
        let seal = |field, secret| self.vault.seal_of_link(link.id, field, secret);
        let now = self.process.clock.now();
        let consent = Consent {
            link: link.id,
            connection: connection.id,
            client: connection.client.clone(),
            redirect_uri: client.redirect_uri.clone(),
            token_url: client.profile.token.url.as_str().to_owned(),
            scopes: link.scopes,
            verifier: verifier.as_ref().map(|verifier| seal(SealedField::Verifier, verifier)),
            link_secret: seal(SealedField::LinkSecret, secret),
            started_at: now,
            expires_at: now + CONSENT_LIFE,
        };
        let url = request::authorize_url(
            client,
            &Authorization {
                state: &state,
                scopes: &consent.scopes,
                challenge: challenge.as_deref(),
                vars: &connection.vars,
            },
        )
        .map_err(|error| BrokerError::Misconfigured(error.to_string()))?;
        if !self.store.has_room_for_consents(MAX_CONSENTS).await? {
            return Err(BrokerError::TooMany(
                "too many attempts are under way; wait ten minutes".to_owned(),
            ));
        }
        // Only now that nothing else can be in the way: bound, the link is of no use to others.
        if !self.store.bind_browser(consent.link, &browser).await? {
            return Err(BrokerError::Gone(Gone::OtherBrowser));
        }
        let started = self
            .store
            .start_consent(&consent, &Digest::of(&state), &browser, MAX_LIVE_CONSENTS)
            .await?;
        if !started {
            return Err(BrokerError::TooMany(
                "too many attempts of this link are under way; wait ten minutes".to_owned(),
            ));
        }
        let detail = format!("link {}", consent.link);
        self.audit.emit_for(EventKind::ConsentBegun, by, &connection, &detail);
        Ok(url)
    }

    /// The provider sent the browser back. Returns the URL of the page that says how it went.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Invalid`] when the callback does not belong to a consent that this browser
    /// has under way; nothing is sent to the provider then.
    pub(crate) async fn finish(
        self: &Arc<Self>,
        callback: Callback,
    ) -> Result<SecretString, BrokerError> {
        let by = Actor::browser(callback.peer);
        let refused = || {
            BrokerError::Invalid(
                "this callback belongs to no consent that is under way in this browser; open the \
                 consent link again"
                    .to_owned(),
            )
        };
        let Some(client) = self.clients.get(&callback.client).cloned() else {
            self.audit.record_anonymous_refusal(&by, "unknown client");
            return Err(refused());
        };
        let issuer = client.profile.authorize.as_ref().and_then(|from| from.issuer.as_ref());
        if issuer.is_some_and(|issuer| callback.params.get("iss") != Some(issuer)) {
            self.audit.record_anonymous_refusal(&by, "another issuer");
            return Err(refused());
        }
        let state = callback.params.get("state").filter(|state| state.len() == 43);
        let Some(state) = state.map(|state| Digest::of_bytes(state.as_bytes())) else {
            self.audit.record_anonymous_refusal(&by, "no state");
            return Err(refused());
        };
        let turn = self.limits.public_turn().await?;
        let Some(browser) = &callback.browser else {
            self.note_refused_state(&by, &state).await;
            return Err(refused());
        };
        let consent =
            self.store.take_consent(&state, &Digest::of(browser), &callback.client).await?;
        let Some(consent) = consent else {
            self.note_refused_state(&by, &state).await;
            return Err(refused());
        };
        drop(turn);
        let back = self.open_link_secret(&consent)?;
        // The exchange goes on when the browser hangs up: its code can be used only once.
        let flow = Arc::clone(self);
        let params = callback.params;
        let task = self.process.tasks.spawn(async move {
            let ending = flow.conclude(&client, &consent, &params).await;
            if let Ok(Some(record)) = flow.store.record_by_id(consent.connection).await {
                let grant = flow.cache.grant_label(&record.connection);
                flow.audit.record_ending(&by, &record.connection, grant, ending.as_ref());
            }
            let ending = ending.unwrap_or_else(|error| {
                tracing::warn!(link.id = %consent.link, %error, "consent failed");
                Outcome::Failed.into()
            });
            retry_forever(|| flow.store.durable().finish_link(consent.link, &state, &ending)).await;
        });
        task.await.map_err(|_| BrokerError::Internal)?;
        Ok(self.links.url(&back))
    }

    /// Records that a callback was refused although its `state` may be one of ours.
    async fn note_refused_state(&self, by: &Actor, state: &Digest) {
        let connection = self.store.consent_of_state(state).await.ok().flatten();
        let record = match connection {
            Some(id) => self.store.record_by_id(id).await.ok().flatten(),
            None => None,
        };
        match record {
            Some(record) => {
                let why = "other browser or client, or late";
                self.audit.record_refusal(by, Some(&record.connection), why);
            }
            None => self.audit.record_anonymous_refusal(by, "unknown state"),
        }
    }

    fn open_link_secret(&self, consent: &Consent) -> Result<SecretString, BrokerError> {
        let sealed = &consent.link_secret;
        Ok(self.vault.open_of_link(consent.link, SealedField::LinkSecret, sealed)?)
    }

    /// Reads the provider's answer, and exchanges the code if there is one.
    async fn conclude(
        &self,
        client: &Client,
        consent: &Consent,
        params: &BTreeMap<String, String>,
    ) -> Result<Ending, BrokerError> {
        let code = params.get("code").filter(|code| !code.is_empty());
        let (Some(code), None) = (code, params.get("error")) else {
            let error = params.get("error").map_or("no code", String::as_str);
            // Without an error a missing code is a refusal too: that is how Divar says no.
            let denied = matches!(error, "access_denied" | "no code");
            tracing::info!(link.id = %consent.link, denied, "the provider gave no code");
            return Ok(if denied { Outcome::Denied } else { Outcome::Failed }.into());
        };
        if client.profile.token.url.as_str() != consent.token_url {
            return Err(BrokerError::Invalid(
                "the provider's profile changed while the consent was under way".to_owned(),
            ));
        }
        let record =
            self.store.record_by_id(consent.connection).await?.ok_or(BrokerError::Revoked)?;
        let link_secret = Digest::of(&self.open_link_secret(consent)?);
        let link = self.store.link(&link_secret).await?.ok_or(BrokerError::Gone(Gone::Ended))?;
        self.access.ensure_link_open(&link, &record.connection)?;
        let mut vars = record.connection.vars.clone();
        let captured = client
            .profile
            .capture(|name| params.get(name).map(String::as_str))
            .map_err(|error| BrokerError::Invalid(error.to_string()))?;
        let meant = link.expected_account.as_deref();
        for (name, value) in captured {
            let before = vars.get(&name).map(String::as_str);
            if !amocrm::is_meant(&name, &value, before, meant) {
                tracing::warn!(
                    connection.name = %record.connection.name, name,
                    "the callback is of another account; nothing was sent"
                );
                let remark = Some(format!("another {name}"));
                return Ok(Ending { remark, ..Outcome::WrongAccount.into() });
            }
            vars.insert(name, value);
        }
        let verifier = consent
            .verifier
            .as_ref()
            .map(|sealed| self.vault.open_of_link(consent.link, SealedField::Verifier, sealed))
            .transpose()?;
        let exchange = Exchange {
            code: SecretString::from(code.as_str()),
            verifier,
            redirect_uri: &consent.redirect_uri,
            vars,
            scopes: &consent.scopes,
            expected_account: link.expected_account.as_deref(),
            own_browser: link.own_browser,
        };
        self.exchange.run(client, record, exchange).await
    }
}
