//! Consent links: made for a connection, and shown to whoever opens one.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;
use uuid::Uuid;

use crate::{
    audit::{Actor, EventKind},
    broker::{
        BrokerError, Caller, Gone, NewConnection, access::Access, audit::AuditLog,
        clients::Clients, connections::Connections, limits::Limits,
    },
    clock::Clock,
    domain::{
        caller::{Requester, Service, Verb},
        connection::{Account, Connection, GrantType},
        consent::{
            ConsentLink, LINK_LIFE, LinkId, MAX_LINKS, MAX_LIVE_LINKS, MAX_LIVE_LINKS_EACH,
            OWN_LINK_LIFE,
        },
        record::Record,
        slug::Slug,
    },
    provider::client::Client,
    seal::secret::{self, Digest},
    store::{LinkInserted, Store},
};

/// The request for a consent link.
#[derive(Clone, Debug)]
pub struct LinkRequest {
    /// The connection to authorise; made if it does not exist.
    pub connection: Slug,
    /// The client of a connection that does not exist yet.
    pub client: Option<Slug>,
    /// The scopes to ask for; none asks for the connection's. A connection that is made here keeps them.
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

/// The page behind a link.
#[derive(Debug)]
pub struct LinkPage {
    /// The link.
    pub link: ConsentLink,
    /// The connection it authorises.
    pub connection: Connection,
    /// True if a grant waits for its account to be confirmed.
    pub waits: bool,
    /// The account that waits to be confirmed, if it is known.
    pub pending_account: Option<Account>,
    /// The provider, as people call it.
    pub provider: String,
}

/// The URLs that people are sent to.
#[derive(Debug)]
pub(crate) struct PublicUrls {
    /// Where browsers reach us.
    pub(crate) public: Url,
    /// Where a person may be sent after consenting, by the name of the place.
    pub(crate) return_to: BTreeMap<Slug, Url>,
}

/// Makes consent links, and says what they show.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) store: Store,
    pub(crate) access: Arc<Access>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) clock: Clock,
    pub(crate) urls: PublicUrls,
}

impl Links {
    /// Makes a consent link, and its connection if that does not exist.
    pub(crate) async fn make(
        &self,
        caller: &Caller,
        peer: Option<IpAddr>,
        request: LinkRequest,
    ) -> Result<MadeLink, BrokerError> {
        let by = Actor::new(caller.label(), peer);
        let name = &request.connection;
        may_ask(caller, &request)?;
        self.access.ensure_caller_not_frozen(caller)?;
        let return_to = request.return_to.as_ref().map(|key| self.return_url(key)).transpose()?;
        let existing = self.store.record(name.as_str()).await?;
        let expected =
            existing.as_ref().and_then(|record| record.connection.expected_account.as_deref());
        may_expect(caller, &request, expected)?;
        let requested_by = caller.requester();
        // Before a connection is made for the link: there is no bound to those but this.
        self.ensure_room_for_link(&requested_by).await?;
        let record = match existing {
            Some(record) => record,
            None => self.create_for_link(caller, &by, &request).await?,
        };
        let connection = &record.connection;
        if let Caller::Service(service) = caller {
            let client = self.client_of(service, &connection.client)?;
            may_widen(&request, client.scopes.iter().chain(&connection.scopes))?;
        }
        self.access.ensure_accepts_grants(connection)?;
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
        let client = self.clients.of_connection(&connection.client)?;
        if let Some(scopes) = &request.scopes {
            client
                .check_scopes(scopes)
                .map_err(|problem| BrokerError::Invalid(format!("`scopes`: {problem}")))?;
        }
        let now = self.clock.now();
        let life = if request.own_browser { OWN_LINK_LIFE } else { LINK_LIFE };
        let secret = secret::random();
        let link = ConsentLink {
            id: LinkId(Uuid::now_v7()),
            connection: connection.id,
            requested_by,
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
            account: None,
            spent_at: None,
        };
        match self.store.insert_link(&link, &Digest::of(&secret), MAX_LIVE_LINKS).await? {
            LinkInserted::Kept => {}
            LinkInserted::Full => {
                return Err(BrokerError::TooMany(format!(
                    "connection `{name}` has {MAX_LIVE_LINKS} links that are still open; use one \
                     of them, or wait until they end"
                )));
            }
            // Its key is good only until we hear of that too.
            LinkInserted::Orphan => return Err(BrokerError::Unauthorized),
        }
        tracing::info!(
            link.id = %link.id, connection.name = %name, by = %link.requested_by, "consent link made"
        );
        self.audit.emit_for(EventKind::LinkMade, &by, connection, &format!("link {}", link.id));
        Ok(MadeLink {
            url: self.url(&secret),
            expires_at: link.expires_at,
            connection: name.clone(),
        })
    }

    /// Refuses one more link where there are as many as anybody, or all together, may have.
    async fn ensure_room_for_link(&self, requester: &Requester) -> Result<(), BrokerError> {
        if !self.store.has_room_for_links_of(requester, MAX_LIVE_LINKS_EACH).await? {
            return Err(BrokerError::TooMany(format!(
                "{requester} has {MAX_LIVE_LINKS_EACH} consent links that are still open; make no \
                 more until some are used or have ended"
            )));
        }
        if !self.store.has_room_for_links(MAX_LINKS).await? {
            return Err(BrokerError::TooMany(format!(
                "there are {MAX_LINKS} consent links; make no more until some have ended"
            )));
        }
        Ok(())
    }

    /// A client that a service may not use looks like one that does not exist.
    fn client_of(&self, service: &Service, name: &Slug) -> Result<&Arc<Client>, BrokerError> {
        let open = self.clients.get(name).filter(|client| client.is_open_to(service));
        open.ok_or_else(|| BrokerError::NotFound(format!("there is no client `{name}`")))
    }

    async fn create_for_link(
        &self,
        caller: &Caller,
        by: &Actor,
        request: &LinkRequest,
    ) -> Result<Record, BrokerError> {
        let client = request.client.clone().ok_or_else(|| {
            BrokerError::NotFound(format!(
                "there is no connection `{}`; name a `client` to make it",
                request.connection
            ))
        })?;
        if let Caller::Service(service) = caller {
            may_widen(request, &self.client_of(service, &client)?.scopes)?;
        }
        self.access.ensure_not_frozen(&request.connection, &client)?;
        let new = NewConnection {
            name: request.connection.clone(),
            client,
            grant_type: Some(GrantType::AuthorizationCode),
            scopes: request.scopes.clone(),
            expected_account: request.expected_account.clone(),
        };
        self.connections.create(by, new).await?;
        self.store.record(request.connection.as_str()).await?.ok_or(BrokerError::Internal)
    }

    fn return_url(&self, key: &Slug) -> Result<Url, BrokerError> {
        self.urls.return_to.get(key).cloned().ok_or_else(|| {
            BrokerError::Invalid(format!("`return_to`: `{key}` is not in [return_to]"))
        })
    }

    #[expect(clippy::disallowed_methods, reason = "the link is the one place for its secret")]
    pub(crate) fn url(&self, secret: &SecretString) -> SecretString {
        let base = self.urls.public.as_str().trim_end_matches('/');
        SecretString::from(format!("{base}/connect/{}", secret.expose_secret()))
    }

    /// The page behind a link, for this browser. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Gone`] when the link has ended or belongs to another browser.
    pub(crate) async fn page(
        &self,
        secret: &SecretString,
        browser: Option<&SecretString>,
    ) -> Result<LinkPage, BrokerError> {
        let _turn = self.limits.public_turn().await?;
        self.page_behind(secret, browser).await
    }

    /// As [`Links::page`], for a visitor whose turn it is.
    pub(crate) async fn page_behind(
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
        if record.connection.state.is_deleted() {
            return Err(gone(Gone::Ended));
        }
        if link.spent_at.is_none() {
            self.access.ensure_link_open(&link, &record.connection)?;
        }
        let client = self.clients.of_connection(&record.connection.client)?;
        Ok(LinkPage {
            provider: client.profile.title.clone(),
            waits: record.pending.is_some(),
            pending_account: record.pending.and_then(|pending| pending.account),
            connection: record.connection,
            link,
        })
    }
}

/// Refuses a link that the caller may not make at all.
fn may_ask(caller: &Caller, request: &LinkRequest) -> Result<(), BrokerError> {
    let Caller::Service(service) = caller else { return Ok(()) };
    let name = request.connection.as_str();
    if !service.sees(name) {
        return Err(BrokerError::no_connection(name));
    }
    if !service.may(Verb::Consent, name) {
        return Err(BrokerError::Forbidden(
            "this key may not make consent links; it needs the verb `consent`".to_owned(),
        ));
    }
    if request.own_browser {
        return Err(BrokerError::Forbidden(
            "`self` is for operators: a service has no browser of its own".to_owned(),
        ));
    }
    Ok(())
}

/// A service asks for no more scopes than somebody who runs the broker has written down.
fn may_widen<'a>(
    request: &LinkRequest,
    known: impl IntoIterator<Item = &'a String>,
) -> Result<(), BrokerError> {
    let known: Vec<_> = known.into_iter().collect();
    let mut asked = request.scopes.iter().flatten();
    if asked.all(|scope| known.contains(&scope)) {
        return Ok(());
    }
    Err(BrokerError::Forbidden(
        "a service may ask only for scopes of the client or of the connection".to_owned(),
    ))
}

/// Refuses an `expected_account` that the caller may not name; the connection has `expected`. The
/// name confirms an account beforehand: a service that may only ask for consent must not choose it.
fn may_expect(
    caller: &Caller,
    request: &LinkRequest,
    expected: Option<&str>,
) -> Result<(), BrokerError> {
    let (Caller::Service(service), Some(asked)) = (caller, request.expected_account.as_deref())
    else {
        return Ok(());
    };
    match expected {
        Some(expected) if expected == asked => Ok(()),
        Some(_) => Err(BrokerError::Forbidden(
            "the connection has another `expected_account`, which only an operator may override; \
             leave it out"
                .to_owned(),
        )),
        None if service.may(Verb::Confirm, request.connection.as_str()) => Ok(()),
        None => Err(BrokerError::Forbidden(
            "naming the expected account confirms it beforehand; the key needs the verb `confirm`"
                .to_owned(),
        )),
    }
}
