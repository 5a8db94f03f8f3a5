//! Freezes: clients, connections, providers and services that operators have stopped serving. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use super::slug::Slug;

/// What kind of thing is frozen.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(Display, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum FreezeKind {
    /// A registration of ours, with all its connections.
    Client,
    /// One connection.
    Connection,
    /// A provider, with all its clients.
    Provider,
    /// An internal caller, whatever it may use otherwise.
    Service,
}

impl FreezeKind {
    /// The word for it in the API and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An operator's word that something is no longer served.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct Freeze {
    /// What kind of thing it is.
    pub kind: FreezeKind,
    /// Its name.
    #[schema(value_type = String, example = "avito-main")]
    pub name: Slug,
    /// Why, for operators; callers are not told.
    pub reason: String,
    /// Who froze it, by name.
    #[schema(value_type = String, example = "alice")]
    pub by: Slug,
    /// When it was frozen, on the database's clock.
    #[schema(value_type = String, format = DateTime)]
    pub frozen_at: Timestamp,
}

/// Everything that is frozen, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Freezes(BTreeMap<FreezeKind, BTreeMap<Slug, Freeze>>);

impl FromIterator<Freeze> for Freezes {
    fn from_iter<T: IntoIterator<Item = Freeze>>(freezes: T) -> Self {
        let mut all = Self::default();
        for freeze in freezes {
            all.0.entry(freeze.kind).or_default().insert(freeze.name.clone(), freeze);
        }
        all
    }
}

impl Freezes {
    /// The number of freezes.
    pub fn count(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// Every freeze, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = &Freeze> {
        self.0.values().flat_map(BTreeMap::values)
    }

    /// True if the thing itself is frozen.
    pub fn holds(&self, kind: FreezeKind, name: &str) -> bool {
        self.0.get(&kind).is_some_and(|names| names.contains_key(name))
    }

    /// The freeze that keeps a connection from being served: its own, its client's or its
    /// provider's.
    pub fn of_connection(
        &self,
        connection: &str,
        client: &Slug,
        provider: Option<&Slug>,
    ) -> Option<FreezeKind> {
        let things = [
            (FreezeKind::Connection, Some(connection)),
            (FreezeKind::Client, Some(client.as_str())),
            (FreezeKind::Provider, provider.map(Slug::as_str)),
        ];
        let frozen = |(kind, name): &(FreezeKind, Option<&str>)| {
            name.is_some_and(|name| self.holds(*kind, name))
        };
        things.into_iter().find(frozen).map(|(kind, _)| kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug(name: &str) -> Slug {
        name.parse().unwrap()
    }

    fn frozen(kind: FreezeKind, name: &str) -> Freezes {
        let freeze = Freeze {
            kind,
            name: slug(name),
            reason: "a test".to_owned(),
            by: slug("alice"),
            frozen_at: Timestamp::UNIX_EPOCH,
        };
        [freeze].into_iter().collect()
    }

    #[test]
    fn a_connection_is_frozen_by_itself_its_client_or_its_provider() {
        let of = |kind, name| {
            frozen(kind, name).of_connection("shop", &slug("main"), Some(&slug("acme")))
        };
        for (kind, name) in [
            (FreezeKind::Connection, "shop"),
            (FreezeKind::Client, "main"),
            (FreezeKind::Provider, "acme"),
        ] {
            assert_eq!(of(kind, name), Some(kind));
            assert_eq!(of(kind, "other"), None);
        }
        for (kind, name) in [
            (FreezeKind::Service, "shop"),
            (FreezeKind::Client, "shop"),
            (FreezeKind::Connection, "acme"),
        ] {
            assert_eq!(of(kind, name), None, "a name counts for its own kind only");
        }
        let stray = frozen(FreezeKind::Provider, "acme");
        assert_eq!(stray.of_connection("shop", &slug("main"), None), None);
    }
}
