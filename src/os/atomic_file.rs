//! Atomic replacement of small files.

use std::{
    fs::{self, File},
    io::{self, Write as _},
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
    // Removes what a crash left: the name is fixed, so that no copies of a secret gather. A link that
    // somebody planted there goes too.
    match fs::remove_file(path.with_added_extension("new")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(path.file_name().unwrap_or_default())
        .suffix(".new")
        .rand_bytes(0)
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    dress(file.as_file())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
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
