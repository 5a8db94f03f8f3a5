//! Slugs: the one rule for every name that an operator chooses.

use std::{borrow::Borrow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name for a connection, client, provider, service or operator: 1 to 63 lower-case letters,
/// digits and hyphens, beginning with a letter or a digit.
///
/// The rule is narrow so that a name can stand in a URL path, a file name, a log line or a
/// pattern without quoting.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slug(String);

/// A text is not a [`Slug`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a name: use 1 to 63 lower-case letters, digits and hyphens, beginning with a letter or a digit"
)]
pub struct NotASlug(String);

impl Slug {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// The name of something that was asked for, for a sentence: only a text that can be a name is
    /// repeated, for any other may be a secret in the wrong place.
    pub fn quoted(text: &str) -> String {
        if text.parse::<Self>().is_ok() { format!("`{text}`") } else { "of that name".to_owned() }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Slug {
    type Err = NotASlug;

    fn from_str(text: &str) -> Result<Self, NotASlug> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let mut bytes = text.bytes();
        let valid = text.len() <= Self::MAX_LEN
            && bytes.next().is_some_and(allowed)
            && bytes.all(|byte| allowed(byte) || byte == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            // The text may be foreign: show a bounded, printable part of it.
            Err(NotASlug(text.chars().take(64).flat_map(char::escape_debug).collect()))
        }
    }
}

impl TryFrom<String> for Slug {
    type Error = NotASlug;

    fn try_from(text: String) -> Result<Self, NotASlug> {
        text.parse()
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0
    }
}

impl Borrow<str> for Slug {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Slug {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Slug;

    #[test]
    fn a_slug_is_lower_case_letters_digits_and_hyphens() {
        for good in ["a", "avito-main", "7", "amocrm-2026", &"x".repeat(63)] {
            assert!(good.parse::<Slug>().is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "-a", "Avito", "a_b", "a.b", "a/b", "а", "a b", "a\n", "*", &long] {
            assert!(bad.parse::<Slug>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_refusal_shows_foreign_text_escaped_and_bounded() {
        let text = format!("\u{1b}[31m{}", "x".repeat(500));
        let message = text.parse::<Slug>().map_err(|error| error.to_string()).unwrap_err();
        assert!(message.starts_with("`\\u{1b}[31m"), "{message}");
        assert!(message.len() < 250, "{message}");
    }
}
