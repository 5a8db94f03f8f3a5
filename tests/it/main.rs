//! The integration tests: one binary, started by `tests/run`, which brings what they need.

#![cfg(test)]

mod api;
mod audit;
mod browser_guards;
mod browser_journeys;
mod callbacks;
mod canaries;
mod clock;
mod command_line;
mod consents;
mod crashes;
mod deletion;
mod demo;
mod fifth_provider;
mod floods;
mod freezes;
mod hostile_answers;
mod journeys;
mod keys;
mod limits;
mod lost_answers;
mod mix_up;
mod neighbours;
mod outages;
mod pages;
mod provider_answers;
mod public_pages;
mod readers;
mod replicas;
mod restore;
mod rivals;
mod schema;
mod simulator;
mod slow_clients;
mod stock_clients;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod ways_in;
mod ways_out;
