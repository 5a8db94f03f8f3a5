//! Consent links, and the attempts made through them. Pure, like [`super::connection`].

use std::{fmt, time::Duration};

use jiff::Timestamp;
use strum::{Display, EnumString, IntoStaticStr};
use url::Url;
use uuid::Uuid;

use super::{caller::Requester, connection::ConnectionId, slug::Slug};
use crate::seal::{Sealed, secret::Digest};

/// The life of a link.
pub const LINK_LIFE: Duration = Duration::from_hours(24);

/// The life of a link that an operator made for their own browser.
pub const OWN_LINK_LIFE: Duration = Duration::from_mins(10);

/// The time that a person may take at the provider.
pub const CONSENT_LIFE: Duration = Duration::from_mins(10);

/// The time for which the code of a callback may still bring a grant: longer than its exchange
/// takes.
pub const EXCHANGE_LIFE: Duration = Duration::from_mins(10);

/// The time after which an unconfirmed account's tokens are deleted.
pub const CONFIRM_LIFE: Duration = Duration::from_hours(1);

/// The most live links of one connection.
pub const MAX_LIVE_LINKS: i64 = 20;

/// The most live links of one operator or service.
pub const MAX_LIVE_LINKS_EACH: i64 = 1_000;

/// Presses of one link's button in a minute, at one replica.
pub const MAX_PRESSES: u32 = 60;

/// The most attempts of one link under way at once.
pub const MAX_LIVE_CONSENTS: i64 = 5;

/// The most links that are kept, of all connections, including ended and spent ones until they are
/// deleted.
pub const MAX_LINKS: i64 = 100_000;

/// The most attempts that are kept, of all links.
pub const MAX_CONSENTS: i64 = 100_000;

/// The wait for the code of an API-key exchange: a code lives 20 minutes at amoCRM.
pub const KEY_EXCHANGE_LIFE: Duration = Duration::from_mins(20);

/// The public id of a consent link, for logs and records; the secret is known only by its digest.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LinkId(pub Uuid);

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The outcome of the last attempt through a link.
#[derive(Clone, Copy, Debug, Display, EnumString, Eq, IntoStaticStr, PartialEq)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The code may have been exchanged, and nobody here knows what for: it is never sent again.
    #[strum(to_string = "exchange_ambiguous")]
    Ambiguous,
    /// The account is live.
    Connected,
    /// The person declined at the provider.
    Denied,
    /// The provider did not give a token, or gave an answer that makes no sense.
    Failed,
    /// The account waits to be confirmed.
    PendingConfirm,
    /// Another account consented than the one that was expected.
    WrongAccount,
}

impl Outcome {
    /// The word for it in the API and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether a grant came of the attempt: its link is spent.
    #[must_use]
    pub fn spends_link(self) -> bool {
        matches!(self, Self::Connected | Self::PendingConfirm)
    }
}

/// The end of an attempt through a link, with its details.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ending {
    /// The outcome.
    pub outcome: Outcome,
    /// The account of the grant, by the provider's id; none where there is no grant, or the
    /// provider does not say.
    pub account: Option<String>,
    /// A remark for operators. A provider may have chosen the words.
    pub remark: Option<String>,
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, account: None, remark: None }
    }
}

/// Scopes that were asked for and not granted. A provider that grants all of them need not repeat
/// them (RFC 6749 section 5.1); a list that it gives is compared whole.
pub fn missing_scopes<'a>(asked: &'a [String], granted: &[String]) -> Vec<&'a str> {
    let missing = asked.iter().filter(|scope| !granted.contains(scope));
    missing.map(String::as_str).collect()
}

/// Scopes that were granted and not asked for; none where no scope was asked for, because the
/// client's registration fixes them.
pub fn extra_scopes<'a>(asked: &[String], granted: &'a [String]) -> Vec<&'a str> {
    let extra = granted.iter().filter(|scope| !asked.is_empty() && !asked.contains(scope));
    extra.map(String::as_str).collect()
}

/// A one-time URL that a person opens to authorise a connection.
#[derive(Clone, Debug)]
pub struct ConsentLink {
    /// Its public id.
    pub id: LinkId,
    /// The connection it authorises.
    pub connection: ConnectionId,
    /// The party that asked for it.
    pub requested_by: Requester,
    /// The scopes that will be asked for.
    pub scopes: Vec<String>,
    /// The account that makes the connection live without confirmation.
    pub expected_account: Option<String>,
    /// The URL that the person may go to afterwards.
    pub return_to: Option<Url>,
    /// Made by an operator for their own browser: their consent is its own confirmation.
    pub own_browser: bool,
    /// The time it was made.
    pub created_at: Timestamp,
    /// The time it ends.
    pub expires_at: Timestamp,
    /// The browser that pressed first; no other may go on.
    pub browser: Option<Digest>,
    /// The outcome of the last attempt.
    pub outcome: Option<Outcome>,
    /// The account of its grant, by the provider's id; none where that is not known.
    pub account: Option<String>,
    /// The time its grant was stored; a spent link starts nothing.
    pub spent_at: Option<Timestamp>,
}

/// One attempt at authorisation, from the click to the callback.
#[derive(Clone, Debug)]
pub struct Consent {
    /// The link it was started from.
    pub link: LinkId,
    /// The connection it authorises.
    pub connection: ConnectionId,
    /// The client; the callback's path must name the same.
    pub client: Slug,
    /// Sent in the authorization request, to be repeated in the token request byte for byte.
    pub redirect_uri: String,
    /// The token endpoint's template when the consent began: a changed profile gets no code.
    pub token_url: String,
    /// The scopes that were asked for.
    pub scopes: Vec<String>,
    /// PKCE's verifier, sealed as field `verifier` of the link.
    pub verifier: Option<Sealed>,
    /// The link's secret, sealed as field `secret` of the link: the way back to its page.
    pub link_secret: Sealed,
    /// The time of the press.
    pub started_at: Timestamp,
    /// The time the attempt ends.
    pub expires_at: Timestamp,
}

/// An amoCRM API-key exchange that waits for its code to arrive at the callback.
#[derive(Clone, Debug)]
pub struct KeyExchange {
    /// Its id.
    pub id: Uuid,
    /// The connection the code is for.
    pub connection: ConnectionId,
    /// The client that the code's callback will reach.
    pub client: Slug,
    /// The account host that was asked; the callback must name the same.
    pub account_host: String,
    /// The time the exchange was asked for.
    pub requested_at: Timestamp,
    /// The time it is given up.
    pub expires_at: Timestamp,
}
