//! The watermark: the database as this replica last saw it, kept in a file outside that database.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    domain::database_identity::{Identity, Watermark},
    os::{atomic_file::replace, blocking::blocking},
};

/// The file `watermark`: what this replica last saw of its database. Clones share it.
#[derive(Clone, Debug)]
struct WatermarkFile {
    folder: PathBuf,
}

impl WatermarkFile {
    /// The file in this folder, whether it is there yet or not.
    fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The watermark last written; none in a new folder.
    fn read(&self) -> io::Result<Option<Watermark>> {
        match fs::read(self.path()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces what was written, and waits until that is on the disk. A crash leaves the one or the
    /// other.
    fn write(&self, watermark: &Watermark) -> io::Result<()> {
        replace(&self.path(), &serde_json::to_vec(watermark)?, |_| Ok(()))
    }

    fn path(&self) -> PathBuf {
        self.folder.join("watermark")
    }
}

/// The database as this replica last saw it, and the file that keeps that.
#[derive(Debug)]
pub struct LastSeen {
    file: WatermarkFile,
    pub(crate) watermark: Option<Watermark>,
    /// True if the file says the same.
    kept: bool,
}

impl LastSeen {
    /// Reads the file `watermark` of this folder.
    pub fn read(state_dir: &Path) -> io::Result<Self> {
        let file = WatermarkFile::of(state_dir);
        Ok(Self { watermark: file.read()?, file, kept: true })
    }

    /// Takes note of a database that is accepted. A file that cannot be written is tried again at the
    /// next look.
    pub(crate) async fn raise(&mut self, found: &Identity) {
        let watermark = Watermark::of(found, self.watermark.as_ref());
        if self.kept && self.watermark.as_ref() == Some(&watermark) {
            return;
        }
        self.watermark = Some(watermark.clone());
        let file = self.file.clone();
        let kept = blocking(move || file.write(&watermark)).await;
        self.kept = kept.is_ok();
        if let Err(error) = kept {
            tracing::error!(
                %error,
                "the watermark cannot be written: a restore before the next start may go unnoticed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::domain::database_identity::Epoch;

    #[test]
    fn the_watermark_is_the_last_one_written_and_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = WatermarkFile::of(folder.path());
        assert_eq!(file.read().unwrap(), None);
        for seq in [1, 2] {
            let watermark = Watermark {
                deployment: "d".to_owned(),
                system: None,
                timeline: Some("00000001".to_owned()),
                position: Epoch { quarantines: 0, seq },
            };
            file.write(&watermark).unwrap();
            assert_eq!(file.read().unwrap(), Some(watermark));
        }
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(file.path(), "{").unwrap();
        assert!(file.read().is_err());
    }
}
