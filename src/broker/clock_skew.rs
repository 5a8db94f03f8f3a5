//! The skew between this machine's clock and the database's.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::clock::Clock;

/// The skew, in milliseconds, that is worth a note.
const MAX_SKEW: i64 = 30_000;

/// Watches the skew.
#[derive(Debug)]
pub(crate) struct ClockSkew {
    clock: Clock,
    /// The lead of the wall clock over the database's, in milliseconds; zero while they agree.
    apart: AtomicI64,
}

impl ClockSkew {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, apart: AtomicI64::new(0) }
    }

    /// Notes how far the wall clock is from the database's, and tells when that begins to matter.
    pub(crate) fn compare(&self) {
        let at = self.clock.moment();
        let apart = at.wall.as_millisecond() - at.now.as_millisecond();
        let apart = if apart.abs() > MAX_SKEW { apart } else { 0 };
        let before = self.apart.swap(apart, Ordering::Relaxed);
        if before == 0
            && let Some(note) = self.note()
        {
            tracing::warn!("{note}");
        } else if before != 0 && apart == 0 {
            tracing::info!("this machine's clock agrees with the database's again");
        }
    }

    pub(crate) fn note(&self) -> Option<String> {
        let apart = self.apart.load(Ordering::Relaxed);
        let (ahead, behind) = match apart {
            0 => return None,
            1.. => ("this machine's clock", "the database's"),
            _ => ("the database's clock", "this machine's"),
        };
        let apart = (apart.abs() + 500) / 1_000;
        Some(format!(
            "{ahead} is {apart} s ahead of {behind}; tokens are taken to end by the clock that is \
             ahead; run NTP on both"
        ))
    }
}
