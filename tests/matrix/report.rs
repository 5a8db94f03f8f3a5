//! The table that `tests/faults` prints: a row for each fault that was tried.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write as _},
    ops::AddAssign,
    time::Duration,
};

/// The file that collects the rows; they go to standard output where it is not set.
const TABLE: &str = "FAULTS_TABLE";

/// Set for the long version.
const LONG: &str = "FAULTS_LONG";

/// The outcome of one fault.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// The number of refreshes that it hit.
    pub(crate) runs: usize,
    /// The number of connections that need a person again.
    pub(crate) lost: usize,
    /// The number of those that no client could have saved, by the provider's oracle.
    pub(crate) unrecoverable: usize,
    /// The number of presentations of refresh tokens after their first.
    pub(crate) replays: u64,
    /// The time that each connection took to settle.
    pub(crate) recovery: Vec<Duration>,
}

impl AddAssign for Row {
    fn add_assign(&mut self, more: Self) {
        self.runs += more.runs;
        self.lost += more.lost;
        self.unrecoverable += more.unrecoverable;
        self.replays += more.replays;
        self.recovery.extend(more.recovery);
    }
}

impl Row {
    /// Adds the row to the table: its cells, with a tab between each two.
    pub(crate) fn report(mut self, fault: &str) {
        self.recovery.sort_unstable();
        let recovery = match self.recovery.len() {
            0 => "-".to_owned(),
            _ => format!("{} / {}", self.percentile(50), self.percentile(99)),
        };
        let Self { runs, lost, unrecoverable, replays, .. } = self;
        let line = format!("{fault}\t{runs}\t{lost}\t{unrecoverable}\t{replays}\t{recovery}\n");
        let written = match env::var_os(TABLE) {
            // One write: rows of tests that run side by side stay whole.
            Some(file) => OpenOptions::new()
                .create(true)
                .append(true)
                .open(file)
                .unwrap()
                .write_all(line.as_bytes()),
            None => io::stdout().write_all(line.as_bytes()),
        };
        written.unwrap();
    }

    /// The smallest time that `percent` of all do not exceed, in seconds.
    fn percentile(&self, percent: usize) -> String {
        let at = (self.recovery.len() * percent).div_ceil(100).max(1) - 1;
        format!("{:.2} s", self.recovery[at].as_secs_f64())
    }
}

/// True in the long version.
pub(crate) fn is_long() -> bool {
    env::var_os(LONG).is_some()
}

/// One number for the short version and another for the long one.
pub(crate) fn short_or_long(short: usize, long: usize) -> usize {
    if is_long() { long } else { short }
}
