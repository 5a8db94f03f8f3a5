//! Atomic replacement of small files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Replaces a file atomically and waits until that is on the disk: a crash leaves the old or the
/// new one. The new file is its owner's alone until `dress` changes its permissions.
///
/// # Errors
///
/// When the disk fails. The old file stays, unless only the folder could not be synced: then a
/// power cut may bring it back.
pub(crate) fn replace(
    path: &Path,
    bytes: &[u8],
    dress: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    // A leftover of a crash may be readable for others, or a link.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let write = || {
        file.write_all(bytes)?;
        dress(&file)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().inspect_err(|_| {
        // The new file is useless without its place; the old file stands.
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_lies_beside_the_file_is_neither_followed_nor_kept() {
        let folder = tempfile::tempdir().unwrap();
        let [path, victim] = ["file", "victim"].map(|name| folder.path().join(name));
        fs::write(&victim, "untouched").unwrap();
        symlink(&victim, folder.path().join("file.new")).unwrap();
        replace(&path, b"new", |_| Ok(())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!(metadata.is_file());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        replace(&path, b"new", |_| Err(io::ErrorKind::Other.into())).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
