//! The one memory of texts: for a provider that gives the same pair again.

use jiff::Timestamp;

use super::{Pair, end_of};

/// The pair that the first use of a refresh token brought, and when its tokens end.
///
/// A provider that gives the same pair again must still have its texts, so these alone are kept, and
/// only as long as that token works. They are simulated and open nothing.
#[derive(Debug)]
pub(super) struct Successor {
    access: (String, Timestamp),
    refresh: Option<(String, Timestamp)>,
}

impl Successor {
    pub(super) fn new(pair: Pair<'_>, now: Timestamp) -> Self {
        let keep = |(text, life): (&str, u32)| (text.to_owned(), end_of(life, now));
        Self { access: keep(pair.access), refresh: pair.refresh.map(keep) }
    }

    /// The same texts, with the rest of their lives.
    pub(super) fn again(&self, now: Timestamp) -> Pair<'_> {
        let rest = |ends_at: Timestamp| ends_at.duration_since(now).as_secs().try_into();
        Pair {
            access: (&self.access.0, rest(self.access.1).unwrap_or(0)),
            refresh: self.refresh.as_ref().map(|(text, end)| (&**text, rest(*end).unwrap_or(0))),
        }
    }
}
