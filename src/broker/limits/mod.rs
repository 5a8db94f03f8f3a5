//! Limits: the pace of each provider, circuit breakers, mass refusals, and turns at the store.
//!
//! May use: the clock, domain and provider types. Used by the rest of the broker.

pub(crate) mod gate;
pub(crate) mod mass_refusal;
pub(crate) mod permits;
pub(crate) mod public;
pub(crate) mod throttle;
