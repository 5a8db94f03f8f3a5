//! A client that does as it is told: no proxy, no redirect followed.

use std::time::Duration;

use reqwest::{Client, redirect::Policy};

#[expect(clippy::disallowed_methods, reason = "a test is no provider's client")]
pub(crate) fn client() -> Client {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        // The broker hangs up on idle connections after five seconds.
        .pool_idle_timeout(Duration::from_secs(2))
        .build()
        .unwrap()
}
