//! # token-broker
//!
//! Keeps OAuth2 access tokens alive for many accounts at many providers and hands a fresh one to
//! any internal service in one HTTP call.

pub mod app;
pub mod broker;
pub mod caller;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod connection;
pub mod consent;
pub mod http;
pub mod provider;
pub mod refresher;
pub mod seal;
pub mod secret;
pub mod simulator;
pub mod slug;
pub mod store;
pub mod telemetry;
