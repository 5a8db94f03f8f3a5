//! The pace at which a provider is asked (GCRA), and the circuit breaker. Pure: `now` is an argument.
//!
//! Pure: `now` is the time since some fixed instant, on a clock that never goes back.

use std::{collections::VecDeque, time::Duration};

/// One request every so often, and a few at once after a pause (the generic cell rate algorithm).
#[derive(Debug)]
pub(crate) struct RateLimiter {
    interval: Duration,
    /// The lead that a burst may have over the even pace.
    tolerance: Duration,
    /// When the next request would go at an even pace.
    next: Duration,
}

impl RateLimiter {
    /// `per_second` requests a second, `burst` of them at once.
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, tolerance: interval * burst.saturating_sub(1), next: Duration::ZERO }
    }

    /// Takes the next place. Returns how long to wait for it.
    pub(crate) fn reserve(&mut self, now: Duration) -> Duration {
        let at = self.next.max(now);
        self.next = at + self.interval;
        at.saturating_sub(self.tolerance).saturating_sub(now)
    }
}

/// When a [`Breaker`] opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BreakerConfig {
    /// It opens after this many failures in a row.
    pub(crate) consecutive_failures: usize,
    /// It opens when half of at least this many requests within [`WINDOW`] failed.
    pub(crate) min_requests: usize,
    /// The time that it stays open at first; doubled by each failed probe.
    pub(crate) pause: Duration,
    /// The longest it stays open between two probes.
    pub(crate) longest: Duration,
}

/// For how long a request counts for [`BreakerConfig::min_requests`].
pub(crate) const WINDOW: Duration = Duration::from_secs(30);

/// Keeps requests from where they keep failing. While it is open one request at a time is let
/// through as a probe; the first success closes it.
#[derive(Debug)]
pub(crate) struct Breaker {
    trip: BreakerConfig,
    failures_in_a_row: usize,
    /// When requests ended, and whether they failed, within [`WINDOW`].
    recent: VecDeque<(Duration, bool)>,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Duration,
    pause: Duration,
    /// A probe is under way. What else still fails was sent before it opened.
    probing: bool,
}

impl Breaker {
    /// A closed breaker.
    pub(crate) fn new(trip: BreakerConfig) -> Self {
        Self { trip, failures_in_a_row: 0, recent: VecDeque::new(), open: None }
    }

    /// The time for which nothing may be sent; none while something may, if only a probe.
    pub(crate) fn shut_for(&self, now: Duration) -> Option<Duration> {
        self.open.map(|open| open.until.saturating_sub(now)).filter(|left| !left.is_zero())
    }

    /// True while it is open, a probe being due or not.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Notes that a request goes out, which [`Breaker::shut_for`] does not forbid. While it is open that
    /// is the probe: the next may follow a pause later.
    pub(crate) fn enter(&mut self, now: Duration) {
        if let Some(open) = &mut self.open {
            open.until = now + open.pause;
            open.probing = true;
        }
    }

    /// A request succeeded. True when that closes the breaker.
    pub(crate) fn succeeded(&mut self, now: Duration) -> bool {
        self.failures_in_a_row = 0;
        self.note(now, false);
        let closed = self.open.take().is_some();
        if closed {
            self.recent.clear();
        }
        closed
    }

    /// A request failed. True when that opens the breaker.
    pub(crate) fn failed(&mut self, now: Duration) -> bool {
        self.failures_in_a_row += 1;
        self.note(now, true);
        if let Some(open) = &mut self.open {
            if open.probing {
                let pause = (open.pause * 2).min(self.trip.longest);
                *open = Open { until: now + pause, pause, probing: false };
            }
            return false;
        }
        let failed = self.recent.iter().filter(|(_, failed)| *failed).count();
        let many = self.recent.len() >= self.trip.min_requests && failed * 2 >= self.recent.len();
        let opens = self.failures_in_a_row >= self.trip.consecutive_failures || many;
        if opens {
            self.open =
                Some(Open { until: now + self.trip.pause, pause: self.trip.pause, probing: false });
        }
        opens
    }

    fn note(&mut self, now: Duration, failed: bool) {
        self.recent.push_back((now, failed));
        while self.recent.front().is_some_and(|(at, _)| *at + WINDOW < now) {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIP: BreakerConfig = BreakerConfig {
        consecutive_failures: 5,
        min_requests: 20,
        pause: Duration::from_secs(15),
        longest: Duration::from_mins(1),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_an_even_pace() {
        let mut rate = RateLimiter::new(5, 10);
        let waits: Vec<_> = (0..12).map(|_| rate.reserve(at(100)).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 400]);
        assert_eq!(rate.reserve(at(103)), Duration::ZERO, "a pause makes room again");
    }

    #[test]
    fn a_rate_of_one_keeps_its_distance() {
        let mut rate = RateLimiter::new(1, 1);
        let waits: Vec<_> = (0..3).map(|_| rate.reserve(at(7)).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2]);
    }

    #[test]
    fn a_breaker_opens_after_failures_in_a_row() {
        let mut breaker = Breaker::new(TRIP);
        let opened: Vec<_> = (0..5).map(|_| breaker.failed(at(1))).collect();
        assert_eq!(opened, [false, false, false, false, true]);
        assert_eq!(breaker.shut_for(at(2)), Some(at(14)));
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let mut breaker = Breaker::new(TRIP);
        for _ in 0..3 {
            for _ in 0..4 {
                assert!(!breaker.failed(at(1)));
            }
            assert!(!breaker.succeeded(at(1)));
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_breaker_opens_when_half_of_many_fail() {
        let mut breaker = Breaker::new(TRIP);
        let opened: Vec<_> = (0..10)
            .map(|second| {
                breaker.succeeded(at(second));
                breaker.failed(at(second))
            })
            .collect();
        assert_eq!(opened.iter().position(|opened| *opened), Some(9), "{opened:?}");
        let mut slow = Breaker::new(TRIP);
        for minute in 0..20 {
            slow.succeeded(at(minute * 60));
            assert!(!slow.failed(at(minute * 60)), "what is long past does not count");
        }
    }

    #[test]
    fn an_open_breaker_lets_one_probe_through_a_pause() {
        let mut breaker = Breaker::new(TRIP);
        for _ in 0..5 {
            breaker.failed(at(0));
        }
        assert!(breaker.shut_for(at(14)).is_some());
        assert!(breaker.shut_for(at(15)).is_none());
        breaker.enter(at(15));
        assert!(breaker.shut_for(at(15)).is_some(), "one at a time");
        assert!(!breaker.failed(at(16)));
        assert_eq!(breaker.shut_for(at(16)), Some(at(30)), "the pause doubles");
        for (second, pause) in [(46, 60), (106, 60)] {
            assert!(breaker.shut_for(at(second)).is_none());
            breaker.enter(at(second));
            breaker.failed(at(second));
            assert_eq!(breaker.shut_for(at(second)), Some(at(pause)));
        }
        assert!(breaker.succeeded(at(170)));
        assert!(breaker.shut_for(at(170)).is_none() && !breaker.is_open());
    }
}
