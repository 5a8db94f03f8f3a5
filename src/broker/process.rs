//! The process: its name, its time, its tasks.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{clock::Clock, failpoint::Failpoints};

/// The process that a broker runs in, shared by its owners.
#[derive(Debug)]
pub(crate) struct Process {
    /// The name of this replica, the same after every restart.
    pub(crate) replica: String,
    /// The time.
    pub(crate) clock: Clock,
    /// The points at which tests hold a refresh.
    pub(crate) failpoints: Failpoints,
    /// Cancelled at shutdown: no new refresh and no new revocation is started.
    pub(crate) draining: CancellationToken,
    /// The tasks that shutdown waits for.
    pub(crate) tasks: TaskTracker,
}
