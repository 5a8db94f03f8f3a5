//! Access: who may call, what is frozen, and whether a connection may take a grant.
//!
//! May use: the cache, the store and the audit log. Used by the facade, the refresh and the consent flow.

pub(crate) mod freezes;
pub(crate) mod keys;
pub(crate) mod policy;
