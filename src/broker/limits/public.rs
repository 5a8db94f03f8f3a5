//! The share of the public listener in the store: anybody who knows its address may ask.

use std::time::Duration;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::broker::BrokerError;

/// Visitors that are looked up at once, fewer than the store has connections: claims and
/// commits find one while a flood of callbacks waits.
const AT_ONCE: usize = 4;

/// The time that a visitor waits for their turn.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of the visitors, in the order in which they came.
#[derive(Debug)]
pub(crate) struct PublicLimiter(Semaphore);

impl Default for PublicLimiter {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl PublicLimiter {
    /// Waits for a turn at the store, which ends when dropped. Never held across a call to a
    /// provider.
    pub(crate) async fn acquire(&self) -> Result<SemaphorePermit<'_>, BrokerError> {
        match timeout(ACQUIRE_TIMEOUT, self.0.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(BrokerError::Unavailable {
                reason: "too many visitors at once".to_owned(),
                retry_after: ACQUIRE_TIMEOUT,
            }),
        }
    }
}
