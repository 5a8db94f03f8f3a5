//! Texts in the shape of the real providers' codes and tokens. All of them are random.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::seal::secret::random_bytes;

/// `length` characters that are safe in a URL; at most 64.
pub(super) fn url_safe(length: usize) -> String {
    let mut text = URL_SAFE_NO_PAD.encode(random_bytes::<48>());
    text.truncate(length);
    text
}

/// 30 letters and digits.
pub(super) fn alphanumeric() -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    random_bytes::<30>().map(|byte| char::from(ALPHABET[usize::from(byte) % 62])).iter().collect()
}

/// `2 * N` hexadecimal digits.
pub(super) fn hex<const N: usize>() -> String {
    hex::encode(random_bytes::<N>())
}

/// A token of Ory Hydra: `ory_at_….…`, with `at`, `rt` or `ac`.
pub(super) fn ory(kind: &str) -> String {
    format!("ory_{kind}_{}.{}", url_safe(43), url_safe(43))
}
