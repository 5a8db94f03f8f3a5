//! Grants: claims, commits, spent refresh tokens, and the ends that a grant can come to.
//!
//! May use: the engine. Used through [`Store`](super::Store).

pub(crate) mod claims;
pub(crate) mod commit;
pub(crate) mod fallback;
pub(crate) mod pending;
pub(crate) mod revocations;
pub(crate) mod schedule;
pub(crate) mod spent_tokens;
pub(crate) mod transitions;
