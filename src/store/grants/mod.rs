//! Grants: claims, commits, spent refresh tokens, fallback grants, schedules, changes of state outside
//! a claim, and the revocation of what a deleted connection holds.
//!
//! May use: the engine, the records in `connections`, the checks in `identity`. Used through
//! [`Store`](super::Store).

pub(crate) mod claims;
pub(crate) mod commit;
pub(crate) mod fallback;
pub(crate) mod pending;
pub(crate) mod revocations;
pub(crate) mod schedule;
pub(crate) mod spent_tokens;
pub(crate) mod transitions;

use strum::VariantArray as _;

use crate::domain::connection::State;

/// The states in which a connection is refreshed, as an SQL list.
pub(crate) fn refreshing_states() -> String {
    states(State::refreshes)
}

/// The states that a rule selects, as an SQL list.
pub(crate) fn states(rule: impl Fn(State) -> bool) -> String {
    let words =
        State::VARIANTS.iter().filter(|state| rule(**state)).map(|state| format!("'{state}'"));
    format!("({})", words.collect::<Vec<_>>().join(", "))
}
