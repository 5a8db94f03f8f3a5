//! The fault matrix: nothing is lost that could be saved, whatever is killed, stopped or cut off.
//! Started by `tests/run` in its short version and by `tests/faults` with a table at the end.

#![cfg(test)]

mod class;
mod cut_commits;
mod database_down;
mod kills;
mod many_due;
mod model;
mod pauses;
mod random;
mod scene;
mod shutdown;
mod state_directory;
mod stops;
mod storms;
#[expect(dead_code, reason = "shared with the integration tests, which use it all")]
#[path = "../support/mod.rs"]
mod support;
mod table;
mod takeover;
mod world;
