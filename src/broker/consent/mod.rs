//! Consent: from the press of a link's button to the provider and back.

pub(crate) mod account;
pub(crate) mod api_key;
pub(crate) mod confirm;
pub(crate) mod exchange;
pub(crate) mod links;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use url::Url;

use self::exchange::Exchange;
use super::{Broker, BrokerError, Gone, LinkPage};
use crate::{
    audit::{By, Kind},
    domain::{
        connection::Connection,
        consent::{
            CONSENT_LIFE, Consent, Ending, MAX_CONSENTS, MAX_LIVE_CONSENTS, MAX_PRESSES, Outcome,
        },
        slug::Slug,
    },
    provider::{Authorization, amocrm, client::Client, request},
    seal::{
        Place, Sealed,
        secret::{self, Digest},
    },
    store::retry::retry_forever,
};

/// What a browser brings back from the provider: its query, checked for duplicates.
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

impl Broker {
    /// A person pressed the button: binds the link to their browser and returns where to go.
    ///
    /// # Errors
    ///
    /// When the link has ended, belongs to another browser, or has too many attempts under way.
    pub async fn begin_consent(
        &self,
        secret: &SecretString,
        browser: &SecretString,
        peer: Option<IpAddr>,
    ) -> Result<Url, BrokerError> {
        let by = By::browser(peer);
        let _turn = self.visitors.turn().await?;
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
    async fn note_refused_link(&self, by: &By, secret: &SecretString, why: &str) {
        let link = self.store.link(&Digest::of(secret)).await.ok().flatten();
        match link {
            Some(link) => match self.store.record_by_id(link.connection).await {
                Ok(Some(record)) => {
                    let detail = format!("{why}, link {}", link.id);
                    self.record_refusal(by, Some(&record.connection), &detail);
                }
                _ => self.record_anonymous_refusal(by, why),
            },
            None => self.record_anonymous_refusal(by, why),
        }
    }

    /// Records that a browser was refused for the form of its request alone.
    pub fn note_refused_request(&self, peer: Option<IpAddr>, why: &'static str) {
        self.record_anonymous_refusal(&By::browser(peer), why);
    }

    async fn begin_by(
        &self,
        by: &By,
        secret: &SecretString,
        browser: &SecretString,
    ) -> Result<Url, BrokerError> {
        let page = self.page_behind(secret, Some(browser)).await?;
        if page.link.spent_at.is_some() {
            return Err(BrokerError::Gone(Gone::Used));
        }
        let LinkPage { link, connection, .. } = page;
        if !self.presses.admits(self.clock.since_boot(), link.id, MAX_PRESSES).0 {
            return Err(BrokerError::TooMany(
                "the button of this link was pressed too often; wait a minute".to_owned(),
            ));
        }
        let browser = Digest::of(browser);
        let client = self.client(&connection.client)?;
        let state = secret::random();
        let verifier = client.profile.pkce().then(secret::random);
        let challenge = verifier
            .as_ref()
            .map(|verifier| URL_SAFE_NO_PAD.encode(Digest::of(verifier).as_bytes()));
        let id = link.id.to_string();
        let seal =
            |field, secret| self.keyring.seal(Place { record: &id, field, generation: 0 }, secret);
        let now = self.clock.now();
        let consent = Consent {
            link: link.id,
            connection: connection.id,
            client: connection.client.clone(),
            redirect_uri: client.redirect_uri.clone(),
            token_url: client.profile.token.url.as_str().to_owned(),
            scopes: link.scopes,
            verifier: verifier.as_ref().map(|verifier| seal("verifier", verifier)),
            link_secret: seal("secret", secret),
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
        self.note_of(Kind::ConsentBegun, by, &connection, &detail);
        Ok(url)
    }

    /// The provider sent the browser back. Returns the URL of the page that says how it went.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Invalid`] when the callback does not belong to a consent that this browser
    /// has under way; nothing is sent to the provider then.
    pub async fn finish_consent(
        self: &Arc<Self>,
        callback: Callback,
    ) -> Result<SecretString, BrokerError> {
        let by = By::browser(callback.peer);
        let refused = || {
            BrokerError::Invalid(
                "this callback belongs to no consent that is under way in this browser; open the \
                 consent link again"
                    .to_owned(),
            )
        };
        let Some(client) = self.clients.get(&callback.client).cloned() else {
            self.record_anonymous_refusal(&by, "unknown client");
            return Err(refused());
        };
        let issuer = client.profile.authorize.as_ref().and_then(|from| from.issuer.as_ref());
        if issuer.is_some_and(|issuer| callback.params.get("iss") != Some(issuer)) {
            self.record_anonymous_refusal(&by, "another issuer");
            return Err(refused());
        }
        let state = callback.params.get("state").filter(|state| state.len() == 43);
        let Some(state) = state.map(|state| Digest::of_bytes(state.as_bytes())) else {
            self.record_anonymous_refusal(&by, "no state");
            return Err(refused());
        };
        let turn = self.visitors.turn().await?;
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
        let broker = Arc::clone(self);
        let params = callback.params;
        let task = self.tasks.spawn(async move {
            let ending = broker.conclude(&client, &consent, &params).await;
            if let Ok(Some(record)) = broker.store.record_by_id(consent.connection).await {
                broker.note_ending(&by, &record.connection, ending.as_ref());
            }
            let ending = ending.unwrap_or_else(|error| {
                tracing::warn!(link.id = %consent.link, %error, "consent failed");
                Outcome::Failed.into()
            });
            retry_forever(|| broker.store.durable().finish_link(consent.link, &state, &ending)).await;
            broker.raise_watermark();
        });
        task.await.map_err(|_| BrokerError::Internal)?;
        Ok(self.link_url(&back))
    }

    /// Records that a callback was refused although its `state` may be one of ours.
    async fn note_refused_state(&self, by: &By, state: &Digest) {
        let connection = self.store.consent_of_state(state).await.ok().flatten();
        let record = match connection {
            Some(id) => self.store.record_by_id(id).await.ok().flatten(),
            None => None,
        };
        match record {
            Some(record) => {
                let why = "other browser or client, or late";
                self.record_refusal(by, Some(&record.connection), why);
            }
            None => self.record_anonymous_refusal(by, "unknown state"),
        }
    }

    /// Records how an attempt at a consent ended.
    pub(crate) fn note_ending(
        &self,
        by: &By,
        connection: &Connection,
        ending: Result<&Ending, &BrokerError>,
    ) {
        let refused = match ending {
            Err(BrokerError::Frozen(_)) => Some("frozen"),
            Err(BrokerError::Conflict(_)) => Some("quarantined"),
            Err(BrokerError::Revoked) => Some("deleted"),
            Err(BrokerError::Gone(_)) => Some("link ended"),
            Err(BrokerError::Invalid(why)) => Some(why.as_str()),
            _ => None,
        };
        let kind = match ending.map(|ending| ending.outcome) {
            Ok(Outcome::Connected | Outcome::PendingConfirm) => Kind::ConsentFinished,
            Ok(Outcome::Denied) => Kind::ConsentDenied,
            Ok(Outcome::WrongAccount) => Kind::AccountMismatch,
            Err(_) if refused.is_some() => Kind::ConsentRefused,
            Ok(Outcome::Ambiguous | Outcome::Failed) | Err(_) => Kind::ConsentFailed,
        };
        let detail = match ending {
            Ok(Ending { outcome, remark: Some(remark), .. }) => format!("{outcome}, {remark}"),
            Ok(Ending { outcome, .. }) => outcome.to_string(),
            Err(_) => refused.unwrap_or("internal").to_owned(),
        };
        let record = self.of(self.record(kind, by), connection).with_detail(&detail);
        let live = self.memory.connection(connection.name.as_str());
        let grant = live.as_ref().and_then(|live| live.grant.as_ref());
        self.note(&match grant {
            Some(grant) if ending.is_ok_and(|ending| ending.outcome == Outcome::Connected) => {
                record.with_grant(&grant.fingerprint, grant.generation)
            }
            _ => record,
        });
    }

    fn open_link_secret(&self, consent: &Consent) -> Result<SecretString, BrokerError> {
        self.open_of_link(consent, "secret", &consent.link_secret)
    }

    fn open_of_link(
        &self,
        consent: &Consent,
        field: &'static str,
        sealed: &Sealed,
    ) -> Result<SecretString, BrokerError> {
        let id = consent.link.to_string();
        self.keyring
            .open(Place { record: &id, field, generation: 0 }, sealed)
            .map_err(BrokerError::from)
    }

    /// What the provider's answer means, and the exchange if there is a code.
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
        self.refuse_link(&link, &record.connection)?;
        let mut vars = record.connection.vars.clone();
        let captured = client
            .profile
            .capture(|name| params.get(name).map(String::as_str))
            .map_err(|error| BrokerError::Invalid(error.to_string()))?;
        let meant = link.expected_account.as_deref();
        for (name, value) in captured {
            let before = vars.get(&name).map(String::as_str);
            if !amocrm::is_meant(&name, &value, before, meant) {
                let connection = &record.connection.name;
                tracing::warn!(%connection, name, "the callback is of another account; nothing was sent");
                let remark = Some(format!("another {name}"));
                return Ok(Ending { remark, ..Outcome::WrongAccount.into() });
            }
            vars.insert(name, value);
        }
        let verifier = consent
            .verifier
            .as_ref()
            .map(|sealed| self.open_of_link(consent, "verifier", sealed))
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
        self.exchange(client, record, exchange).await
    }
}
