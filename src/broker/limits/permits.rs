//! Permits for background refreshes: the next that becomes free is for whoever needs it most,
//! not for whoever came first.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::store::Due;

/// The priority of a refresh; the least value goes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Priority {
    rank: i64,
    /// Then those whose token ends first.
    ends: Option<Timestamp>,
}

impl Priority {
    pub(crate) fn of(due: &Due) -> Self {
        Self { rank: due.rank, ends: due.expires_at }
    }
}

/// A semaphore whose next permit goes to the highest priority.
#[derive(Debug)]
pub(crate) struct PrioritySemaphore(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    free: usize,
    /// Counts all that ever waited: of two of the same priority the first to come goes first.
    waited: u64,
    waiting: BTreeMap<(Priority, u64), oneshot::Sender<Permit>>,
}

/// A permit. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Mutex<Queue>>);

impl PrioritySemaphore {
    pub(crate) fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue { free, waited: 0, waiting: BTreeMap::new() })))
    }

    /// Waits for a permit.
    pub(crate) async fn acquire(&self, priority: Priority) -> Permit {
        let given = {
            let mut queue = self.0.lock();
            if let Some(free) = queue.free.checked_sub(1) {
                queue.free = free;
                return Permit(Arc::clone(&self.0));
            }
            let (give, given) = oneshot::channel();
            queue.waited += 1;
            let turn = (priority, queue.waited);
            queue.waiting.insert(turn, give);
            given
        };
        given.await.expect("nobody is taken out of the queue but to be given a place")
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.0.lock();
            let next = loop {
                match queue.waiting.pop_first() {
                    Some((_, next)) if next.is_closed() => {}
                    next => break next,
                }
            };
            if next.is_none() {
                queue.free += 1;
            }
            next
        };
        if let Some((_, next)) = next {
            // A waiter that has gone in the meantime passes it on by dropping it.
            drop(next.send(Self(Arc::clone(&self.0))));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn ends(second: i64) -> Priority {
        Priority { rank: 1, ends: Some(Timestamp::from_second(second).unwrap()) }
    }

    #[test]
    fn the_most_urgent_goes_first() {
        let places = PrioritySemaphore::new(1);
        let taken = places.acquire(ends(9)).now_or_never().unwrap();
        let (mut late, mut soon) =
            (Box::pin(places.acquire(ends(3))), Box::pin(places.acquire(ends(2))));
        let unsure = Priority { rank: 0, ends: None };
        let mut unsure = Box::pin(places.acquire(unsure));
        assert!((&mut late).now_or_never().is_none());
        assert!((&mut soon).now_or_never().is_none());
        assert!((&mut unsure).now_or_never().is_none());
        drop(taken);
        assert!((&mut soon).now_or_never().is_none());
        drop((&mut unsure).now_or_never().unwrap());
        drop((&mut soon).now_or_never().unwrap());
        drop((&mut late).now_or_never().unwrap());
        assert!(places.acquire(ends(1)).now_or_never().is_some());
    }

    #[test]
    fn who_goes_away_keeps_no_place() {
        let places = PrioritySemaphore::new(1);
        let taken = places.acquire(ends(9)).now_or_never().unwrap();
        let (mut gone, mut given) =
            (Box::pin(places.acquire(ends(1))), Box::pin(places.acquire(ends(2))));
        let mut last = Box::pin(places.acquire(ends(3)));
        assert!((&mut gone).now_or_never().is_none());
        assert!((&mut given).now_or_never().is_none());
        assert!((&mut last).now_or_never().is_none());
        drop(gone);
        drop(taken);
        // It was given the place, and never looked.
        drop(given);
        assert!((&mut last).now_or_never().is_some());
    }
}
