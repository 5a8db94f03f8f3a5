//! The fault matrix: nothing is lost that could be saved, whatever is killed, stopped or cut off.
//! Started by `tests/run` in its short version and by `tests/faults` with a table at the end.

#![cfg(test)]

mod checks;
mod cut_commits;
mod cuttable_connection;
mod database_down;
mod database_outage;
mod expired_lease;
mod held_points;
mod interleavings;
mod killed_process;
mod many_due;
mod outage_and_mass_refusal;
mod random_kills;
mod reader_load;
mod report;
mod rotation_class;
mod scenario;
mod shutdown;
mod state_directory;
mod stopped_process;
#[expect(dead_code, reason = "shared with the integration tests; each uses a part")]
#[path = "../support/mod.rs"]
mod support;
mod takeover;
