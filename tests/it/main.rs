//! The integration tests: one binary, started by `tests/run`, which brings what they need.

#![cfg(test)]

mod api;
mod browser_journeys;
mod canaries;
mod clock;
mod command_line;
mod consents;
mod crashes;
mod demo;
mod fifth_provider;
mod hostile_answers;
mod journeys;
mod limits;
mod lost_answers;
mod neighbours;
mod outages;
mod pages;
mod provider_answers;
mod replicas;
mod restore;
mod schema;
mod simulator;
mod slow_clients;
mod stock_clients;
mod store;
mod support;
