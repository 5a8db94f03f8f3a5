//! Recovery: grants that a crash left in the spool, and databases that went back.
//!
//! May use: the store, the spool, the vault, the cache, the committer and the audit log. Used at the
//! start, at each look at the database, and after each commit.

mod quarantine;
mod replay;
mod watermark;

use std::sync::Arc;

use tokio::sync::Mutex;

pub use self::watermark::LastSeen;
use super::{
    audit::AuditLog, cache::Cache, process::Process, refresh::commit::Committer, vault::Vault,
};
use crate::{spool::Spool, store::Store};

/// Start-up recovery, and the watch over the database's identity.
#[derive(Debug)]
pub(crate) struct Recovery {
    store: Store,
    vault: Arc<Vault>,
    cache: Arc<Cache>,
    spool: Spool,
    committer: Arc<Committer>,
    audit: Arc<AuditLog>,
    process: Arc<Process>,
    /// Locked for as long as it is compared, so that it is never compared with an older answer.
    watermark: Mutex<LastSeen>,
}

impl Recovery {
    #[expect(clippy::too_many_arguments, reason = "each is a field")]
    pub(crate) fn new(
        store: Store,
        vault: Arc<Vault>,
        cache: Arc<Cache>,
        spool: Spool,
        committer: Arc<Committer>,
        audit: Arc<AuditLog>,
        process: Arc<Process>,
        watermark: LastSeen,
    ) -> Self {
        let watermark = Mutex::new(watermark);
        Self { store, vault, cache, spool, committer, audit, process, watermark }
    }
}
