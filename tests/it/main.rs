//! The integration tests: one binary, started by `tests/run`, which brings what they need.

#![cfg(test)]

mod api;
mod audit;
mod browser_guards;
mod browser_journeys;
mod callbacks;
mod caller_limits;
mod clock;
mod command_line;
mod connection_isolation;
mod consent_races;
mod consents;
mod crashes;
mod custom_provider;
mod deletion;
mod demo;
mod freezes;
mod grant_admission;
mod guide;
mod hostile_answers;
mod journeys;
mod lost_answers;
mod mix_up;
mod oauth_libraries;
mod pages;
mod provider_answers;
mod provider_outages;
mod public_listener_load;
mod public_pages;
mod reader_load;
mod redirect_targets;
mod replicas;
mod restore;
mod schema;
mod sealing_keys;
mod secret_leaks;
mod simulator;
mod slow_clients;
mod store;
#[expect(dead_code, reason = "shared with the fault matrix; each uses a part")]
#[path = "../support/mod.rs"]
mod support;
