//! Access: who may call, what is frozen, and whether a connection may take a grant.
//!
//! May use: the store, the cache, the clients and the audit log. Used by the facade, the consent
//! flow, deletions and the readers of tokens.

mod freezes;
mod keys;
mod policy;

use std::sync::{Arc, RwLock};

use tokio::sync::Mutex;

pub use self::keys::Caller;
use self::keys::Keys;
pub(crate) use self::policy::ensure_not_quarantined;
use super::{audit::AuditLog, cache::Cache, clients::Clients, process::Process};
use crate::{domain::freeze::Freezes, store::Store};

/// The keys and freezes, and the rules that rest on them.
#[derive(Debug)]
pub(crate) struct Access {
    store: Store,
    cache: Arc<Cache>,
    clients: Arc<Clients>,
    audit: Arc<AuditLog>,
    process: Arc<Process>,
    keys: RwLock<Arc<Keys>>,
    freezes: RwLock<Arc<Freezes>>,
    /// Held while keys are read: a slower read that began earlier must not bring back an older set.
    loading_keys: Mutex<()>,
    /// As `loading_keys`, for freezes.
    loading_freezes: Mutex<()>,
}

impl Access {
    pub(crate) fn new(
        store: Store,
        cache: Arc<Cache>,
        clients: Arc<Clients>,
        audit: Arc<AuditLog>,
        process: Arc<Process>,
    ) -> Self {
        Self {
            store,
            cache,
            clients,
            audit,
            process,
            keys: RwLock::default(),
            freezes: RwLock::default(),
            loading_keys: Mutex::default(),
            loading_freezes: Mutex::default(),
        }
    }
}
