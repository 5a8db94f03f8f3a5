//! The integration tests: one binary, started by `tests/run`, which brings what they need.

#![cfg(test)]

mod command_line;
mod pages;
mod store;
mod support;
