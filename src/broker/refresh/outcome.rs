//! The outcome of a failed refresh: where it leaves the connection. Pure.

use std::time::Duration;

use crate::{
    broker::limits::MassRefusal,
    domain::{
        broker_code,
        connection::{GrantType, LastError, State, backoff},
        record::Record,
    },
    provider::{ProviderError, Verdict},
};

/// The time for which our own misconfiguration is left alone before the next try.
const MISCONFIGURED_PAUSE: Duration = Duration::from_mins(1);

/// The time until a refusal that is one of many is tried again, if no probe succeeds before.
pub(crate) const SUPPRESSED_PAUSE: Duration = MassRefusal::PROBE;

/// Where a failed refresh leaves a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) state: State,
    pub(crate) reason: Option<String>,
}

impl Outcome {
    /// Judges a failure. Our own misconfiguration leaves the connection where it was, and a grant that
    /// nobody consented to never needs consent.
    pub(crate) fn of(verdict: &Verdict, record: &Record) -> Self {
        let connection = &record.connection;
        match verdict {
            Verdict::Refused { reason }
                if connection.grant_type == GrantType::AuthorizationCode =>
            {
                // An earlier presentation whose end is unknown explains the refusal: the provider has
                // replaced the token, and its answer was lost on the way.
                let lost = record.open_attempts > 0;
                let reason = if lost { broker_code::LOST_IN_ROTATION } else { reason };
                Self { state: State::NeedsConsent, reason: Some(reason.to_owned()) }
            }
            Verdict::Misconfigured => {
                Self { state: connection.state, reason: connection.reason.clone() }
            }
            Verdict::Ambiguous => Self { state: State::Uncertain, reason: None },
            Verdict::Refused { .. }
            | Verdict::Busy { .. }
            | Verdict::NotSent
            | Verdict::Retry
            | Verdict::TooLate => Self { state: State::BackingOff, reason: None },
        }
    }

    /// The outcome of a refusal while refusals are suppressed: it may be the provider's mistake.
    pub(crate) fn suppressed() -> Self {
        Self { state: State::Suspect, reason: Some("mass_refusal".to_owned()) }
    }

    /// The time until the next try after so many failures in a row, varied by `seed`.
    pub(crate) fn pause(&self, verdict: &Verdict, failures: u32, seed: u16) -> Duration {
        if self.state == State::Suspect {
            return SUPPRESSED_PAUSE;
        }
        let backoff = backoff(failures, seed);
        match verdict {
            Verdict::Misconfigured => MISCONFIGURED_PAUSE,
            Verdict::Busy { retry_after: Some(after) } => backoff.max(*after),
            _ => backoff,
        }
    }
}

/// The code of a failure, as the connection shows it.
pub(crate) fn code(error: &ProviderError) -> &str {
    match error.verdict {
        Verdict::Misconfigured => LastError::MISCONFIGURED,
        _ => &error.code,
    }
}

/// The word for a verdict in records.
pub(crate) fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Ambiguous => "ambiguous",
        Verdict::Busy { .. } => "busy",
        Verdict::Misconfigured => "misconfigured",
        Verdict::NotSent => "not sent",
        Verdict::Refused { .. } => "refused",
        Verdict::Retry => "retry",
        Verdict::TooLate => "too late",
    }
}
