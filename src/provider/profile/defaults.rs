//! The settings that a profile may leave out.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use super::{Pace, Rotation, Scope, Template, Tokens};

impl Default for Scope {
    fn default() -> Self {
        Self { separator: " ".to_owned(), always: Vec::new() }
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            access_life: Duration::from_mins(10),
            max_access_life: Duration::from_hours(90 * 24),
            refresh_idle_life: None,
            rotation: Rotation::SingleUse,
            grace: None,
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        let number = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        Self { per_second: number(5), burst: number(10), in_flight: number(8) }
    }
}

/// `authorize.pkce`.
pub(super) fn pkce() -> bool {
    true
}

/// `token.timeout`.
pub(super) fn timeout() -> Duration {
    Duration::from_secs(40)
}

/// `resource.headers`: a bearer token (RFC 6750 section 2.1).
pub(super) fn resource_headers() -> BTreeMap<String, Template> {
    let token = Template::try_from("Bearer {access_token}".to_owned());
    token.into_iter().map(|token| ("Authorization".to_owned(), token)).collect()
}
