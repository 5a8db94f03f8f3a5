//! The integration tests: one binary, started by `tests/run`, which brings what they need.

#![cfg(test)]

mod browser_journeys;
mod consents;
mod journeys;
mod pages;
mod provider_answers;
mod store;
mod support;
