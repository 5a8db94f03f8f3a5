//! Conflicts between two grants of one connection: which of them stays.
//!
//! A refresh stores its grant only on the generation that it started from. If that is gone, another
//! grant was stored first, and this rule decides between the two. The loser becomes a fallback
//! grant, because it may be the one that lives.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::seal::secret::Digest;

/// The refresh that brought a grant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GrantLineage {
    /// The digest of the refresh token that was presented; none where a client asked for itself.
    pub parent: Option<Digest>,
    /// The time of its claim, on the database's clock: the order of two refreshes on any replicas.
    pub asked_at: Timestamp,
}

/// A grant as far as the decision needs it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its refresh token, by digest.
    pub refresh: Option<Digest>,
    /// The refresh that brought it; none for a consent.
    pub origin: Option<&'a GrantLineage>,
}

/// The outcome of a conflict between two grants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Winner {
    /// Both: they are the same grant.
    Same,
    /// The stored one.
    Stored,
    /// The late one: it was asked for later, with the same refresh token.
    Late,
}

/// Picks between the stored grant and one that came too late to be stored.
///
/// Two answers to the same refresh token are siblings, and where only the newest of them lives, it
/// is the one that was asked for last. Against anything else, such as a new consent, the stored
/// grant stays.
pub fn pick_winner(stored: &Candidate<'_>, late: &Candidate<'_>) -> Winner {
    if late.refresh.is_some() && stored.refresh == late.refresh {
        return Winner::Same;
    }
    match (stored.origin, late.origin) {
        (Some(stored), Some(late))
            if stored.parent.is_some()
                && stored.parent == late.parent
                && stored.asked_at < late.asked_at =>
        {
            Winner::Late
        }
        _ => Winner::Stored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of_bytes(text.as_bytes())
    }

    fn origin(parent: Option<&str>, second: i64) -> GrantLineage {
        GrantLineage {
            parent: parent.map(digest),
            asked_at: Timestamp::from_second(second).unwrap(),
        }
    }

    fn between(
        stored: (&str, Option<&GrantLineage>),
        late: (&str, Option<&GrantLineage>),
    ) -> Winner {
        let candidate = |(refresh, origin)| Candidate { refresh: Some(digest(refresh)), origin };
        pick_winner(&candidate(stored), &candidate(late))
    }

    #[test]
    fn of_siblings_the_one_asked_for_last_is_kept() {
        let (first, second) = (origin(Some("r1"), 1), origin(Some("r1"), 2));
        assert_eq!(between(("a", Some(&first)), ("b", Some(&second))), Winner::Late);
        assert_eq!(between(("b", Some(&second)), ("a", Some(&first))), Winner::Stored);
    }

    #[test]
    fn a_provider_that_answers_the_same_again_leaves_nothing_to_decide() {
        let (first, second) = (origin(Some("r1"), 1), origin(Some("r1"), 2));
        assert_eq!(between(("same", Some(&first)), ("same", Some(&second))), Winner::Same);
    }

    #[test]
    fn what_is_stored_stays_against_anything_but_a_sibling() {
        let (ours, other, own) = (origin(Some("r1"), 9), origin(Some("r0"), 1), origin(None, 1));
        for stored in [None, Some(&other), Some(&own)] {
            assert_eq!(
                between(("held", stored), ("late", Some(&ours))),
                Winner::Stored,
                "{stored:?}"
            );
            assert_eq!(between(("held", stored), ("late", None)), Winner::Stored, "{stored:?}");
        }
        // Two answers to a client that asks for itself have no parent in common.
        assert_eq!(between(("a", Some(&own)), ("b", Some(&origin(None, 2)))), Winner::Stored);
    }
}
