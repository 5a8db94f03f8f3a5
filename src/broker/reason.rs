//! The reason for a refresh: the limiters and the refresher both look at it.

use std::fmt;

/// Why a refresh is made. Of several reasons the last of this list counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RefreshReason {
    /// The background refresher found it due.
    Due,
    /// A reader needs it.
    Read,
    /// A reader reported that the API refused the token.
    Rejected,
    /// A connection without any token yet.
    Created,
    /// An operator asked for it.
    Operator,
}

impl fmt::Display for RefreshReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Due => "due",
            Self::Operator => "operator",
            Self::Read => "read",
            Self::Rejected => "rejected",
        })
    }
}
