//! A provider's reply as it came, and the rule for a refresh token found in it.

use std::time::Duration;

use secrecy::{SecretSlice, SecretString};

/// The longest access or refresh token that is taken, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// A provider's reply.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// `Retry-After`, read by [`super::read_retry_after`].
    pub retry_after: Option<Duration>,
    /// The body, bounded, and wiped when dropped.
    pub body: SecretSlice<u8>,
}

/// The text as a refresh token, unless it is empty, too long, or holds control characters.
pub(super) fn valid_refresh_token(text: &str) -> Option<SecretString> {
    let valid = (1..=MAX_TOKEN).contains(&text.len()) && !text.contains(char::is_control);
    valid.then(|| text.into())
}
