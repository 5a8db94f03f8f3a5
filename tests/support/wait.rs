//! Waiting for a condition.

use std::{net::TcpListener, time::Duration};

use tokio::time::{interval, timeout};

/// The time after which a condition that is waited for fails the test.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Polls until the condition holds.
pub(crate) async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let wait = async {
        let mut looks = interval(Duration::from_millis(5));
        while !happened().await {
            looks.tick().await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// An address that nobody listens at; a restart needs the same one.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
