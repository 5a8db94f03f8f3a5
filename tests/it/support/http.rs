//! A client that does as it is told: no proxy, no redirect followed.

use reqwest::{Client, redirect::Policy};

#[expect(clippy::disallowed_methods, reason = "a test is no provider's client")]
pub(crate) fn client() -> Client {
    Client::builder().no_proxy().redirect(Policy::none()).build().unwrap()
}
