//! Pure rules of the broker: no HTTP, no SQL, no clock. `now` is always an argument.
//!
//! May use: [`seal`](crate::seal), for the types of sealed values and digests. Used by every room
//! above it.

pub mod broker_code;
pub mod caller;
pub mod connection;
pub mod consent;
pub mod database_identity;
pub mod freeze;
pub mod grant;
pub mod grant_conflict;
pub mod record;
pub mod slug;
