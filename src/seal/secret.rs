//! Random secrets, and the digests that stand for them in the store.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

/// 256 random bits from the operating system, as 43 characters that are safe in a URL.
///
/// # Panics
///
/// If the operating system's generator fails: nothing safe can be done without it.
pub fn random() -> SecretString {
    SecretString::from(URL_SAFE_NO_PAD.encode(random_bytes::<32>()))
}

/// `N` random bytes from the operating system.
///
/// # Panics
///
/// As [`random`].
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system's random generator works");
    bytes
}

/// A random number, to spread steps that would otherwise coincide.
pub fn random_seed() -> u16 {
    u16::from_be_bytes(random_bytes())
}

/// The SHA-256 digest of a secret, which the store keeps in place of a key, a state or a link.
///
/// Comparison takes constant time.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a secret.
    #[expect(clippy::disallowed_methods, reason = "only the digest leaves")]
    pub fn of(secret: &SecretString) -> Self {
        Self::of_bytes(secret.expose_secret().as_bytes())
    }

    /// The digest of bytes that may be public.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Self(digest)
    }

    /// The digest itself, as a PKCE challenge needs it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 16 hexadecimal digits: enough to tell tokens apart, too few to be of use.
    pub fn fingerprint(&self) -> String {
        let mut text = self.to_string();
        text.truncate(16);
        text
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Digest {}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.fingerprint())
    }
}

/// A text is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("not a digest of 64 hexadecimal digits")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(|_| NotADigest)?;
        Ok(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_what_it_prints() {
        let digest = Digest::of(&random());
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("zz".repeat(32).parse::<Digest>().is_err());
        assert!("é".repeat(32).parse::<Digest>().is_err());
    }

    #[test]
    fn neither_secret_nor_digest_shows_itself_in_debug_output() {
        let secret = random();
        assert!(!format!("{secret:?}").contains(&Digest::of(&secret).to_string()));
        assert_eq!(format!("{:?}", Digest::of_bytes(b"")), "Digest(e3b0c44298fc1c14)");
    }
}
