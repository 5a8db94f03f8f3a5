//! Secrets at rest: sealed with a key from the ring, bound to the place where they belong.
//!
//! A sealed value is text: `v1.<key id>.<base64url(salt ‖ ciphertext ‖ tag)>`. Every value has an
//! AES-256-GCM key of its own, derived by HKDF-SHA-256 from the ring's key and 32 random bytes of
//! salt, so no pair of key and nonce is ever used twice however many values a key seals. The
//! associated data name the record, the field and the generation: a value copied to any other
//! place does not open.
//!
//! A running broker loads its key file again when it changes: [`Keyring::reload_if_changed`].
//!
//! May use: `os`. Used by `domain` (types of sealed values and digests), `broker`, `store`, `spool`
//! and the commands.

pub mod secret;

mod context;
mod key_file;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::{Mutex, RwLock};
use secrecy::{
    ExposeSecret as _, SecretBox, SecretString,
    zeroize::{Zeroize as _, Zeroizing},
};

use serde::{Deserialize, Serialize};

pub use self::context::{SealContext, SealedField};
use self::key_file::Stamp;
pub use self::key_file::{KeyFileError, add_key, promote_key};

const SALT_LEN: usize = 32;
const KEY_LEN: usize = 32;

/// A sealed secret, as the store keeps it.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sealed(String);

impl Sealed {
    /// A value that was read from a store or a file. It is checked when it is opened.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The text to store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the key that opens this value, if it has the form of a sealed value.
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

/// Errors of opening a sealed value.
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

struct Key {
    id: String,
    bytes: SecretBox<[u8; KEY_LEN]>,
    /// The key was added to the file, but does not seal yet.
    waits: bool,
}

impl Key {
    fn generate() -> Self {
        let mut bytes = secret::random_bytes::<KEY_LEN>();
        let id = hex::encode(secret::random_bytes::<4>());
        let key = Self { id, bytes: SecretBox::new(Box::new(bytes)), waits: false };
        bytes.zeroize();
        key
    }

    #[expect(clippy::disallowed_methods, reason = "two keys are compared, neither leaves")]
    fn is(&self, other: &Self) -> bool {
        self.id == other.id && self.bytes.expose_secret() == other.bytes.expose_secret()
    }
}

type Keys = Vec<Arc<Key>>;

/// The sealing keys. The first seals, all of them open.
pub struct Keyring {
    keys: RwLock<Arc<Keys>>,
    file: Option<Mutex<Followed>>,
}

/// The file that a ring was read from, with its state at that time.
struct Followed {
    path: PathBuf,
    /// None if the file has to be read again in any case.
    stamp: Option<Stamp>,
    problem: Option<String>,
}

impl Keyring {
    /// A ring of one new random key, of no file.
    pub fn generate() -> Self {
        Self { keys: RwLock::new(Arc::new(vec![Arc::new(Key::generate())])), file: None }
    }

    /// Reads a key file: one key a line, `<key id> <base64url of 32 bytes>`, the sealing key first;
    /// empty lines and lines that begin with `#` are skipped. A key whose line ends in the word
    /// `new` waits for `keys rotate` to put it first, and opens meanwhile.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a line is not a key. No error carries key material.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let (keys, stamp) = key_file::read(path)?;
        let file = Followed { path: path.to_owned(), stamp: Some(stamp), problem: None };
        Ok(Self { keys: RwLock::new(Arc::new(keys)), file: Some(Mutex::new(file)) })
    }

    /// Reads the key file again if it has changed. A key that is gone from it is held until the
    /// process ends, so that its values still open. A file that cannot be read, or has no key in
    /// common with the ring, changes nothing and is logged once.
    ///
    /// Blocks for reading a file of a few lines.
    pub fn reload_if_changed(&self) {
        let Some(file) = &self.file else { return };
        let mut file = file.lock();
        let path = file.path.display();
        let read = key_file::read_if_changed(&file.path, file.stamp.as_ref());
        let problem = match read.and_then(|read| self.apply(read)) {
            Ok(None) => return,
            Ok(Some(stamp)) => {
                let sealing = self.active_id();
                tracing::info!(sealing, "loaded the changed key file {path}");
                file.stamp = Some(stamp);
                file.problem = None;
                return;
            }
            Err(error) => format!("cannot load the key file {path}: {error}"),
        };
        file.stamp = None;
        if file.problem.as_ref() != Some(&problem) {
            tracing::error!("{problem}; the keys loaded before stay in use");
            file.problem = Some(problem);
        }
    }

    fn apply(&self, read: Option<(Keys, Stamp)>) -> Result<Option<Stamp>, KeyFileError> {
        let Some((mut keys, stamp)) = read else { return Ok(None) };
        let held = self.keys();
        let namesake = |key: &Arc<Key>| keys.iter().find(|other| other.id == key.id);
        if let Some(replaced) =
            held.iter().find(|key| namesake(key).is_some_and(|other| !other.is(key)))
        {
            return Err(KeyFileError::Replaced { id: replaced.id.clone() });
        }
        let lost: Keys = held.iter().filter(|key| namesake(key).is_none()).cloned().collect();
        if lost.len() == held.len() {
            return Err(KeyFileError::Foreign);
        }
        for key in &lost {
            tracing::warn!(
                key = key.id,
                "a sealing key is gone from the key file: it is held until this process ends"
            );
        }
        keys.extend(lost);
        *self.keys.write() = Arc::new(keys);
        Ok(Some(stamp))
    }

    /// The problem with the key file, if it could not be loaded when it was last read.
    pub fn problem(&self) -> Option<String> {
        let file = self.file.as_ref()?.lock();
        file.problem.clone()
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read())
    }

    /// Writes the ring to a new file that only its owner may read.
    ///
    /// # Errors
    ///
    /// When the file exists already or cannot be written; an existing file is never touched.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyFileError> {
        key_file::write_new(path, &self.keys())
    }

    /// The id of the key that seals.
    pub fn active_id(&self) -> String {
        self.keys()[0].id.clone()
    }

    /// The ids of all keys, the sealing one first.
    pub fn ids(&self) -> Vec<String> {
        self.keys().iter().map(|key| key.id.clone()).collect()
    }

    /// The ids of the keys that were added and wait to be put first.
    pub fn waiting_ids(&self) -> Vec<String> {
        self.keys().iter().skip(1).filter(|key| key.waits).map(|key| key.id.clone()).collect()
    }

    /// True if the ring holds the key of a sealed value, after reading the key file again if need
    /// be. True as well for a text that is no sealed value: no key opens that.
    pub fn has_key(&self, sealed: &Sealed) -> bool {
        let Some(id) = sealed.key_id() else { return true };
        let holds = || self.keys().iter().any(|key| key.id == id);
        holds() || {
            self.reload_if_changed();
            holds()
        }
    }

    /// Seals a secret for its place.
    ///
    /// # Panics
    ///
    /// If the operating system's random generator fails.
    #[expect(clippy::disallowed_methods, reason = "the secret leaves its wrapper to be sealed")]
    pub fn seal(&self, context: SealContext<'_>, secret: &SecretString) -> Sealed {
        let keys = self.keys();
        let key = &keys[0];
        let salt = secret::random_bytes::<SALT_LEN>();
        let mut buffer = secret.expose_secret().as_bytes().to_vec();
        let tag = value_key(key, &salt)
            .seal_in_place_separate_tag(
                zero_nonce(),
                Aad::from(context.associated_data(&key.id)),
                &mut buffer,
            )
            .expect("a token is far below the limit of AES-GCM");
        let mut payload = salt.to_vec();
        payload.extend(&buffer);
        payload.extend(tag.as_ref());
        Sealed(format!("v1.{}.{}", key.id, URL_SAFE_NO_PAD.encode(payload)))
    }

    /// Opens a sealed value in its place; reads the key file again first if its key is not in the
    /// ring.
    ///
    /// # Errors
    ///
    /// When the value was altered or belongs elsewhere, or its key is not in the ring.
    pub fn open(
        &self,
        context: SealContext<'_>,
        sealed: &Sealed,
    ) -> Result<SecretString, OpenError> {
        let mut parts = sealed.0.splitn(3, '.');
        let (Some("v1"), Some(key_id), Some(encoded)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(OpenError::Malformed);
        };
        self.has_key(sealed);
        let keys = self.keys();
        let key = keys
            .iter()
            .find(|key| key.id == key_id)
            .ok_or_else(|| OpenError::UnknownKey(key_id.escape_debug().take(64).collect()))?;
        let payload = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| OpenError::Malformed)?;
        let (salt, ciphertext) =
            payload.split_first_chunk::<SALT_LEN>().ok_or(OpenError::Malformed)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let plain = value_key(key, salt)
            .open_in_place(zero_nonce(), Aad::from(context.associated_data(key_id)), &mut buffer)
            .map_err(|_| OpenError::Refused)?;
        let text = str::from_utf8(plain).map_err(|_| OpenError::Malformed)?;
        Ok(SecretString::from(text))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys().iter().map(|key| &key.id)).finish()
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
mod tests;
