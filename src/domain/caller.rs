//! Callers of the internal listener: services and operators, and their keys.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use super::slug::Slug;
use crate::seal::secret::{self, Digest};

/// The verbs of a service on its connections.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(Display, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Verb {
    /// Accept the account that consented.
    Confirm,
    /// Make consent links.
    Consent,
    /// Fetch tokens.
    Token,
}

/// A pattern of names: one name, or a beginning that is followed by `*`. It limits the connections
/// of a service, and the services of a client.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "avito-*")]
pub struct Pattern(String);

/// A text is not a [`Pattern`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a pattern: use a name, or a beginning of one followed by `*`")]
pub struct NotAPattern(String);

impl Pattern {
    /// True if the pattern covers a name.
    pub fn covers(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = NotAPattern;

    fn try_from(text: String) -> Result<Self, NotAPattern> {
        let beginning = text.strip_suffix('*');
        let valid = match beginning {
            Some("") => true,
            Some(beginning) => beginning.parse::<Slug>().is_ok(),
            None => text.parse::<Slug>().is_ok(),
        };
        if valid {
            Ok(Self(text))
        } else {
            Err(NotAPattern(text.chars().take(64).flat_map(char::escape_debug).collect()))
        }
    }
}

impl FromStr for Pattern {
    type Err = NotAPattern;

    fn from_str(text: &str) -> Result<Self, NotAPattern> {
        text.to_owned().try_into()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

/// An internal caller and its rights.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, which is also its `client_id` at `POST /oauth2/token`.
    pub name: Slug,
    /// The connections it may use.
    pub connections: Vec<Pattern>,
    /// The verbs it has on them.
    pub verbs: BTreeSet<Verb>,
    /// The time it was made.
    pub created_at: Timestamp,
}

impl Service {
    /// True if the service may use the connection at all.
    pub fn sees(&self, connection: &str) -> bool {
        self.connections.iter().any(|pattern| pattern.covers(connection))
    }

    /// True if the service has this verb on the connection.
    pub fn may(&self, verb: Verb, connection: &str) -> bool {
        self.verbs.contains(&verb) && self.sees(connection)
    }
}

/// A person who runs the broker.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The name in records.
    pub name: Slug,
    /// The time they were made.
    pub created_at: Timestamp,
}

/// The owner of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(Display, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Holder {
    /// An operator's.
    Operator,
    /// A service's.
    Service,
}

impl Holder {
    /// The word for it in the API and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The party that asked for something, as it is stored and recorded: `operator alice`, `service
/// billing`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requester {
    /// An operator or a service.
    pub holder: Holder,
    /// The name.
    pub name: Slug,
}

/// A text is not a [`Requester`].
#[derive(Debug, thiserror::Error)]
#[error("not the name of an operator or service after the word for which of them it is")]
pub struct NotARequester;

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.holder, self.name)
    }
}

impl FromStr for Requester {
    type Err = NotARequester;

    fn from_str(text: &str) -> Result<Self, NotARequester> {
        let (holder, name) = text.split_once(' ').ok_or(NotARequester)?;
        Ok(Self {
            holder: holder.parse().map_err(|_| NotARequester)?,
            name: name.parse().map_err(|_| NotARequester)?,
        })
    }
}

/// The stored form of a key.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// The public part of the key: 12 hexadecimal digits.
    pub id: String,
    /// The owner of the key.
    pub holder: Holder,
    /// The name of the service or operator.
    pub owner: Slug,
    /// The digest of the whole key.
    pub digest: Digest,
    /// The time it was made.
    pub created_at: Timestamp,
    /// The time it ends; none for never.
    pub expires_at: Option<Timestamp>,
}

/// A key as it is shown once: `tbs_<id>_<secret>` for services, `tbo_…` for operators. The
/// prefix lets secret scanners find it and the id lets an operator name it.
#[expect(clippy::disallowed_methods, reason = "the key is put together to be shown once")]
pub fn new_key(
    holder: Holder,
    owner: Slug,
    now: Timestamp,
    expires_at: Option<Timestamp>,
) -> (SecretString, StoredKey) {
    let id = hex::encode(secret::random_bytes::<6>());
    let prefix = match holder {
        Holder::Operator => "tbo",
        Holder::Service => "tbs",
    };
    let key = SecretString::from(format!("{prefix}_{id}_{}", secret::random().expose_secret()));
    let stored =
        StoredKey { id, holder, owner, digest: Digest::of(&key), created_at: now, expires_at };
    (key, stored)
}

/// The public id in a key, if it has the form of one.
pub fn key_id(shown: &str) -> Option<&str> {
    let rest = shown.strip_prefix("tbs_").or_else(|| shown.strip_prefix("tbo_"))?;
    let (id, secret) = rest.split_once('_')?;
    (id.len() == 12 && secret.len() == 43).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_a_beginning() {
        let covers = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().covers(name);
        assert!(covers("avito-main", "avito-main"));
        assert!(!covers("avito-main", "avito-main-2"));
        assert!(covers("avito-*", "avito-main"));
        assert!(!covers("avito-*", "avito"));
        assert!(covers("*", "anything"));
        for bad in ["", "**", "a*b", "*a", "A*", "a b", "a.*"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_requester_reads_back_as_it_is_written() {
        for text in ["operator alice", "service billing"] {
            assert_eq!(text.parse::<Requester>().unwrap().to_string(), text);
        }
        for bad in ["", "alice", "operator", "operator ", "tenant alice", "service a b", " alice"] {
            assert!(bad.parse::<Requester>().is_err(), "{bad}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test looks at the key's form")]
    fn a_key_names_its_kind_and_id() {
        let owner: Slug = "billing".parse().unwrap();
        let (key, stored) = new_key(Holder::Service, owner, Timestamp::UNIX_EPOCH, None);
        assert!(key.expose_secret().starts_with("tbs_"));
        assert_eq!(key_id(key.expose_secret()), Some(stored.id.as_str()));
        assert!(Digest::of(&key) == stored.digest);
        for bad in ["", "tbs_", "tbs_0123456789ab", "tbx_0123456789ab_x", "Bearer x"] {
            assert_eq!(key_id(bad), None, "{bad}");
        }
    }
}
