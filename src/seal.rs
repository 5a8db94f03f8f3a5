//! Secrets at rest: sealed with a key from the ring, bound to the place where they belong.
//!
//! A sealed value is text: `v1.<key id>.<base64url(salt ‖ ciphertext ‖ tag)>`. Every value has an
//! AES-256-GCM key of its own, derived by HKDF-SHA-256 from the ring's key and 32 random bytes of
//! salt, so no pair of key and nonce is ever used twice however many values a key seals. The
//! associated data name the record, the field and the generation: a value copied to any other
//! place does not open.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{
    ExposeSecret as _, SecretBox, SecretString,
    zeroize::{Zeroize as _, Zeroizing},
};

use crate::secret;

const SALT_LEN: usize = 32;
const KEY_LEN: usize = 32;

/// A sealed secret, as the store keeps it.
#[derive(Clone, Eq, PartialEq)]
pub struct Sealed(String);

impl Sealed {
    /// A value that was read from a store or a file. It is checked when it is opened.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The text to store.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the key that opens this value, if it looks like a sealed value at all.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        let mut parts = self.0.split('.');
        (parts.next() == Some("v1")).then(|| parts.next()).flatten()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(key {})", self.key_id().unwrap_or("?"))
    }
}

/// The place a sealed value belongs to; it opens nowhere else.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The id of the record: a connection, a consent, the database itself.
    pub record: &'a str,
    /// The field within the record.
    pub field: &'static str,
    /// The generation of the grant; 0 where there are no generations.
    pub generation: i64,
}

impl Place<'_> {
    fn associated_data(&self, key_id: &str) -> Vec<u8> {
        // Length-prefixed, so that no two places read the same.
        let mut data = b"token-broker sealed v1".to_vec();
        for part in [key_id, self.record, self.field] {
            data.extend((part.len() as u64).to_be_bytes());
            data.extend(part.as_bytes());
        }
        data.extend(self.generation.to_be_bytes());
        data
    }
}

/// Why a sealed value did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The text is not a sealed value of a format we know.
    #[error("not a sealed value of a known format")]
    Malformed,
    /// The ring does not hold the key that sealed it.
    #[error("sealed with key `{0}`, which is not in the key file")]
    UnknownKey(String),
    /// Altered, moved from another place, or sealed with another key of the same id.
    #[error("the value does not open here: it was altered or moved, or its key was replaced")]
    Refused,
}

/// Why a key file could not be used or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A line of the file is not a key.
    #[error("line {line} is not a key: expected `<key id> <43 characters of base64url>`")]
    Malformed {
        /// Counted from 1.
        line: usize,
    },
    /// Two lines name the same key.
    #[error("line {line} repeats a key id")]
    Repeated {
        /// Counted from 1.
        line: usize,
    },
    /// There is no key in the file.
    #[error("the file holds no key")]
    Empty,
}

struct Key {
    id: String,
    bytes: SecretBox<[u8; KEY_LEN]>,
}

/// The sealing keys. The first seals, all of them open.
pub struct Keyring {
    keys: Vec<Key>,
}

impl Keyring {
    /// A ring of one new random key.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = secret::random_bytes::<KEY_LEN>();
        let id: String = secret::random_bytes::<4>().map(|byte| format!("{byte:02x}")).concat();
        let key = Key { id, bytes: SecretBox::new(Box::new(bytes)) };
        bytes.zeroize();
        Self { keys: vec![key] }
    }

    /// Reads a key file: one key a line, `<key id> <base64url of 32 bytes>`, the sealing key
    /// first; empty lines and lines that begin with `#` are passed over.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a line is not a key. No error carries key material.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let text = Zeroizing::new(fs::read_to_string(path)?);
        let mut keys: Vec<Key> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = || KeyFileError::Malformed { line: line_number };
            let (id, encoded) = line.split_once(' ').ok_or_else(malformed)?;
            if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(malformed());
            }
            let decoded =
                Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded.trim()).map_err(|_| malformed())?);
            let bytes: [u8; KEY_LEN] = decoded.as_slice().try_into().map_err(|_| malformed())?;
            if keys.iter().any(|key| key.id == id) {
                return Err(KeyFileError::Repeated { line: line_number });
            }
            keys.push(Key { id: id.to_owned(), bytes: SecretBox::new(Box::new(bytes)) });
        }
        if keys.is_empty() { Err(KeyFileError::Empty) } else { Ok(Self { keys }) }
    }

    /// Writes the ring to a new file that only its owner may read.
    ///
    /// # Errors
    ///
    /// When the file exists already or cannot be written; an existing file is never touched.
    #[expect(clippy::disallowed_methods, reason = "the key file is where the keys live")]
    pub fn write_new(&self, path: &Path) -> Result<(), KeyFileError> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut text = Zeroizing::new(String::from(
            "# Sealing keys of token-broker. The first seals, all open. Keep a copy apart from the\n\
             # database: without this file the stored tokens are lost, with both they are open.\n",
        ));
        for key in &self.keys {
            let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(key.bytes.expose_secret()));
            text.push_str(&key.id);
            text.push(' ');
            text.push_str(&encoded);
            text.push('\n');
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(())
    }

    /// The id of the key that seals.
    #[must_use]
    pub fn active_id(&self) -> &str {
        &self.keys[0].id
    }

    /// Seals a secret for its place.
    ///
    /// # Panics
    ///
    /// If the operating system's random generator fails.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the secret leaves its wrapper to be sealed")]
    pub fn seal(&self, place: Place<'_>, secret: &SecretString) -> Sealed {
        let key = &self.keys[0];
        let salt = secret::random_bytes::<SALT_LEN>();
        let mut buffer = secret.expose_secret().as_bytes().to_vec();
        let tag = value_key(key, &salt)
            .seal_in_place_separate_tag(
                zero_nonce(),
                Aad::from(place.associated_data(&key.id)),
                &mut buffer,
            )
            .expect("a token is far below the limit of AES-GCM");
        let mut payload = salt.to_vec();
        payload.extend(&buffer);
        payload.extend(tag.as_ref());
        Sealed(format!("v1.{}.{}", key.id, URL_SAFE_NO_PAD.encode(payload)))
    }

    /// Opens a sealed value in its place.
    ///
    /// # Errors
    ///
    /// When the value was altered or belongs elsewhere, or its key is not in the ring.
    pub fn open(&self, place: Place<'_>, sealed: &Sealed) -> Result<SecretString, OpenError> {
        let mut parts = sealed.0.splitn(3, '.');
        let (Some("v1"), Some(key_id), Some(encoded)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(OpenError::Malformed);
        };
        let key = self
            .keys
            .iter()
            .find(|key| key.id == key_id)
            .ok_or_else(|| OpenError::UnknownKey(key_id.escape_debug().take(64).collect()))?;
        let payload = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| OpenError::Malformed)?;
        let (salt, ciphertext) =
            payload.split_first_chunk::<SALT_LEN>().ok_or(OpenError::Malformed)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let plain = value_key(key, salt)
            .open_in_place(zero_nonce(), Aad::from(place.associated_data(key_id)), &mut buffer)
            .map_err(|_| OpenError::Refused)?;
        let text = str::from_utf8(plain).map_err(|_| OpenError::Malformed)?;
        Ok(SecretString::from(text))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

/// The key of one value. The salt makes it unique, which is why the nonce may be constant.
#[expect(clippy::disallowed_methods, reason = "the ring's key leaves its wrapper to derive")]
fn value_key(key: &Key, salt: &[u8; SALT_LEN]) -> LessSafeKey {
    let derived = Salt::new(HKDF_SHA256, salt).extract(key.bytes.expose_secret());
    let derived: UnboundKey = derived
        .expand(&[b"token-broker value key"], &AES_256_GCM)
        .expect("an AES-256 key is within the reach of HKDF")
        .into();
    LessSafeKey::new(derived)
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod properties;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests look at what was sealed")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PLACE: Place<'static> = Place { record: "c1", field: "access", generation: 7 };

    fn opens(ring: &Keyring, place: Place<'_>, sealed: &Sealed) -> bool {
        ring.open(place, sealed).is_ok()
    }

    #[test]
    fn a_value_opens_in_its_place_and_in_no_other() {
        let ring = Keyring::generate();
        let sealed = ring.seal(PLACE, &SecretString::from("the token"));
        assert_eq!(ring.open(PLACE, &sealed).unwrap().expose_secret(), "the token");
        assert!(!sealed.as_str().contains("token"));
        assert!(!opens(&ring, Place { record: "c2", ..PLACE }, &sealed));
        assert!(!opens(&ring, Place { field: "refresh", ..PLACE }, &sealed));
        assert!(!opens(&ring, Place { generation: 8, ..PLACE }, &sealed));
    }

    #[test]
    fn an_altered_value_and_a_foreign_key_are_refused() {
        let ring = Keyring::generate();
        let sealed = ring.seal(PLACE, &SecretString::from("the token"));
        let mut altered = sealed.as_str().to_owned();
        let last = altered.pop().unwrap();
        altered.push(if last == 'A' { 'E' } else { 'A' });
        assert!(!opens(&ring, PLACE, &Sealed::from_stored(altered)));
        for text in ["", "v1", "v1.x", "v2.a.b", "v1.a.!", "v1..", "v1.a.AAAA"] {
            assert!(!opens(&ring, PLACE, &Sealed::from_stored(text.to_owned())), "{text}");
        }
        let foreign = Keyring::generate();
        assert!(matches!(foreign.open(PLACE, &sealed), Err(OpenError::UnknownKey(_))));
    }

    #[test]
    fn two_seals_of_one_secret_differ() {
        let ring = Keyring::generate();
        let secret = SecretString::from("the token");
        assert_ne!(ring.seal(PLACE, &secret), ring.seal(PLACE, &secret));
    }

    #[test]
    fn a_key_file_reads_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let ring = Keyring::generate();
        ring.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Keyring::read(&path).unwrap();
        let sealed = ring.seal(PLACE, &SecretString::from("x"));
        assert!(opens(&again, PLACE, &sealed));
        assert!(Keyring::generate().write_new(&path).is_err());
        assert_eq!(Keyring::read(&path).unwrap().active_id(), ring.active_id());
    }

    #[test]
    fn a_bad_key_file_is_refused_by_line_and_without_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let good = format!("k1 {}", URL_SAFE_NO_PAD.encode([7; 32]));
        for (text, expected) in [
            (String::new(), "the file holds no key"),
            ("# only words\n".to_owned(), "the file holds no key"),
            (format!("{good}\nsecret"), "line 2 is not a key"),
            (format!("{good}\nk2 c2VjcmV0"), "line 2 is not a key"),
            (format!("k-1 {}", &good[3..]), "line 1 is not a key"),
            (format!("{good}\n{good}"), "line 2 repeats a key id"),
        ] {
            fs::write(&path, text).unwrap();
            let message = Keyring::read(&path).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
            assert!(!message.contains("secret") && !message.contains("c2VjcmV0"), "{message}");
        }
    }
}
