//! The integration tests: one binary, started by `tests/run`.

#![cfg(test)]

mod pages;
mod support;
