//! The integration tests: one binary, started by `tests/run`.

mod pages;
mod support;
