//! Salvage: takes the refresh token out of an otherwise unusable answer. The one that was sent may
//! already be dead, so this one may be the only copy.

use secrecy::{SecretString, zeroize::Zeroizing};
use url::form_urlencoded;

use super::reply::valid_refresh_token;

const KEY: &[u8] = b"refresh_token";

/// The last whole refresh token in a text that looks like JSON or like a form.
///
/// Zero bytes are skipped, so that UTF-16 is read too.
pub(super) fn refresh_token(body: &[u8]) -> Option<SecretString> {
    let body = Zeroizing::new(body.iter().copied().filter(|b| *b != 0).collect::<Vec<u8>>());
    in_json(&body).or_else(|| in_form(&body))
}

/// The last whole refresh token in a text that looks like JSON.
pub(super) fn in_json(body: &[u8]) -> Option<SecretString> {
    let mut found = None;
    let mut rest = body;
    while let Some(at) = rest.windows(KEY.len() + 2).position(is_quoted_key) {
        rest = &rest[at + KEY.len() + 2..];
        found = value(rest).or(found);
    }
    found
}

fn is_quoted_key(window: &[u8]) -> bool {
    window.first() == Some(&b'"')
        && window.last() == Some(&b'"')
        && &window[1..window.len() - 1] == KEY
}

/// The string after a colon, if it has its end: half a token is worse than none.
fn value(text: &[u8]) -> Option<SecretString> {
    let text = text.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let inner = text.strip_prefix(b"\"")?;
    let mut escaped = false;
    let end = inner.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    let token: String = serde_json::from_slice(&text[..end + 2]).ok()?;
    valid_refresh_token(&token)
}

fn in_form(body: &[u8]) -> Option<SecretString> {
    let is_form = !body.iter().any(|b| b.is_ascii_whitespace() || *b == b'<');
    let mut pairs = form_urlencoded::parse(body).filter(|_| is_form);
    pairs
        .find(|(name, _)| name.as_bytes() == KEY)
        .and_then(|(_, token)| valid_refresh_token(&token))
}
