//! The audit trail: one event for every token handed out and for every change that an operator may
//! be asked about later. An event holds the actor, its address, the action and the time, and never a
//! secret.
//!
//! An event is appended to a file in the state directory ([`Trail`]) and shipped to the database
//! later ([`ship()`]). A token leaves the broker only after its event was written; nothing else waits
//! for the file.
//!
//! May use: `domain`, `seal` for digests, `os` and the clock. Used by `broker`, `store` (the shipped
//! events), `http` and the commands.

mod folder;
mod ship;
mod trail;

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use strum::Display;
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::{
    ship::{BATCH, ship},
    trail::{NotWritten, Trail},
};
use crate::{
    domain::{connection::ConnectionId, slug::Slug},
    seal::secret::Digest,
};

/// The longest detail of an event, in characters.
const MAX_DETAIL: usize = 200;

/// The kinds of events.
#[derive(Clone, Copy, Debug, Display, Eq, PartialEq)]
#[strum(serialize_all = "snake_case")]
pub enum EventKind {
    /// The account that consented was accepted.
    AccountConfirmed,
    /// Another account consented than the one that was meant.
    AccountMismatch,
    /// The broker started; `fingerprint` is of its clients and their providers' addresses, and
    /// `detail` says whether they are as at the start before.
    Configuration,
    /// A connection was deleted; `detail` says what becomes of its tokens.
    ConnectionDeleted,
    /// A connection was made.
    ConnectionMade,
    /// The quarantine of a connection was ended.
    ConnectionReleased,
    /// All connections were quarantined; `detail` says why.
    ConnectionsQuarantined,
    /// A person went to the provider.
    ConsentBegun,
    /// The account's owner declined at the provider.
    ConsentDenied,
    /// The provider gave no token.
    ConsentFailed,
    /// A consent was stored; `detail` says whether its account waits to be confirmed.
    ConsentFinished,
    /// A link or a callback was refused; `detail` says why.
    ConsentRefused,
    /// Something is served no more; `detail` says what.
    Frozen,
    /// A grant that a crash had left on the disk was stored.
    GrantRecovered,
    /// A stored token does not open.
    IntegrityError,
    /// A key was ended; `detail` says whose.
    KeyDeleted,
    /// A key came to its end; `detail` says whose.
    KeyExpired,
    /// A key was made; `detail` says whose.
    KeyMade,
    /// A consent link was made; `detail` is its public id.
    LinkMade,
    /// An operator's access was taken away.
    OperatorDeleted,
    /// An operator was made with their first key.
    OperatorMade,
    /// Somebody asked for a refresh.
    RefreshAsked,
    /// A refresh brought nothing; `detail` is the verdict, its code, and the state it leads to.
    RefreshFailed,
    /// A refresh brought a grant; `detail` says why it was made.
    RefreshGranted,
    /// A service was deleted with its keys.
    ServiceDeleted,
    /// A service was made with its first key.
    ServiceMade,
    /// A token was handed out.
    TokenIssued,
    /// The tokens of a deleted connection are revoked at the provider, or left to a person, as `detail`
    /// says.
    TokensRevoked,
    /// Something is served again; `detail` says what.
    Unfrozen,
    /// Refusals of one provider were taken back, because there were too many of them.
    VerdictsTakenBack,
}

/// The health of the audit file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileHealth {
    /// It takes records, as far as is known.
    Ok,
    /// It takes records, and those of the last second may not survive a power cut.
    Unsynced,
    /// The last record was not written: no token is handed out until one is.
    Failing,
}

/// The party that acts, and its address.
#[derive(Clone, Debug)]
pub struct Actor {
    /// `service billing`, `operator alice`, `browser`, `broker` or `command line`.
    pub name: String,
    /// The other end of the socket, if there is one.
    pub peer: Option<IpAddr>,
}

impl Actor {
    /// An actor by the label of their key.
    pub fn new(name: impl Into<String>, peer: Option<IpAddr>) -> Self {
        Self { name: name.into(), peer }
    }

    /// A browser.
    pub fn browser(peer: Option<IpAddr>) -> Self {
        Self::new("browser", peer)
    }

    /// The broker of its own accord.
    pub fn broker() -> Self {
        Self::new("broker", None)
    }

    /// A person at the command line, who has the database and perhaps no key.
    pub fn command_line() -> Self {
        Self::new("command line", None)
    }
}

/// An event of the audit trail. Its texts have no control characters, whoever chose them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[schema(as = Record)]
pub struct AuditEvent {
    /// Names the record; a record is kept once, however often it is shipped.
    #[serde(serialize_with = "print", deserialize_with = "parse")]
    #[schema(value_type = String)]
    pub id: Uuid,
    /// When it happened, on the database's clock, to the millisecond.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The kind of event: a stable word. There may be more of them one day.
    #[schema(example = "token_issued")]
    pub kind: String,
    /// Who did it: `service billing`, `operator alice`, `browser`, `broker` or `command line`.
    #[schema(example = "service billing")]
    pub actor: String,
    /// From where: the address at the other end of the socket, which may be a proxy's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The connection's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The connection's id, which no other connection ever has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<String>,
    /// The provider's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The token's fingerprint, as in the answer of the token route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// How many grants the connection had held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// A few words of code, by kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl AuditEvent {
    /// An event of this moment.
    pub fn new(kind: EventKind, by: &Actor, now: Timestamp) -> Self {
        Self {
            id: Uuid::now_v7(),
            at: now,
            kind: kind.to_string(),
            actor: by.name.clone(),
            peer: by.peer.map(|peer| peer.to_canonical().to_string()),
            connection: None,
            connection_id: None,
            provider: None,
            fingerprint: None,
            generation: None,
            detail: None,
        }
    }

    /// Names the connection that it is about.
    #[must_use]
    pub fn about(self, id: ConnectionId, name: &Slug) -> Self {
        Self { connection: Some(name.to_string()), connection_id: Some(id.to_string()), ..self }
    }

    /// Names the provider.
    #[must_use]
    pub fn at_provider(self, provider: impl Into<String>) -> Self {
        Self { provider: Some(provider.into()), ..self }
    }

    /// Names the grant: the fingerprint of its access token, and its generation.
    #[must_use]
    pub fn with_grant(self, fingerprint: impl Into<String>, generation: i64) -> Self {
        Self { fingerprint: Some(fingerprint.into()), generation: Some(generation), ..self }
    }

    /// Adds a short detail. Characters that could break a line, a terminal or a database are
    /// replaced, and a long text is cut: a provider may have chosen the words.
    #[must_use]
    pub fn with_detail(self, detail: &str) -> Self {
        let plain = |char| if matches!(char, ' '..='~') { char } else { '?' };
        Self { detail: Some(detail.chars().take(MAX_DETAIL).map(plain).collect()), ..self }
    }

    /// Gives it an id that follows from what it is about, so that replicas that all notice the same
    /// thing keep one record of it.
    #[must_use]
    pub fn once_for(self, thing: &str) -> Self {
        let digest = Digest::of_bytes(format!("{} {thing}", self.kind).as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
        Self { id: uuid::Builder::from_custom_bytes(bytes).into_uuid(), ..self }
    }

    /// The record as a line of a file, with its end.
    fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("texts and numbers are always valid JSON");
        line.push(b'\n');
        line
    }

    /// Parses a line of a file; none if it was not written whole, or not by us.
    fn read(line: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(line).ok()?;
        let texts = [
            Some(&record.kind),
            Some(&record.actor),
            record.peer.as_ref(),
            record.connection.as_ref(),
            record.connection_id.as_ref(),
            record.provider.as_ref(),
            record.fingerprint.as_ref(),
            record.detail.as_ref(),
        ];
        // One that no database takes would hold up all that come after it.
        let fits = |text: &String| text.len() <= 1_024 && !text.chars().any(char::is_control);
        let whole = texts.into_iter().flatten().all(fits);
        whole.then_some(record)
    }
}

fn print<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// A record with its place in the order in which records were committed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct StoredEvent {
    /// Its place: no record with a lower one ever comes after it. Some places stay empty.
    pub seq: i64,
    /// The record.
    #[serde(flatten)]
    pub record: AuditEvent,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditEvent {
        AuditEvent::new(EventKind::RefreshFailed, &Actor::broker(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_record_reads_back_what_it_prints() {
        let id = ConnectionId::new();
        let record = record()
            .about(id, &"shop".parse().unwrap())
            .at_provider("amocrm")
            .with_grant("00ff", 7)
            .with_detail("refused");
        let line = record.line();
        assert_eq!(line.last(), Some(&b'\n'));
        assert_eq!(AuditEvent::read(&line).unwrap(), record);
        assert!(AuditEvent::read(&line[..line.len() / 2]).is_none(), "torn");
    }

    #[test]
    fn a_detail_is_one_short_line_whoever_chose_it() {
        let record =
            record().with_detail(&format!("a\nb\u{1b}[31m\0\u{202e}é{}", "x".repeat(9_999)));
        let detail = record.detail.as_ref().unwrap();
        assert!(detail.starts_with("a?b?[31m???xxx"), "{detail}");
        assert_eq!(detail.len(), MAX_DETAIL);
        assert_eq!(record.line().split_inclusive(|byte| *byte == b'\n').count(), 1);
    }

    #[test]
    fn a_line_that_no_database_takes_is_not_ours() {
        let line = |detail: &str| AuditEvent { detail: Some(detail.to_owned()), ..record() }.line();
        assert!(AuditEvent::read(&line("plain")).is_some());
        assert!(AuditEvent::read(&line("\0")).is_none());
        assert!(AuditEvent::read(&line(&"x".repeat(2_000))).is_none());
    }

    #[test]
    fn what_happens_once_has_one_id() {
        let (one, other) = (record().once_for("key a"), record().once_for("key a"));
        assert_eq!(one.id, other.id);
        assert_ne!(one.id, record().once_for("key b").id);
    }
}
