//! Identity of the database: the same as the one last seen, and no older. A restored or copied one
//! holds refresh tokens that were spent since, and presenting one can end a live grant.
//!
//! The identity found comes from [`Store::identity`](crate::store::Store::identity), the last view
//! of it from the watermark outside the database.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The progress of a database. It only grows; a restore takes it back.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Epoch {
    /// The number of quarantines. Compared first: the last quarantine has dealt with all that was
    /// seen before it, however many grants are missing.
    pub quarantines: i64,
    /// The number of grants ever stored.
    pub seq: i64,
}

/// A database's statement of itself. A missing value is unknown and is not compared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// A random name, made with the schema.
    pub deployment: String,
    /// The cluster that the database was last accepted on, by its own record.
    pub home: Option<String>,
    /// The cluster it lies on: PostgreSQL's system identifier.
    pub system: Option<String>,
    /// The timeline of the cluster's write-ahead log; a standby that is promoted begins another.
    pub timeline: Option<String>,
    /// Its progress.
    pub position: Epoch,
}

/// A replica's last view of its database, kept outside it: never ahead of the database, and at most
/// a moment behind it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Watermark {
    /// As [`Identity::deployment`].
    pub deployment: String,
    /// As [`Identity::system`], when that was last known.
    pub system: Option<String>,
    /// As [`Identity::timeline`], when that was last known.
    pub timeline: Option<String>,
    /// As [`Identity::position`].
    #[serde(flatten)]
    pub position: Epoch,
}

impl Watermark {
    /// The view to store once a database is accepted; an unknown value stays as it was.
    pub fn of(found: &Identity, before: Option<&Self>) -> Self {
        let before = before.filter(|before| before.deployment == found.deployment);
        let known = |now: &Option<String>, then: fn(&Self) -> &Option<String>| {
            now.clone().or_else(|| before.and_then(|before| then(before).clone()))
        };
        Self {
            deployment: found.deployment.clone(),
            system: known(&found.system, |before| &before.system),
            timeline: known(&found.timeline, |before| &before.timeline),
            position: found.position,
        }
    }
}

/// The comparison of a database with the last view of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Comparison {
    /// A new replica: there is no last view.
    First,
    /// The same, perhaps further on.
    Same,
    /// Further on, after a standby was promoted.
    Failover,
    /// Another replica found a mismatch meanwhile, and has quarantined all connections.
    Noticed,
    /// No token of it may be presented.
    Mismatched(Mismatch),
}

/// The reason why the refresh tokens of a database are not presented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mismatch {
    /// Another database than the one that was served.
    Clone,
    /// Another cluster: a dump was restored there, or the database has moved.
    Moved,
    /// Stored grants are missing.
    Restored {
        /// Their number, if it is known.
        missing: Option<u64>,
    },
}

impl Mismatch {
    /// The reason code of the quarantined connections.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Clone => "database_exchanged",
            Self::Moved => "database_moved",
            Self::Restored { .. } => "database_restored",
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clone => f.write_str("this is another database than the one last served here"),
            Self::Moved => {
                f.write_str("the database lies on another cluster: it was copied, or has moved")
            }
            Self::Restored { missing: Some(1) } => {
                f.write_str("the database was restored: 1 grant that was stored is missing")
            }
            Self::Restored { missing: Some(missing) } => {
                write!(
                    f,
                    "the database was restored: {missing} grants that were stored are missing"
                )
            }
            Self::Restored { missing: None } => {
                f.write_str("the database was restored: it has forgotten an earlier quarantine")
            }
        }
    }
}

/// Compares the identity found with the last view of it.
pub fn compare(last_seen: Option<&Watermark>, found: &Identity) -> Comparison {
    // The database's own record of its cluster shows a copy even to a new replica.
    let moved = differ(found.home.as_ref(), found.system.as_ref());
    let Some(seen) = last_seen else {
        return if moved { Comparison::Mismatched(Mismatch::Moved) } else { Comparison::First };
    };
    if seen.deployment != found.deployment {
        return Comparison::Mismatched(Mismatch::Clone);
    }
    if found.position < seen.position {
        let countable = found.position.quarantines == seen.position.quarantines;
        let missing = countable.then(|| seen.position.seq.abs_diff(found.position.seq));
        return Comparison::Mismatched(Mismatch::Restored { missing });
    }
    if moved {
        return Comparison::Mismatched(Mismatch::Moved);
    }
    if found.position.quarantines > seen.position.quarantines {
        return Comparison::Noticed;
    }
    if differ(seen.system.as_ref(), found.system.as_ref()) {
        return Comparison::Mismatched(Mismatch::Moved);
    }
    if differ(seen.timeline.as_ref(), found.timeline.as_ref()) {
        return Comparison::Failover;
    }
    Comparison::Same
}

/// True if two values are both known and differ.
fn differ(one: Option<&String>, other: Option<&String>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(system: Option<&str>, timeline: Option<&str>, quarantines: i64, seq: i64) -> Identity {
        Identity {
            deployment: "d".to_owned(),
            home: None,
            system: system.map(str::to_owned),
            timeline: timeline.map(str::to_owned),
            position: Epoch { quarantines, seq },
        }
    }

    #[test]
    fn only_what_is_known_and_differs_is_a_mismatch() {
        let seen = Watermark::of(&found(Some("s"), Some("1"), 1, 100), None);
        let restored = |missing| Comparison::Mismatched(Mismatch::Restored { missing });
        let moved = Comparison::Mismatched(Mismatch::Moved);
        for (system, timeline, quarantines, seq, expected) in [
            (Some("s"), Some("1"), 1, 100, Comparison::Same),
            (Some("s"), Some("1"), 1, 105, Comparison::Same),
            (None, None, 1, 100, Comparison::Same),
            (None, Some("1"), 1, 100, Comparison::Same),
            (Some("s"), Some("2"), 1, 100, Comparison::Failover),
            (None, Some("2"), 1, 101, Comparison::Failover),
            (Some("s"), Some("1"), 1, 99, restored(Some(1))),
            (Some("s"), Some("2"), 1, 90, restored(Some(10))),
            (None, None, 1, 0, restored(Some(100))),
            (Some("other"), Some("1"), 1, 99, restored(Some(1))),
            // Taken back beyond a quarantine, however far it has come again since.
            (Some("s"), Some("1"), 0, 500, restored(None)),
            (Some("other"), Some("1"), 1, 100, moved),
            (Some("other"), None, 1, 100, moved),
            // Others have quarantined it since, wherever it lies and whatever it lacks.
            (Some("s"), Some("1"), 2, 3, Comparison::Noticed),
            (Some("other"), Some("2"), 2, 3, Comparison::Noticed),
        ] {
            let found = found(system, timeline, quarantines, seq);
            assert_eq!(compare(Some(&seen), &found), expected, "{found:?}");
        }
    }

    #[test]
    fn another_deployment_is_another_database_however_far_it_has_come() {
        let seen = Watermark::of(&found(Some("s"), Some("1"), 0, 100), None);
        for seq in [0, 100, 1_000] {
            let other = Identity { deployment: "e".to_owned(), ..found(Some("s"), None, 0, seq) };
            assert_eq!(compare(Some(&seen), &other), Comparison::Mismatched(Mismatch::Clone));
        }
    }

    #[test]
    fn a_new_replica_knows_only_what_the_database_remembers_of_itself() {
        assert_eq!(compare(None, &found(Some("s"), Some("1"), 0, 7)), Comparison::First);
        let at_home = |home: &str, system| Identity {
            home: Some(home.to_owned()),
            ..found(system, None, 0, 7)
        };
        assert_eq!(compare(None, &at_home("s", Some("s"))), Comparison::First);
        assert_eq!(compare(None, &at_home("s", None)), Comparison::First);
        let moved = Comparison::Mismatched(Mismatch::Moved);
        assert_eq!(compare(None, &at_home("s", Some("t"))), moved);
        // Another replica's quarantine is no excuse for a further move.
        let seen = Watermark::of(&found(Some("s"), None, 0, 7), None);
        let again = Identity { home: Some("t".to_owned()), ..found(Some("u"), None, 1, 7) };
        assert_eq!(compare(Some(&seen), &again), moved);
    }

    #[test]
    fn what_a_database_does_not_say_stays_as_it_was_known() {
        let seen = Watermark::of(&found(Some("s"), Some("1"), 0, 1), None);
        let now = Watermark::of(&found(None, Some("2"), 0, 5), Some(&seen));
        assert_eq!((now.system.as_deref(), now.timeline.as_deref()), (Some("s"), Some("2")));
        assert_eq!(now.position.seq, 5);
        let other = Identity { deployment: "e".to_owned(), ..found(None, None, 0, 5) };
        assert_eq!(Watermark::of(&other, Some(&seen)).system, None);
    }
}
