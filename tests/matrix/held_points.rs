//! Holds refreshes of this process at a point until the test lets them go.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use token_broker::failpoint::{Failpoints, Point};
use tokio::sync::watch;

use crate::support::wait::until;

/// The point at which refreshes are held, and the number of those held.
#[derive(Clone, Default)]
pub(crate) struct HeldPoints {
    at: watch::Sender<Option<Point>>,
    held: Arc<AtomicUsize>,
}

impl HeldPoints {
    /// The failpoints to start a broker with.
    pub(crate) fn failpoints(&self) -> Failpoints {
        let holds = self.clone();
        Failpoints::new(Arc::new(move |point| {
            let holds = holds.clone();
            Box::pin(async move { holds.pass(point).await })
        }))
    }

    async fn pass(&self, point: Point) {
        let mut at = self.at.subscribe();
        if *at.borrow_and_update() == Some(point) {
            self.held.fetch_add(1, Ordering::SeqCst);
            // An error is the end of the test.
            drop(at.wait_for(|at| *at != Some(point)).await);
            self.held.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// From now on refreshes stay at this point.
    pub(crate) fn hold(&self, point: Point) {
        self.at.send_replace(Some(point));
    }

    /// Waits until so many are held.
    pub(crate) async fn until(&self, count: usize) {
        until("the refreshes are held", async || self.held.load(Ordering::SeqCst) == count).await;
    }

    /// Lets all of them go.
    pub(crate) fn let_go(&self) {
        self.at.send_replace(None);
    }
}
