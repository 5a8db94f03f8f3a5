//! The key file: checked line by line, and replaced as a whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::Path,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretBox, zeroize::Zeroizing};

use super::{KEY_LEN, Key, Keys};
use crate::os::atomic_file::replace;

/// The word at the end of a line for a key that waits to be put first.
const WAITS: &str = "new";

/// Errors of reading or writing a key file.
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
    /// The file is accessible beyond its owner and a group that only reads.
    #[error("it may be read by everybody or written by others (mode {mode:03o}); chmod it to 600")]
    Exposed {
        /// The permission bits of the file.
        mode: u32,
    },
    /// There is no key in the file.
    #[error("the file holds no key")]
    Empty,
    /// The file has no key in common with the ring of a running broker.
    #[error("it holds none of the keys in use")]
    Foreign,
    /// The file has other bytes for a key of the ring.
    #[error("key `{id}` has other bytes than before")]
    Replaced {
        /// The key's id.
        id: String,
    },
}

/// The identity of a file as it was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self { inode: file.ino(), length: file.len(), modified: (file.mtime(), file.mtime_nsec()) }
    }
}

pub(super) fn read(path: &Path) -> Result<(Keys, Stamp), KeyFileError> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let stamp = Stamp::of(&metadata);
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text)?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(KeyFileError::Exposed { mode });
    }
    Ok((parse(&text)?, stamp))
}

/// Reads the file; none if it still has this stamp.
pub(super) fn read_if_changed(
    path: &Path,
    stamp: Option<&Stamp>,
) -> Result<Option<(Keys, Stamp)>, KeyFileError> {
    if stamp == Some(&Stamp::of(&fs::metadata(path)?)) {
        return Ok(None);
    }
    read(path).map(Some)
}

fn parse(text: &str) -> Result<Keys, KeyFileError> {
    let mut keys = Keys::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        if !is_key(line) {
            continue;
        }
        let key = key(line).ok_or(KeyFileError::Malformed { line: line_number })?;
        if keys.iter().any(|known| known.id == key.id) {
            return Err(KeyFileError::Repeated { line: line_number });
        }
        keys.push(Arc::new(key));
    }
    if keys.is_empty() { Err(KeyFileError::Empty) } else { Ok(keys) }
}

/// True if a line is meant to be a key.
fn is_key(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

fn key(line: &str) -> Option<Key> {
    let mut words = line.split_whitespace();
    let (id, encoded) = (words.next()?, words.next()?);
    let waits = match (words.next(), words.next()) {
        (None, _) => false,
        (Some(WAITS), None) => true,
        _ => return None,
    };
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let decoded = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).ok()?);
    let bytes: [u8; KEY_LEN] = decoded.as_slice().try_into().ok()?;
    Some(Key { id: id.to_owned(), bytes: SecretBox::new(Box::new(bytes)), waits })
}

#[expect(clippy::disallowed_methods, reason = "the key file is where the keys live")]
fn line(key: &Key) -> Zeroizing<String> {
    let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(key.bytes.expose_secret()));
    let waits = if key.waits { " new" } else { "" };
    Zeroizing::new(format!("{} {}{waits}", key.id, *encoded))
}

pub(super) fn write_new(path: &Path, keys: &Keys) -> Result<(), KeyFileError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut text = Zeroizing::new(String::from(
        "# Sealing keys of token-broker. The first seals, all open. Keep a copy apart from the\n\
         # database: without this file the stored tokens are lost, with both they are open.\n",
    ));
    for key in keys {
        text.push_str(&line(key));
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

/// Appends a new key to a key file. It opens and does not seal until [`promote_key`]. Returns its
/// id.
///
/// # Errors
///
/// When the file cannot be read or written, or is no key file: it stays as it was then.
pub fn add_key(path: &Path) -> Result<String, KeyFileError> {
    let mut key = Key::generate();
    key.waits = true;
    let added = line(&key);
    change(path, |text| Some(format!("{}\n{}\n", text.trim_end(), *added)))?;
    Ok(key.id)
}

/// Puts the newest waiting key first, so that it seals from now on. Returns its id; none, with
/// nothing changed, if no key waits.
pub fn promote_key(path: &Path) -> Result<Option<String>, KeyFileError> {
    let mut promoted = None;
    change(path, |text| {
        let newest =
            text.lines().filter(|line| is_key(line)).filter_map(key).rfind(|key| key.waits)?;
        let mut changed = String::with_capacity(text.len());
        let mut first = Some(Key { waits: false, ..newest });
        promoted = first.as_ref().map(|key| key.id.clone());
        for whole in text.lines() {
            let known = if is_key(whole) { key(whole) } else { None };
            if known.is_some()
                && let Some(first) = first.take()
            {
                changed.push_str(&line(&first));
                changed.push('\n');
            }
            match known {
                Some(known) if Some(&known.id) == promoted.as_ref() => continue,
                // An older waiting key waits no longer: it only opens.
                Some(known) if known.waits => {
                    changed.push_str(&line(&Key { waits: false, ..known }));
                }
                _ => changed.push_str(whole),
            }
            changed.push('\n');
        }
        Some(changed)
    })?;
    Ok(promoted)
}

/// Replaces an existing key file atomically. Only the owner of the old file, and its group if that
/// could, may read the new one.
fn change(path: &Path, edit: impl FnOnce(&str) -> Option<String>) -> Result<(), KeyFileError> {
    // The target of a link is replaced, not the link.
    let path = path.canonicalize()?;
    let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
    // Any other writer of the file waits until we have finished.
    folder.lock()?;
    let text = Zeroizing::new(fs::read_to_string(&path)?);
    parse(&text)?;
    let Some(changed) = edit(&text).map(Zeroizing::new) else { return Ok(()) };
    parse(&changed)?;
    let old = fs::metadata(&path)?;
    replace(&path, changed.as_bytes(), |new| {
        let made = new.metadata()?;
        if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
            fchown(new, Some(old.uid()), Some(old.gid()))?;
        }
        new.set_permissions(fs::Permissions::from_mode(old.mode() & 0o640 | 0o600))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::seal::{Keyring, SealContext, SealedField};

    const CONTEXT: SealContext<'static> =
        SealContext { record: "c1", field: SealedField::Access, generation: 7 };

    #[test]
    fn a_key_file_reads_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let ring = Keyring::generate();
        ring.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Keyring::read(&path).unwrap();
        let sealed = ring.seal(CONTEXT, &SecretString::from("x"));
        assert!(again.open(CONTEXT, &sealed).is_ok());
        assert!(Keyring::generate().write_new(&path).is_err());
        assert_eq!(Keyring::read(&path).unwrap().active_id(), ring.active_id());
    }

    #[test]
    fn a_bad_key_file_is_refused_by_line_and_without_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        Keyring::generate().write_new(&path).unwrap();
        let good = format!("k1 {}", URL_SAFE_NO_PAD.encode([7; 32]));
        for (text, expected) in [
            (String::new(), "the file holds no key"),
            ("# only words\n".to_owned(), "the file holds no key"),
            (format!("{good}\nsecret"), "line 2 is not a key"),
            (format!("{good}\nk2 c2VjcmV0"), "line 2 is not a key"),
            (format!("k-1 {}", &good[3..]), "line 1 is not a key"),
            (format!("{good}\n{good}"), "line 2 repeats a key id"),
            (format!("{good} old\n"), "line 1 is not a key"),
            (format!("{good} new secret\n"), "line 1 is not a key"),
        ] {
            fs::write(&path, text).unwrap();
            let message = Keyring::read(&path).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
            assert!(!message.contains("secret") && !message.contains("c2VjcmV0"), "{message}");
        }
    }
    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_added_at_the_end_and_promoted_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let words = format!("# ours\n\n k1  {}\n# the end", URL_SAFE_NO_PAD.encode([7; 32]));
        fs::write(&path, &words).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        // A crash's leftover does no harm.
        fs::write(folder.path().join("keys.new"), "torn").unwrap();
        assert_eq!(promote_key(&path).unwrap(), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), words);

        let (passed_over, newest) = (add_key(&path).unwrap(), add_key(&path).unwrap());
        assert_eq!(mode(&path), 0o640);
        assert!(fs::read_to_string(&path).unwrap().starts_with(&words));
        let ring = Keyring::read(&path).unwrap();
        assert_eq!(ring.ids(), ["k1", &passed_over, &newest]);
        assert_eq!(ring.waiting_ids(), [passed_over.as_str(), &newest]);

        for promoted in [Some(newest.as_str()), None] {
            assert_eq!(promote_key(&path).unwrap().as_deref(), promoted);
            let ring = Keyring::read(&path).unwrap();
            assert_eq!(ring.ids(), [newest.as_str(), "k1", &passed_over]);
            assert!(ring.waiting_ids().is_empty());
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("# ours\n\n{newest} ")) && text.contains("# the end"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_no_key_file_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        assert!(add_key(&path).is_err());
        fs::write(&path, "something else").unwrap();
        assert!(add_key(&path).is_err() && promote_key(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "something else");
    }

    #[test]
    fn a_link_stays_and_its_target_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("keys"), folder.path().join("link"));
        Keyring::generate().write_new(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        add_key(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Keyring::read(&path).unwrap().ids().len(), 2);
        assert_eq!(mode(&path), 0o600);
    }
}
