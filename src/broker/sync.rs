//! The look at the store: what other replicas and commands have changed.

use std::sync::Arc;

use super::{
    access::Access, cache::Cache, clock_skew::ClockSkew, recovery::Recovery, vault::Vault,
};
use crate::store::StoreError;

/// Keeps this process in step with the store.
#[derive(Debug)]
pub(crate) struct Sync {
    pub(crate) vault: Arc<Vault>,
    pub(crate) access: Arc<Access>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) clock_skew: Arc<ClockSkew>,
}

impl Sync {
    /// Takes one look.
    pub(crate) async fn run(&self) -> Result<(), StoreError> {
        // First, so that nothing else that fails keeps a freeze from being seen.
        self.access.load_freezes().await?;
        self.vault.reload_if_changed();
        self.recovery.check_database().await?;
        self.cache.sync().await?;
        self.clock_skew.compare();
        self.access.load_keys().await?;
        self.cache.mark_synced();
        Ok(())
    }
}
