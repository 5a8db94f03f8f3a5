//! The codes that the broker itself writes into a connection's last error, beside the codes of
//! `provider`. The refresh, consent and deletion use cases write them; `provider` reserves them, so
//! that no provider's answer can pass for one of ours.

use super::connection::LastError;

/// The account call failed.
pub const ACCOUNT_CALL: &str = "account_call";
/// A stored token does not open.
pub const INTEGRITY_ERROR: &str = "integrity_error";
/// The only refresh token is spent, and its successor was lost with an answer.
pub const LOST_IN_ROTATION: &str = "lost_in_rotation";
/// The connection has no refresh token.
pub const NO_REFRESH_TOKEN: &str = "no_refresh_token";
/// The profile offers no revocation.
pub const NO_REVOCATION: &str = "no_revocation";
/// The profile's token URL is not the one that the refresh token was issued by.
pub const TOKEN_URL_CHANGED: &str = "token_url_changed";
/// The sealing key is not loaded.
pub const UNKNOWN_KEY: &str = "unknown_key";
/// The stored generation is lower than one that this replica has seen.
pub const WENT_BACK: &str = "went_back";

/// All of them.
pub const ALL: [&str; 9] = [
    ACCOUNT_CALL,
    INTEGRITY_ERROR,
    LOST_IN_ROTATION,
    NO_REFRESH_TOKEN,
    NO_REVOCATION,
    LastError::MISCONFIGURED,
    TOKEN_URL_CHANGED,
    UNKNOWN_KEY,
    WENT_BACK,
];
