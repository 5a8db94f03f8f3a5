//! The clock: time as a value. Every rule gets `now` as an argument, and tests move it by hand.
//!
//! A [`Clock`] has three readings. [`Clock::now`] is the database's time, which all replicas share.
//! [`Clock::since_boot`] is monotonic on this machine and counts suspend. [`Clock::wall`] is this
//! machine's time of day: a second opinion on when a token ends, and the only one until the
//! database's time was observed.
//!
//! May use: no other room. Used by every room but `domain`, whose rules get `now`.

use std::{
    ops::Add,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// The clock that counts suspend.
#[cfg(not(target_os = "macos"))]
const SINCE_BOOT: ClockId = ClockId::Boottime;
#[cfg(target_os = "macos")]
const SINCE_BOOT: ClockId = ClockId::Monotonic;

/// The clocks of a machine, plus offsets that are zero outside tests. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// The offset of all readings from the machine's, in milliseconds.
    offset_ms: Arc<AtomicI64>,
    machine: Arc<Machine>,
}

#[derive(Debug, Default)]
struct Machine {
    /// The offset of the wall clock alone, in milliseconds.
    stepped_ms: AtomicI64,
    /// The database's time when the machine started, in Unix milliseconds; unset until the first
    /// observation.
    database_at_boot: OnceLock<AtomicI64>,
}

/// A moment on the clock that counts suspend and that is never set: milliseconds since the machine
/// started. Means nothing on another machine or after a restart.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct BootInstant(i64);

impl BootInstant {
    /// The time from `earlier` to this; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or_default())
    }

    /// Milliseconds since the machine started, to be kept in an atomic.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The reverse of [`BootInstant::as_millis`].
    pub fn from_millis(millis: i64) -> Self {
        Self(millis)
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }
}

/// All readings of a clock at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// [`Clock::since_boot`].
    pub since_boot: BootInstant,
    /// [`Clock::wall`].
    pub wall: Timestamp,
    /// [`Clock::now`].
    pub now: Timestamp,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// The current time on the database's clock, to the millisecond, as the store keeps it. Once it
    /// was observed, the monotonic clock carries it on, so that setting this machine's wall clock
    /// changes nothing; until then it is the wall clock.
    pub fn now(&self) -> Timestamp {
        self.moment().now
    }

    /// The time that has passed since the machine started, suspend included.
    pub fn since_boot(&self) -> BootInstant {
        let read = clock_gettime(SINCE_BOOT);
        BootInstant(read.tv_sec * 1_000 + read.tv_nsec / 1_000_000 + self.offset_ms())
    }

    /// The time of day by this machine, right or wrong.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn wall(&self) -> Timestamp {
        let stepped = self.machine.stepped_ms.load(Ordering::Relaxed);
        timestamp(Timestamp::now().as_millisecond() + self.offset_ms() + stepped)
    }

    /// All readings.
    pub fn moment(&self) -> Moment {
        let (since_boot, wall) = (self.since_boot(), self.wall());
        let at_boot = self.machine.database_at_boot.get();
        let now = at_boot.map(|at_boot| timestamp(at_boot.load(Ordering::Relaxed) + since_boot.0));
        Moment { since_boot, wall, now: now.unwrap_or(wall) }
    }

    /// Starts a stopwatch, which counts suspend.
    pub fn stopwatch(&self) -> Stopwatch {
        Stopwatch { clock: self.clone(), started: self.since_boot() }
    }

    /// Observes the database's time: it showed `shown` at some moment between `asked` and now. The
    /// estimate is corrected only as far as that proves it wrong: a slow answer moves nothing.
    pub(crate) fn observe_database_time(&self, asked: BootInstant, shown: Timestamp) {
        let (answered, shown) = (self.since_boot(), shown.as_millisecond());
        let by_wall = || AtomicI64::new(self.wall().as_millisecond() - answered.0);
        let at_boot = self.machine.database_at_boot.get_or_init(by_wall);
        let known = at_boot.load(Ordering::Relaxed);
        at_boot.store(known.clamp(shown - answered.0, shown + 1 - asked.0), Ordering::Relaxed);
    }

    /// The offset of this clock from the machine's, in milliseconds. Bound into the SQL that
    /// compares times on the database's clock, so that a test that moves this clock moves leases
    /// and deadlines with it.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// Moves time on, for this clock, all its clones and the database.
    pub fn advance(&self, by: Duration) {
        self.offset_ms.fetch_add(millis(by), Ordering::Relaxed);
    }

    /// Sets the wall clock, as an operator or NTP does, for this clock and its clones. No time
    /// passes, here or at the database.
    pub fn step_wall(&self, by: SignedDuration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.machine.stepped_ms.fetch_add(by, Ordering::Relaxed);
    }

    /// The clock of another process: with a wall clock of its own, and without an observation of the
    /// database. Time passes for both.
    #[must_use]
    pub fn of_another_process(&self) -> Self {
        Self { offset_ms: Arc::clone(&self.offset_ms), machine: Arc::default() }
    }
}

/// Measures durations, independent of the wall clock.
#[derive(Clone, Debug)]
pub struct Stopwatch {
    clock: Clock,
    started: BootInstant,
}

impl Stopwatch {
    /// The time since it was started.
    pub fn elapsed(&self) -> Duration {
        self.clock.since_boot().since(self.started)
    }
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn only_the_wall_clock_is_set_once_the_database_was_heard() {
        let clock = Clock::system();
        clock.step_wall(SignedDuration::from_hours(-1));
        let wall = clock.wall();
        assert!(clock.now().duration_since(wall) < SignedDuration::from_secs(5));

        let database = wall + HOUR;
        clock.observe_database_time(clock.since_boot(), database);
        let (before, now) = (clock.since_boot(), clock.now());
        assert!(now.duration_since(database).abs() < SignedDuration::from_secs(5), "{now}");
        clock.step_wall(SignedDuration::from_hours(-24));
        assert!(clock.now().duration_since(now).abs() < SignedDuration::from_secs(5));
        assert!(clock.since_boot().since(before) < Duration::from_secs(5));
        clock.advance(HOUR);
        assert!(clock.now() >= now + HOUR && clock.since_boot() >= before + HOUR);
    }

    #[test]
    fn a_slow_answer_of_the_database_moves_nothing() {
        let clock = Clock::system();
        clock.observe_database_time(clock.since_boot(), clock.wall());
        let (asked, shown) = (clock.since_boot(), clock.now());
        let at_boot = clock.now().as_millisecond() - clock.since_boot().0;
        clock.advance(Duration::from_secs(8));
        clock.observe_database_time(asked, shown + Duration::from_secs(3));
        assert!((clock.now().as_millisecond() - clock.since_boot().0 - at_boot).abs() <= 1);
        clock.observe_database_time(asked, shown - Duration::from_secs(3));
        let back = clock.now().as_millisecond() - clock.since_boot().0 - at_boot;
        assert!((-3_001..=-2_900).contains(&back), "no further than it must: {back}");
    }

    #[test]
    fn a_stopwatch_goes_by_its_clock_and_not_by_the_wall() {
        let clock = Clock::system();
        let stopwatch = clock.stopwatch();
        clock.step_wall(SignedDuration::from_hours(24));
        assert!(stopwatch.elapsed() < HOUR);
        clock.advance(HOUR);
        assert!(stopwatch.elapsed() >= HOUR);
    }
}
