//! The fault matrix: nothing is lost that could be saved, whatever is killed, stopped or cut off.
//! Started by `tests/run` in its short version and by `tests/faults` with a table at the end.

#![cfg(test)]

mod class;
mod kills;
mod model;
mod pauses;
mod random;
mod stops;
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "shared with the integration tests, which use it all"
)]
#[path = "../it/support/mod.rs"]
mod support;
mod table;
mod takeover;
mod world;
