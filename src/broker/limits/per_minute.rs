//! A limit by the minute, for what anybody can cause as often as they like.

use std::{collections::HashMap, hash::Hash, time::Duration};

use parking_lot::Mutex;

use crate::clock::BootInstant;

/// Admits so many events a minute of each kind, and counts the rest. For what anybody can cause.
#[derive(Debug)]
pub(crate) struct PerMinuteLimiter<K>(Mutex<Minute<K>>);

#[derive(Debug)]
struct Minute<K> {
    began: BootInstant,
    admitted: HashMap<K, u32>,
    left_out: u32,
}

impl<K: Eq + Hash> PerMinuteLimiter<K> {
    pub(crate) fn new(now: BootInstant) -> Self {
        Self(Mutex::new(Minute { began: now, admitted: HashMap::new(), left_out: 0 }))
    }

    /// True if there is room for one more in this minute, of `most`; and, when a minute is over, for
    /// how many there was none.
    pub(crate) fn admits(&self, now: BootInstant, what: K, most: u32) -> (bool, u32) {
        let mut minute = self.0.lock();
        let mut left_out = 0;
        if now.since(minute.began) >= Duration::from_mins(1) {
            left_out = minute.left_out;
            *minute = Minute { began: now, admitted: HashMap::new(), left_out: 0 };
        }
        let admitted = minute.admitted.entry(what).or_default();
        let room = *admitted < most;
        *admitted += u32::from(room);
        minute.left_out = minute.left_out.saturating_add(u32::from(!room));
        (room, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_anybody_can_cause_is_recorded_sixty_times_a_minute() {
        let clock = Clock::system();
        let flood = PerMinuteLimiter::new(clock.since_boot());
        let admits = |what| flood.admits(clock.since_boot(), what, 60);
        assert_eq!((0..100).filter(|_| admits('a').0).count(), 60);
        assert_eq!(admits('b'), (true, 0), "each for itself");
        clock.advance(Duration::from_mins(1));
        assert_eq!(admits('a'), (true, 40), "the rest was counted");
        assert_eq!(admits('a'), (true, 0));
    }
}
