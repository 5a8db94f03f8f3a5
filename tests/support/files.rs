//! The files of a folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file under a folder with its contents, sorted by path. Files that go away meanwhile are
/// left out.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.extend(fs::read(&path).map(|bytes| (path, bytes)));
        }
    }
    all.sort();
    all
}
