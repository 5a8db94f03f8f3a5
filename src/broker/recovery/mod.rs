//! Recovery: grants that a crash left in the spool, databases that went back, quarantine.
//!
//! May use: the store, the spool, the cache and the refresh's commit. Used by the start, by each look at the database,
//! and by the refresh.

pub(crate) mod quarantine;
pub(crate) mod replay;
pub(crate) mod watermark;
