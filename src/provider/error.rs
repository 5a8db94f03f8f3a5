//! Errors of calls to providers: the verdict on an answer without a grant, and its code.

use std::{fmt, time::Duration};

use secrecy::SecretString;
use serde_json::Value;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

use super::{
    profile::{ErrorRule, Profile, RuleVerdict, Scalar},
    reply::Reply,
};
use crate::domain::broker_code;

/// The consequence of a request that brought nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The provider may have acted on it: sending it again has a price.
    Ambiguous,
    /// Nothing was spent; slow down.
    Busy {
        /// For how long, if the provider says; from 1 s to 15 min.
        retry_after: Option<Duration>,
    },
    /// Our registration or request is at fault: an operator must look, no connection is touched.
    Misconfigured,
    /// It never reached the provider: nothing was spent.
    NotSent,
    /// The grant is dead: a person must consent again.
    Refused {
        /// Why, as a stable word.
        reason: String,
    },
    /// The provider declined, and nothing says that it is for good.
    Retry,
    /// We held it up for too long to send it: nothing was spent, and it tells nothing of the provider.
    TooLate,
}

/// The codes that this room gives. A provider that answers one of them is not quoted.
#[derive(Clone, Copy, Debug, Display, EnumString, Eq, IntoStaticStr, PartialEq, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ErrorCode {
    /// The answer is larger than is read.
    AnswerTooLarge,
    /// The answer is compressed although we refuse that.
    CompressedAnswer,
    /// No connection to the provider.
    ConnectFailed,
    /// No connection to the provider in time.
    ConnectTimeout,
    /// The connection broke after it stood.
    ConnectionBroken,
    /// The token answer holds no access token.
    NoAccessToken,
    /// The account answer holds no account.
    NoAccount,
    /// The request could not be made or sent.
    NotSent,
    /// The URL lies outside the profile's network.
    OutsideNetwork,
    /// The last moment to send safely has passed.
    SendWindowOver,
    /// No answer in time.
    Timeout,
    /// TLS does not start.
    Tls,
    /// The answer is not the JSON that it should be.
    UnreadableAnswer,
    /// The access token cannot stand in a header.
    UnusableAccessToken,
    /// A secret of the client cannot stand in a header.
    UnusableHeader,
    /// The access token is not a bearer token.
    UnusableTokenType,
}

/// A request to a provider brought nothing. Holds no text of the provider's.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ProviderError {
    /// The consequence.
    pub verdict: Verdict,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// A stable word: an [`ErrorCode`], one of [`broker_code`], `http_` and the status, or the
    /// provider's RFC 6749 error code, which is none of those.
    pub code: String,
    /// One sentence for a person.
    pub message: String,
    /// A refresh token found in an answer that is of no use otherwise. It must be kept: the one
    /// that was sent may be dead. It may also be that very one, echoed.
    pub salvaged_refresh: Option<SecretString>,
}

impl ProviderError {
    /// An error without an answer, or with one that says nothing more.
    pub(crate) fn new(
        verdict: Verdict,
        status: impl Into<Option<u16>>,
        code: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self {
            verdict,
            status: status.into(),
            code: code.to_string(),
            message: message.into(),
            salvaged_refresh: None,
        }
    }
}

/// Judges an answer without a grant: the profile's rules first, then RFC 6749, then HTTP.
///
/// Nothing is `Refused` but by a listed rule or by `invalid_grant`, and neither on 429 or 5xx.
pub(super) fn judge(profile: &Profile, reply: &Reply, json: Option<&Value>) -> ProviderError {
    let status = reply.status;
    let busy = Verdict::Busy { retry_after: reply.retry_after.or_else(|| wait_in_body(json?)) };
    let said = json.and_then(|json| json.get("error")?.as_str()).and_then(error_code);
    let code = said.clone().filter(|word| !is_reserved(word));
    let code = code.unwrap_or_else(|| format!("http_{status}"));
    let error = |verdict, message: &str| ProviderError::new(verdict, status, &code, message);

    if let Some(rule) = profile.errors.iter().find(|rule| fits(rule, status, json)) {
        return match rule.verdict {
            RuleVerdict::Busy => error(busy, "The provider asks us to slow down."),
            RuleVerdict::Misconfigured => error(
                Verdict::Misconfigured,
                "The provider refuses our registration or the way we ask.",
            ),
            RuleVerdict::Refused => {
                let reason = rule.reason.clone().unwrap_or_default();
                error(Verdict::Refused { reason }, "The provider refuses this authorisation.")
            }
            RuleVerdict::Retry => error(Verdict::Retry, "The provider asks us to try again."),
        };
    }
    match (status, said.as_deref()) {
        (429, _) => error(busy, "The provider asks us to slow down."),
        // Without Retry-After, a proxy may say 503 after the provider has acted.
        (503, _) if reply.retry_after.is_some() => error(busy, "The provider is overloaded."),
        (500.., _) => error(Verdict::Ambiguous, "The provider failed to answer."),
        (300..400, _) => error(
            Verdict::Misconfigured,
            "The provider redirects elsewhere: the URL in its profile is out of date.",
        ),
        (_, Some("invalid_grant")) => {
            let reason = "revoked".to_owned();
            error(Verdict::Refused { reason }, "The provider refuses this authorisation.")
        }
        // A refused scope is ours as well: the registration has lost it, or never had it, and no
        // consent to the same scopes would help.
        (
            _,
            Some(
                "invalid_client"
                | "invalid_request"
                | "invalid_scope"
                | "unauthorized_client"
                | "unsupported_grant_type",
            ),
        ) => error(
            Verdict::Misconfigured,
            "The provider refuses our registration or the way we ask.",
        ),
        // The provider itself declined, in a form that it means clients to read.
        (400..500, _) if status != 408 && json.is_some_and(Value::is_object) => {
            error(Verdict::Retry, "The provider declines for a reason that we do not know.")
        }
        (200..300, Some(_)) => {
            error(Verdict::Retry, "The provider declines for a reason that we do not know.")
        }
        // A page of a proxy or firewall, perhaps in place of an answer that went lost.
        _ => error(Verdict::Ambiguous, "The provider's answer makes no sense."),
    }
}

fn fits(rule: &ErrorRule, status: u16, json: Option<&Value>) -> bool {
    let member = |pointer: &String| json.and_then(|json| json.pointer(pointer));
    let passing = status == 429 || status >= 500;
    rule.status.is_none_or(|wanted| wanted == status)
        && rule.matches.iter().all(|(at, wanted)| member(at).is_some_and(|is| equal(is, wanted)))
        && rule.absent.iter().all(|pointer| member(pointer).is_none_or(Value::is_null))
        && !(passing && rule.verdict == RuleVerdict::Refused)
}

fn equal(value: &Value, wanted: &Scalar) -> bool {
    match wanted {
        Scalar::Bool(wanted) => value.as_bool() == Some(*wanted),
        Scalar::Integer(wanted) => value.as_i64() == Some(*wanted),
        Scalar::Text(wanted) => value.as_str() == Some(wanted),
    }
}

/// An error code of RFC 6749, if a text has the form of one.
fn error_code(text: &str) -> Option<String> {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    ((1..=64).contains(&text.len()) && text.bytes().all(word)).then(|| text.to_owned())
}

/// True if a code is reserved for the broker, so that no provider's answer passes for one of ours.
fn is_reserved(word: &str) -> bool {
    word.parse::<ErrorCode>().is_ok()
        || broker_code::ALL.contains(&word)
        || word.starts_with("http_")
}

/// amoCRM writes the wait into the body. <https://developers.kommo.com/docs/http-codes>
fn wait_in_body(json: &Value) -> Option<Duration> {
    json.get("retry_after")?.as_u64().map(Duration::from_secs).map(clamp_wait)
}

/// No provider makes us ask at once, nor never again.
pub(super) fn clamp_wait(wait: Duration) -> Duration {
    wait.clamp(Duration::from_secs(1), Duration::from_mins(15))
}
