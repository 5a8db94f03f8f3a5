//! How the property tests of this crate are run: a fixed number of cases each, so that a run takes
//! the same time every day, and no file of past failures: a failure prints its smallest case,
//! which becomes a test of its own.

use proptest::test_runner::Config;

/// So many cases.
pub(crate) fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}
