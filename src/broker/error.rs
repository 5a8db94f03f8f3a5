//! The errors of the use cases, in the broker's own words.

use std::time::Duration;

use crate::{
    domain::{
        connection::{Connection, State},
        freeze::FreezeKind,
        slug::Slug,
    },
    seal::OpenError,
    store::StoreError,
};

/// Why a use case did not succeed. Knows nothing of HTTP; carries no secret and no provider text.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// The caller is authenticated but lacks permission (403).
    #[error("{0}")]
    Forbidden(String),
    /// An operator has frozen it. Why is not for callers to know.
    #[error("an operator has frozen this {0}; nothing is served until it is unfrozen")]
    Frozen(FreezeKind),
    /// The input is wrong: the sentence says what and what to do.
    #[error("{0}")]
    Invalid(String),
    /// Something of that name exists already.
    #[error("{0}")]
    Conflict(String),
    /// Unknown, or not for this caller to know.
    #[error("{0}")]
    NotFound(String),
    /// No key, or none that we know.
    #[error("show a key of this broker as `Authorization: Bearer KEY`")]
    Unauthorized,
    /// Nobody has consented yet.
    #[error("nobody has consented for this connection yet; make a consent link for it")]
    NotConnected,
    /// Somebody consented, and the account is not confirmed.
    #[error("an account consented and waits to be confirmed")]
    PendingConfirm,
    /// The provider refused the grant.
    #[error(
        "the provider no longer accepts this connection's grant ({reason}); a new consent is needed"
    )]
    ConsentRequired {
        /// A stable word.
        reason: String,
    },
    /// Nobody accepts the audit record of a token.
    #[error("the audit trail cannot be written, and without a record no token leaves")]
    Unaudited,
    /// A consent link can no longer be used, or not from this browser.
    #[error("the consent link can no longer be used")]
    Gone(Gone),
    /// The connection was deleted.
    #[error("the connection was revoked")]
    Revoked,
    /// A stored value does not open.
    #[error(
        "the stored tokens of this connection do not open with the sealing key; an operator must look"
    )]
    Integrity,
    /// The provider refuses our own registration or settings.
    #[error("{0}")]
    Misconfigured(String),
    /// A passing failure, and no live token to serve.
    #[error("{reason}")]
    Unavailable {
        /// One sentence.
        reason: String,
        /// When it makes sense to ask again.
        retry_after: Duration,
    },
    /// More than a limit allows.
    #[error("{0}")]
    TooMany(String),
    /// Our own fault. What happened is in the log.
    #[error("internal error; the log has more")]
    Internal,
}

impl BrokerError {
    /// A passing failure, and no live token to serve.
    pub(crate) fn unavailable(reason: impl Into<String>, retry_after: Duration) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after }
    }

    /// The broker is being stopped.
    pub(crate) fn being_stopped() -> Self {
        Self::unavailable("the broker is being stopped", Duration::from_secs(1))
    }

    /// The refusal that a connection's state means, whoever asks for it; none where it may serve or
    /// refresh, or was deleted.
    pub(crate) fn of_state(connection: &Connection) -> Option<Self> {
        match connection.state {
            State::PendingConsent => Some(Self::NotConnected),
            State::PendingConfirm => Some(Self::PendingConfirm),
            State::NeedsConsent => {
                let reason = connection.reason.clone().unwrap_or_else(|| "revoked".to_owned());
                Some(Self::ConsentRequired { reason })
            }
            State::IntegrityError => Some(Self::Integrity),
            _ => None,
        }
    }

    /// A thing is unknown, or not the caller's to know.
    pub fn no_connection(name: &str) -> Self {
        let name = Slug::quoted(name);
        Self::NotFound(format!("there is no connection {name} that you may use"))
    }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NameTaken(name) => Self::Conflict(format!("the name `{name}` is taken")),
            StoreError::Unreachable(_) => Self::Unavailable {
                reason: "the database cannot be reached".to_owned(),
                retry_after: Duration::from_secs(2),
            },
            error => {
                tracing::error!(error = &error as &dyn std::error::Error, "store failed");
                Self::Internal
            }
        }
    }
}

impl From<OpenError> for BrokerError {
    fn from(error: OpenError) -> Self {
        match error {
            // The other replicas know the key; it says nothing about the value.
            OpenError::UnknownKey(key) => Self::Unavailable {
                reason: format!(
                    "a stored value is sealed with key `{key}`, which this replica's key file lacks"
                ),
                retry_after: Duration::from_secs(2),
            },
            OpenError::Malformed | OpenError::Refused => Self::Integrity,
        }
    }
}

/// Why a consent link can no longer be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gone {
    /// It does not exist, or its time is over.
    Ended,
    /// Another browser pressed first.
    OtherBrowser,
    /// Its grant was stored.
    Used,
}
