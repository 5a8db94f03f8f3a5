//! The core of every simulated provider: a port, a clock, a ledger, and the faults ordered for it.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::{
    fault::Fault,
    ledger::Ledger,
    oracle::{Endpoint, Oracle},
    rotation::Rotation,
};
use crate::clock::Clock;

#[derive(Debug)]
pub(super) struct Core {
    pub port: u16,
    /// The broker's clock, and how far this provider runs ahead of it.
    clock: Clock,
    ahead: Clock,
    ledger: Mutex<Ledger>,
    faults: Mutex<VecDeque<Fault>>,
    cleared: watch::Sender<()>,
    /// Those of the revocation endpoint.
    revocation_faults: Mutex<VecDeque<Fault>>,
}

impl Core {
    pub(super) fn new(port: u16, clock: Clock, rotation: Rotation) -> Self {
        Self {
            port,
            clock,
            ahead: Clock::system(),
            ledger: Mutex::new(Ledger::new(rotation)),
            faults: Mutex::default(),
            cleared: watch::Sender::default(),
            revocation_faults: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        let now = self.clock.now().as_millisecond().saturating_add(self.ahead.offset_ms());
        Timestamp::from_millisecond(now).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn advance(&self, by: Duration) {
        self.ahead.advance(by);
    }

    /// The ledger. Never held across an await; and the clock is read under it, or two requests that
    /// meet could each find alive what the other has ended.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    pub(super) fn oracle(&self) -> Oracle {
        let ledger = self.ledger();
        ledger.oracle(self.now())
    }

    /// Orders a fault for each of the next `times` token requests, after those already ordered.
    pub(super) fn order(&self, fault: &Fault, times: usize) {
        let mut faults = self.faults.lock();
        faults.extend(std::iter::repeat_n(fault, times).cloned());
    }

    pub(super) fn clear_faults(&self) {
        self.faults.lock().clear();
        self.cleared.send_replace(());
    }

    /// The fault of a token request, and a receiver that changes when the faults are cleared.
    pub(super) fn next_fault(&self) -> Option<(Fault, watch::Receiver<()>)> {
        let mut faults = self.faults.lock();
        Some((faults.pop_front()?, self.cleared.subscribe()))
    }

    /// Orders a fault for each of the next `times` revocation requests.
    pub(super) fn order_revocation(&self, fault: &Fault, times: usize) {
        let mut faults = self.revocation_faults.lock();
        faults.extend(std::iter::repeat_n(fault, times).cloned());
    }

    /// As [`Self::next_fault`], of a revocation request.
    pub(super) fn next_revocation_fault(&self) -> Option<(Fault, watch::Receiver<()>)> {
        let mut faults = self.revocation_faults.lock();
        Some((faults.pop_front()?, self.cleared.subscribe()))
    }

    pub(super) fn count_request(&self, endpoint: Endpoint) {
        self.ledger().count_request(endpoint);
    }

    /// Counts a call of a resource, and the token it carried.
    pub(super) fn count_call(&self, endpoint: Endpoint, token: Option<&str>) {
        let mut ledger = self.ledger();
        ledger.count_request(endpoint);
        if let Some(token) = token {
            ledger.presented(token, endpoint);
        }
    }
}
