//! # token-broker
//!
//! Keeps OAuth2 access tokens alive for many accounts at many providers and hands a fresh one to
//! any internal service in one HTTP call.

pub mod caller;
pub mod clock;
pub mod connection;
pub mod consent;
pub mod seal;
pub mod secret;
pub mod simulator;
pub mod slug;
