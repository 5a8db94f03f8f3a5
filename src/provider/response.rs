//! Reading a provider's answer: leniently where providers differ, and never so that a refresh
//! token is lost.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::{
    error::{ErrorCode, ProviderError, Verdict, clamp_wait, judge},
    profile::Profile,
    reply::{MAX_TOKEN, Reply, valid_refresh_token},
    salvage,
};
use crate::domain::connection::Account;

/// The deepest nesting of an answer's JSON, and the most members of its object.
const MAX_DEPTH: usize = 16;
const MAX_MEMBERS: usize = 64;

/// The longest name of an account that is kept, in characters.
const MAX_NAME: usize = 200;

/// The grant in a token endpoint's answer.
#[derive(Debug)]
pub struct Grant {
    /// The access token: visible ASCII, so that it can stand in a header.
    pub access: SecretString,
    /// The refresh token; none if the answer has none, and then the one that was sent stays.
    pub refresh: Option<SecretString>,
    /// The life of the access token, counted from when the request was sent.
    pub expires_in: Duration,
    /// The scopes granted; none if the answer does not say: they are those asked for at a consent, and
    /// those held at a refresh.
    pub scopes: Option<Vec<String>>,
}

/// Reads the answer of a token endpoint.
///
/// # Errors
///
/// If it brings no usable access token. The error then carries a refresh token, if there is one.
pub fn read_grant(profile: &Profile, reply: &Reply) -> Result<Grant, ProviderError> {
    let body = bytes(reply);
    let json = parse(body);
    match strict(profile, reply, json.as_ref()) {
        Ok(grant) if grant.refresh.is_none() => {
            // It may stand twice, once as null, or deeper than it should.
            Ok(Grant { refresh: salvage::in_json(body), ..grant })
        }
        Err(mut error) => {
            if (200..300).contains(&reply.status) || error.verdict == Verdict::Ambiguous {
                error.salvaged_refresh = salvage::refresh_token(body);
            }
            Err(error)
        }
        granted => granted,
    }
}

fn strict(profile: &Profile, reply: &Reply, json: Option<&Value>) -> Result<Grant, ProviderError> {
    let status = reply.status;
    let refuse =
        |verdict, code, message: &str| Err(ProviderError::new(verdict, status, code, message));
    let success = (200..300).contains(&status);
    let Some(json) = json.filter(|json| success && json.is_object()) else {
        return Err(if success {
            let message = "The provider's answer is not the JSON that it should be.";
            ProviderError::new(Verdict::Ambiguous, status, ErrorCode::UnreadableAnswer, message)
        } else {
            judge(profile, reply, json)
        });
    };
    if json.as_object().is_some_and(|object| object.len() > MAX_MEMBERS) {
        let message = "The provider's answer is larger than any token answer.";
        return refuse(Verdict::Ambiguous, ErrorCode::UnreadableAnswer, message);
    }
    let Some(access) = json.get("access_token").filter(|token| **token != "") else {
        let mut error = judge(profile, reply, Some(json));
        if error.code == format!("http_{status}") {
            error.code = ErrorCode::NoAccessToken.to_string();
            "The provider's answer holds no access token.".clone_into(&mut error.message);
        }
        return Err(error);
    };
    let visible =
        |token: &&str| token.len() <= MAX_TOKEN && token.bytes().all(|b| b.is_ascii_graphic());
    let Some(access) = access.as_str().filter(visible) else {
        let message = "The provider's access token cannot be sent in a header.";
        return refuse(Verdict::Ambiguous, ErrorCode::UnusableAccessToken, message);
    };
    match json.get("token_type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind.is_empty() || kind.eq_ignore_ascii_case("bearer") => {}
        Some(_) => {
            let message = "The provider's access token is not a bearer token.";
            return refuse(Verdict::Misconfigured, ErrorCode::UnusableTokenType, message);
        }
    }
    Ok(Grant {
        access: access.into(),
        refresh: json.get("refresh_token").and_then(Value::as_str).and_then(valid_refresh_token),
        expires_in: expires_in(profile, json.get("expires_in")),
        scopes: json.get("scope").and_then(|scope| scopes(profile, scope)),
    })
}

/// A whole number of seconds as number or text; anything else is the profile's default.
fn expires_in(profile: &Profile, value: Option<&Value>) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
    let seconds = match value {
        Some(Value::Number(number)) => number.as_u64().or_else(|| {
            let float = number.as_f64()?;
            (float.fract() == 0.0 && (0.0..1e15).contains(&float)).then_some(float as u64)
        }),
        Some(Value::String(text)) => {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        }
        _ => None,
    };
    match seconds {
        None | Some(0) => profile.tokens.access_life,
        Some(seconds) => Duration::from_secs(seconds).min(profile.tokens.max_access_life),
    }
}

/// The scopes of a text in the profile's way, or of a JSON array.
fn scopes(profile: &Profile, value: &Value) -> Option<Vec<String>> {
    let words = |text: &str| {
        let parts = text.split(&*profile.scope.separator).flat_map(str::split_whitespace);
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    let found = match value {
        Value::String(text) => words(text),
        Value::Array(items) => items.iter().filter_map(Value::as_str).flat_map(words).collect(),
        _ => return None,
    };
    (!found.is_empty()).then_some(found)
}

/// Reads the answer of the call that tells who a token belongs to. It changes nothing at the
/// provider, so the call may always be repeated.
pub fn read_account(profile: &Profile, reply: &Reply) -> Result<Account, ProviderError> {
    let refuse =
        |verdict, message| ProviderError::new(verdict, reply.status, ErrorCode::NoAccount, message);
    match reply.status {
        200..300 => {}
        429 => {
            let busy = Verdict::Busy { retry_after: reply.retry_after };
            return Err(refuse(busy, "The provider asks us to slow down."));
        }
        // A scope is missing, or the profile is out of date.
        300..=399 | 401 | 403 => {
            let message = "The provider does not let us ask whose token it is.";
            return Err(refuse(Verdict::Misconfigured, message));
        }
        _ => return Err(refuse(Verdict::Retry, "The provider does not tell whose token it is.")),
    }
    let json = parse(bytes(reply));
    let text = |pointer: &String| match json.as_ref()?.pointer(pointer)? {
        Value::String(text) => Some(printable(text)).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let call = profile.account.as_ref();
    let id = call.and_then(|call| text(&call.id)).ok_or_else(|| {
        refuse(Verdict::Retry, "The provider's answer does not tell whose token it is.")
    })?;
    Ok(Account {
        id,
        name: call.and_then(|call| text(call.name.as_ref()?)),
        aliases: call.iter().flat_map(|call| &call.aliases).filter_map(text).collect(),
    })
}

/// The error of an answer that is no success.
pub(super) fn refusal(profile: &Profile, reply: &Reply) -> ProviderError {
    judge(profile, reply, parse(bytes(reply)).as_ref())
}

/// A provider's text, bounded and without control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>().trim().to_owned()
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3), from 1 s to 15 min.
pub fn read_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(clamp_wait(Duration::from_secs(seconds)));
    }
    let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let wait = Duration::try_from(until.duration_since(now)).unwrap_or_default();
    Some(clamp_wait(wait))
}

/// The body as JSON, if it is JSON of a reasonable shape. A byte order mark is forgiven.
fn parse(body: &[u8]) -> Option<Value> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    serde_json::from_slice(body).ok().filter(|json| depth(json) <= MAX_DEPTH)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[expect(clippy::disallowed_methods, reason = "tokens are read out of the answer here")]
fn bytes(reply: &Reply) -> &[u8] {
    reply.body.expose_secret()
}
