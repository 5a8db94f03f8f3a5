//! Consent: make a link, show it, start, finish, confirm.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;
use uuid::Uuid;

use super::{
    Broker, BrokerError, Caller, ConnectionView, Gone, NewConnection, ReceivedGrant,
    refresh::due_at,
};
use crate::{
    caller::Verb,
    client::Client,
    connection::{Account, Connection, GrantType, PendingGrant, Record, Vars},
    consent::{
        CONSENT_LIFE, Consent, ConsentLink, LINK_LIFE, LinkId, MAX_LIVE_CONSENTS, OWN_LINK_LIFE,
        Outcome,
    },
    provider::{Authorization, Grant, ProviderError, request},
    seal::{Place, Sealed},
    secret::{self, Digest},
    slug::Slug,
    store,
};

/// What a consent link is asked for.
#[derive(Clone, Debug)]
pub struct LinkRequest {
    /// The connection to authorise; made if it does not exist.
    pub connection: Slug,
    /// The client of a connection that does not exist yet.
    pub client: Option<Slug>,
    /// The scopes to ask for, where they differ from the client's.
    pub scopes: Option<Vec<String>>,
    /// The account that makes the connection live without confirmation.
    pub expected_account: Option<String>,
    /// The name of a registered place to send the person to afterwards.
    pub return_to: Option<Slug>,
    /// For the operator's own browser.
    pub own_browser: bool,
}

/// A consent link as it was made.
#[derive(Debug)]
pub struct MadeLink {
    /// The URL, with the secret in it.
    pub url: SecretString,
    /// When it ends.
    pub expires_at: Timestamp,
    /// The connection it authorises.
    pub connection: Slug,
}

/// What the page behind a link shows.
#[derive(Debug)]
pub struct LinkPage {
    /// The link.
    pub link: ConsentLink,
    /// The connection it authorises.
    pub connection: Connection,
    /// Whether a grant waits for its account to be confirmed.
    pub waits: bool,
    /// The account that waits to be confirmed, if it is known.
    pub pending_account: Option<Account>,
    /// What a person calls the provider.
    pub provider: String,
}

/// What a browser brings back from the provider: its query, checked for duplicates.
#[derive(Debug)]
pub struct Callback {
    /// The client that the path names.
    pub client: Slug,
    /// The parameters, each at most once.
    pub params: std::collections::BTreeMap<String, String>,
    /// The browser's binding, from its cookie.
    pub browser: Option<SecretString>,
}

impl Broker {
    /// Makes a consent link, and its connection if that does not exist.
    ///
    /// # Errors
    ///
    /// When the caller may not, a name is unknown, the connection obtains its tokens without
    /// consent, or the store fails.
    pub async fn make_link(
        self: &Arc<Self>,
        caller: &Caller,
        request: LinkRequest,
    ) -> Result<MadeLink, BrokerError> {
        let name = &request.connection;
        if let Caller::Service(service) = caller {
            if !service.sees(name.as_str()) {
                return Err(BrokerError::no_connection(name.as_str()));
            }
            if !service.may(Verb::Consent, name.as_str()) {
                return Err(BrokerError::Forbidden(
                    "this key may not make consent links; it needs the verb `consent`".to_owned(),
                ));
            }
            if request.own_browser {
                return Err(BrokerError::Forbidden(
                    "`self` is for operators: a service has no browser of its own".to_owned(),
                ));
            }
        }
        let return_to = request.return_to.as_ref().map(|key| self.return_url(key)).transpose()?;
        let record = match self.store.record(name.as_str()).await? {
            Some(record) => record,
            None => self.create_for_link(&request).await?,
        };
        let connection = &record.connection;
        if request.client.as_ref().is_some_and(|client| *client != connection.client) {
            return Err(BrokerError::Conflict(format!(
                "connection `{name}` belongs to client `{}`",
                connection.client
            )));
        }
        if connection.grant_type != GrantType::AuthorizationCode {
            return Err(BrokerError::Conflict(format!(
                "connection `{name}` obtains its tokens by client credentials; nobody has to consent"
            )));
        }
        self.client(&connection.client)?;
        let now = self.clock.now();
        let life = if request.own_browser { OWN_LINK_LIFE } else { LINK_LIFE };
        let secret = secret::random();
        let link = ConsentLink {
            id: LinkId(Uuid::now_v7()),
            connection: connection.id,
            requested_by: caller.label(),
            scopes: request.scopes.unwrap_or_else(|| connection.scopes.clone()),
            expected_account: request
                .expected_account
                .or_else(|| connection.expected_account.clone()),
            return_to,
            own_browser: request.own_browser,
            created_at: now,
            expires_at: now + life,
            browser: None,
            outcome: None,
            spent_at: None,
        };
        self.store.insert_link(&link, &Digest::of(&secret)).await?;
        tracing::info!(
            link.id = %link.id, connection = %name, by = %link.requested_by, "consent link made"
        );
        Ok(MadeLink {
            url: self.link_url(&secret),
            expires_at: link.expires_at,
            connection: name.clone(),
        })
    }

    async fn create_for_link(
        self: &Arc<Self>,
        request: &LinkRequest,
    ) -> Result<Record, BrokerError> {
        let client = request.client.clone().ok_or_else(|| {
            BrokerError::NotFound(format!(
                "there is no connection `{}`; name a `client` to make it",
                request.connection
            ))
        })?;
        self.create_connection(NewConnection {
            name: request.connection.clone(),
            client,
            grant_type: Some(GrantType::AuthorizationCode),
            scopes: request.scopes.clone(),
            expected_account: request.expected_account.clone(),
        })
        .await?;
        self.store.record(request.connection.as_str()).await?.ok_or(BrokerError::Internal)
    }

    fn return_url(&self, key: &Slug) -> Result<Url, BrokerError> {
        self.return_to.get(key).cloned().ok_or_else(|| {
            BrokerError::Invalid(format!("`return_to`: `{key}` is not in [return_to]"))
        })
    }

    #[expect(clippy::disallowed_methods, reason = "the link is the one place for its secret")]
    fn link_url(&self, secret: &SecretString) -> SecretString {
        let base = self.public_url.as_str().trim_end_matches('/');
        SecretString::from(format!("{base}/connect/{}", secret.expose_secret()))
    }

    /// What to show behind a link to this browser. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Gone`] when the link has ended or belongs to another browser.
    pub async fn link_page(
        &self,
        secret: &SecretString,
        browser: Option<&SecretString>,
    ) -> Result<LinkPage, BrokerError> {
        let gone = BrokerError::Gone;
        let link = self.store.link(&Digest::of(secret)).await?.ok_or(gone(Gone::Ended))?;
        let bound_here = browser.is_some_and(|browser| link.browser == Some(Digest::of(browser)));
        if link.browser.is_some() && !bound_here {
            let used = link.spent_at.is_some();
            return Err(gone(if used { Gone::Used } else { Gone::OtherBrowser }));
        }
        if link.expires_at <= self.clock.now() {
            return Err(gone(Gone::Ended));
        }
        let record = self.store.record_by_id(link.connection).await?.ok_or(gone(Gone::Ended))?;
        let client = self.client(&record.connection.client)?;
        Ok(LinkPage {
            provider: client.profile.title.clone(),
            waits: record.pending.is_some(),
            pending_account: record.pending.and_then(|pending| pending.account),
            connection: record.connection,
            link,
        })
    }

    /// A person pressed the button: binds the link to their browser and returns where to go.
    ///
    /// # Errors
    ///
    /// When the link has ended, belongs to another browser, or has too many attempts under way.
    pub async fn begin_consent(
        &self,
        secret: &SecretString,
        browser: &SecretString,
    ) -> Result<Url, BrokerError> {
        let page = self.link_page(secret, Some(browser)).await?;
        if page.link.spent_at.is_some() {
            return Err(BrokerError::Gone(Gone::Used));
        }
        let LinkPage { link, connection, .. } = page;
        let browser = Digest::of(browser);
        if !self.store.bind_browser(link.id, &browser).await? {
            return Err(BrokerError::Gone(Gone::OtherBrowser));
        }
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
        let started = self
            .store
            .start_consent(&consent, &Digest::of(&state), &browser, MAX_LIVE_CONSENTS)
            .await?;
        if !started {
            return Err(BrokerError::TooMany(
                "too many attempts of this link are under way; wait ten minutes".to_owned(),
            ));
        }
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
        let refused = || {
            BrokerError::Invalid(
                "this callback belongs to no consent that is under way in this browser; open the \
                 consent link again"
                    .to_owned(),
            )
        };
        let client = Arc::clone(self.clients.get(&callback.client).ok_or_else(refused)?);
        let state = callback.params.get("state").filter(|state| state.len() == 43);
        let (Some(state), Some(browser)) = (state, &callback.browser) else {
            return Err(refused());
        };
        let state = Digest::of_bytes(state.as_bytes());
        let consent = self
            .store
            .take_consent(&state, &Digest::of(browser), &callback.client)
            .await?
            .ok_or_else(refused)?;
        let back = self.open_link_secret(&consent)?;
        // The exchange goes on when the browser hangs up: its code can be used only once.
        let broker = Arc::clone(self);
        let params = callback.params;
        let task = self.tasks.spawn(async move {
            let outcome = broker.conclude(&client, &consent, &params).await;
            let outcome = outcome.unwrap_or_else(|error| {
                tracing::warn!(link.id = %consent.link, %error, "consent failed");
                Outcome::Failed
            });
            let spent = matches!(outcome, Outcome::Connected | Outcome::PendingConfirm);
            broker.store.finish_link(consent.link, outcome, spent).await
        });
        task.await.map_err(|_| BrokerError::Internal)??;
        Ok(self.link_url(&back))
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
            .map_err(|_| BrokerError::Integrity)
    }

    /// What the provider's answer means, and the exchange if there is a code.
    async fn conclude(
        &self,
        client: &Client,
        consent: &Consent,
        params: &std::collections::BTreeMap<String, String>,
    ) -> Result<Outcome, BrokerError> {
        let code = params.get("code").filter(|code| !code.is_empty());
        let (Some(code), None) = (code, params.get("error")) else {
            let error = params.get("error").map_or("no code", String::as_str);
            // Without an error a missing code is a refusal too: that is how Divar says no.
            let denied = matches!(error, "access_denied" | "no code");
            tracing::info!(link.id = %consent.link, denied, "the provider gave no code");
            return Ok(if denied { Outcome::Denied } else { Outcome::Failed });
        };
        if client.profile.token.url.as_str() != consent.token_url {
            return Err(BrokerError::Invalid(
                "the provider's profile changed while the consent was under way".to_owned(),
            ));
        }
        let record =
            self.store.record_by_id(consent.connection).await?.ok_or(BrokerError::Revoked)?;
        let mut vars = record.connection.vars.clone();
        let captured = client
            .profile
            .capture(|name| params.get(name).map(String::as_str))
            .map_err(|error| BrokerError::Invalid(error.to_string()))?;
        vars.extend(captured);
        let verifier = consent
            .verifier
            .as_ref()
            .map(|sealed| self.open_of_link(consent, "verifier", sealed))
            .transpose()?;
        let link_secret = Digest::of(&self.open_link_secret(consent)?);
        let link = self.store.link(&link_secret).await?.ok_or(BrokerError::Gone(Gone::Ended))?;
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

    /// Exchanges a code, finds out whose account it is, and stores the grant: live when the
    /// account is the one that was meant, waiting for confirmation otherwise.
    pub(super) async fn exchange(
        &self,
        client: &Client,
        record: Record,
        exchange: Exchange<'_>,
    ) -> Result<Outcome, BrokerError> {
        let request = request::code_exchange(
            client,
            &exchange.code,
            exchange.verifier.as_ref(),
            exchange.redirect_uri,
            &exchange.vars,
        )
        .map_err(|error| BrokerError::Misconfigured(error.to_string()))?;
        let sent_at = self.clock.now();
        let connection = &record.connection;
        let grant = match self.ask(client, request).await {
            Ok(grant) => grant,
            Err(error) => {
                log_exchange_failure(connection, &error);
                return Ok(Outcome::Failed);
            }
        };
        let account = self.account(client, &grant.access, &exchange.vars).await;
        let account = account.unwrap_or_else(|error| {
            tracing::warn!(connection = %connection.name, "account unknown: {}", error.message);
            None
        });
        match judge_account(connection, account.as_ref(), &exchange) {
            Verified::Refused => {
                tracing::warn!(connection = %connection.name, "another account consented");
                Ok(Outcome::WrongAccount)
            }
            Verified::Meant => {
                self.store_consented(client, record, &grant, sent_at, account, &exchange).await?;
                Ok(Outcome::Connected)
            }
            Verified::Unknown => {
                let pending = self.seal_pending(connection, &grant, sent_at, account, &exchange);
                self.store.put_pending(connection.id, &pending).await?;
                self.reload(connection.id).await?;
                Ok(Outcome::PendingConfirm)
            }
        }
    }

    fn seal_pending(
        &self,
        connection: &Connection,
        grant: &Grant,
        sent_at: Timestamp,
        account: Option<Account>,
        exchange: &Exchange<'_>,
    ) -> PendingGrant {
        let id = connection.id.to_string();
        let seal =
            |field, secret| self.keyring.seal(Place { record: &id, field, generation: 0 }, secret);
        PendingGrant {
            access: seal("pending.access", &grant.access),
            refresh: grant.refresh.as_ref().map(|token| seal("pending.refresh", token)),
            scopes: grant.scopes.clone().unwrap_or_else(|| exchange.scopes.to_vec()),
            received_at: sent_at,
            expires_at: sent_at + grant.expires_in,
            account,
            vars: exchange.vars.clone(),
        }
    }

    async fn store_consented(
        &self,
        client: &Client,
        mut record: Record,
        grant: &Grant,
        sent_at: Timestamp,
        account: Option<Account>,
        exchange: &Exchange<'_>,
    ) -> Result<(), BrokerError> {
        let id = record.connection.id;
        loop {
            let from = record.grant.as_ref().map_or(0, |held| held.generation);
            let received = ReceivedGrant {
                access: &grant.access,
                refresh: grant.refresh.as_ref(),
                scopes: grant.scopes.clone().unwrap_or_else(|| exchange.scopes.to_vec()),
                received_at: sent_at,
                expires_at: sent_at + grant.expires_in,
            };
            let next = self.seal_grant(id, from + 1, received);
            let commit = store::Commit {
                connection: id,
                grant: &next,
                refresh_at: due_at(client, &record.connection, &next),
                account: account.as_ref(),
                vars: Some(&exchange.vars),
                scopes: Some(exchange.scopes),
            };
            if self.store.commit_grant(&commit).await? {
                break;
            }
            // A refresh of the grant before this one was stored meanwhile: this one is newer.
            record = self.store.record_by_id(id).await?.ok_or(BrokerError::Revoked)?;
        }
        self.reload(id).await?;
        tracing::info!(connection = %record.connection.name, "consent stored");
        Ok(())
    }

    /// Accepts the account that consented, named by the provider's id of it.
    ///
    /// # Errors
    ///
    /// When nothing waits, or another account consented: then its tokens are discarded.
    pub async fn confirm(
        self: &Arc<Self>,
        caller: &Caller,
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
        let record =
            self.store.record(name).await?.ok_or_else(|| BrokerError::no_connection(name))?;
        let Some(pending) = &record.pending else {
            return Err(BrokerError::Conflict(format!(
                "connection `{name}` has nothing to confirm"
            )));
        };
        let id = record.connection.id;
        if pending.account.as_ref().map(|account| account.id.as_str()) != account {
            self.store.drop_pending(id).await?;
            self.reload(id).await?;
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
                .map_err(|_| BrokerError::Integrity)
        };
        let access = open("pending.access", &pending.access)?;
        let refresh =
            pending.refresh.as_ref().map(|sealed| open("pending.refresh", sealed)).transpose()?;
        let from = record.grant.as_ref().map_or(0, |held| held.generation);
        let received = ReceivedGrant {
            access: &access,
            refresh: refresh.as_ref(),
            scopes: pending.scopes.clone(),
            received_at: pending.received_at,
            expires_at: pending.expires_at,
        };
        let next = self.seal_grant(id, from + 1, received);
        let commit = store::Commit {
            connection: id,
            grant: &next,
            refresh_at: due_at(self.client(&record.connection.client)?, &record.connection, &next),
            account: pending.account.as_ref(),
            vars: Some(&pending.vars),
            scopes: None,
        };
        if !self.store.commit_confirmed(&commit).await? {
            return Err(BrokerError::Conflict(
                "the connection changed at this moment; confirm again".to_owned(),
            ));
        }
        tracing::info!(connection = %name, by = %caller.label(), "account confirmed");
        let record = self.reload(id).await?;
        self.view(&record.connection.name).await
    }
}

/// A code with all that its exchange needs.
pub(super) struct Exchange<'a> {
    pub(super) code: SecretString,
    pub(super) verifier: Option<SecretString>,
    pub(super) redirect_uri: &'a str,
    pub(super) vars: Vars,
    pub(super) scopes: &'a [String],
    pub(super) expected_account: Option<&'a str>,
    pub(super) own_browser: bool,
}

/// Whether the account that consented is the one that was meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verified {
    Meant,
    Refused,
    Unknown,
}

fn judge_account(
    connection: &Connection,
    account: Option<&Account>,
    exchange: &Exchange<'_>,
) -> Verified {
    let pinned = connection.account.as_ref();
    let same = match (pinned, account) {
        (Some(pinned), Some(account)) => Some(pinned.id == account.id),
        (Some(_), None) => Some(false),
        (None, _) => None,
    };
    match (exchange.expected_account, account) {
        (Some(expected), Some(account)) if !account.answers_to(expected) => Verified::Refused,
        // A connection never changes hands without a person saying so.
        _ if same == Some(false) => Verified::Unknown,
        (Some(_), Some(_)) => Verified::Meant,
        (None, _) if same == Some(true) || exchange.own_browser => Verified::Meant,
        _ => Verified::Unknown,
    }
}

fn log_exchange_failure(connection: &Connection, error: &ProviderError) {
    tracing::warn!(
        connection = %connection.name, verdict = ?error.verdict, status = error.status,
        code = error.code, "the code was not exchanged: {}", error.message
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::ConnectionId;

    fn account(id: &str) -> Account {
        Account { id: id.to_owned(), name: None, aliases: vec![format!("sub-{id}")] }
    }

    fn connection(pinned: Option<&str>) -> Connection {
        Connection {
            id: ConnectionId::new(),
            name: "c".parse().unwrap(),
            client: "c".parse().unwrap(),
            grant_type: GrantType::AuthorizationCode,
            scopes: Vec::new(),
            state: crate::connection::State::Active,
            reason: None,
            account: pinned.map(account),
            expected_account: None,
            vars: Vars::new(),
            created_at: Timestamp::UNIX_EPOCH,
            refresh_at: None,
            failures: 0,
            last_error: None,
        }
    }

    fn judge(
        pinned: Option<&str>,
        expected: Option<&str>,
        own_browser: bool,
        who: Option<&str>,
    ) -> Verified {
        let exchange = Exchange {
            code: SecretString::from(""),
            verifier: None,
            redirect_uri: "",
            vars: Vars::new(),
            scopes: &[],
            expected_account: expected,
            own_browser,
        };
        judge_account(&connection(pinned), who.map(account).as_ref(), &exchange)
    }

    #[test]
    fn an_account_is_meant_when_expected_own_or_the_same_as_before() {
        assert_eq!(judge(None, Some("1"), false, Some("1")), Verified::Meant);
        assert_eq!(judge(None, Some("sub-1"), false, Some("1")), Verified::Meant);
        assert_eq!(judge(None, None, true, Some("1")), Verified::Meant);
        assert_eq!(judge(Some("1"), None, false, Some("1")), Verified::Meant);
    }

    #[test]
    fn any_other_account_waits_or_is_refused() {
        assert_eq!(judge(None, None, false, Some("1")), Verified::Unknown);
        assert_eq!(judge(None, Some("1"), false, None), Verified::Unknown);
        assert_eq!(judge(None, Some("1"), false, Some("2")), Verified::Refused);
        assert_eq!(judge(None, Some("1"), true, Some("2")), Verified::Refused);
    }

    #[test]
    fn a_connection_never_changes_hands_silently() {
        assert_eq!(judge(Some("1"), None, false, Some("2")), Verified::Unknown);
        assert_eq!(judge(Some("1"), None, true, Some("2")), Verified::Unknown);
        assert_eq!(judge(Some("1"), Some("2"), false, Some("2")), Verified::Unknown);
        assert_eq!(judge(Some("1"), None, true, None), Verified::Unknown);
    }
}
