//! What a test waits for, and an address to wait at.

use std::{net::TcpListener, time::Duration};

use tokio::time::{interval, timeout};

/// How long anything is waited for before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Looks again and again until it has happened.
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
