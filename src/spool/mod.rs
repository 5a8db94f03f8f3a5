//! The spool: write-ahead files of received grants, on this machine's disk before they are in the
//! database.
//!
//! A single-use refresh token exists nowhere but in the provider's answer. So its file is reserved
//! before the request is sent, the sealed grant is written and synced before the commit, and the
//! next start replays what a crash left here. After the commit the file stays for
//! [`Spool::REMEMBERED`], because a promoted standby may lack the last commits. The tokens are sealed
//! for their place in the database and open nowhere else.
//!
//! May use: `domain`, `seal` and `os`. Used by `broker`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{connection::ConnectionId, grant::SealedGrant};

/// The size of a reserved file, in bytes: two sealed tokens of the largest size, and the rest of
/// the entry.
const ROOM: usize = 64 * 1024;

/// The folder beside the spool for grants that do not open.
const UNOPENED: &str = "unopened";

/// The folder of the spooled grants.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: PathBuf,
    /// The folder of the committed grants.
    stored: PathBuf,
}

/// A grant in the spool, written as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// The connection.
    pub connection: ConnectionId,
    /// The account that was expected, if it was known.
    pub account: Option<String>,
    /// The grant, sealed for its generation.
    #[serde(flatten)]
    pub grant: SealedGrant,
    /// The time of the next refresh.
    pub refresh_at: Option<Timestamp>,
}

impl Spool {
    /// The time for which a grant is remembered after it was stored.
    pub const REMEMBERED: Duration = Duration::from_mins(15);

    /// Opens the spool of a state directory, and creates it if need be.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let spool = Self { folder: state_dir.join("spool"), stored: state_dir.join("stored") };
        for folder in [&spool.folder, &spool.stored] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        Ok(spool)
    }

    /// Reserves disk space for the grant of an attempt: writing it later needs no more.
    ///
    /// # Errors
    ///
    /// When the disk is full or cannot be written: nothing may be sent then.
    pub fn reserve(&self, attempt: &str) -> io::Result<Reservation> {
        let path = self.folder.join(attempt);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let slot = Reservation { path: Some(path), stored: self.stored.clone(), file };
        // Overwriting zeros that are on the disk cannot fail for want of space.
        slot.write(&vec![0; ROOM])?;
        File::open(&self.folder)?.sync_all()?;
        Ok(slot)
    }

    /// The grants in the spool, each with its handle. A file that was reserved and never used is
    /// removed; one that holds no whole entry is put aside.
    pub fn entries(&self) -> io::Result<Vec<(Entry, SpooledGrant)>> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            let bytes = fs::read(&path)?;
            let bytes = text(&bytes);
            let kept = SpooledGrant { path, stored: self.stored.clone(), length: bytes.len() };
            match bytes {
                [] => kept.remove(),
                bytes => match read(bytes) {
                    Some(entry) => entries.push((entry, kept)),
                    // Torn by a crash, most likely: nothing relied on it, but it is kept.
                    None => kept.set_aside(),
                },
            }
        }
        Ok(entries)
    }

    /// The grants committed within [`Spool::REMEMBERED`], the oldest generations first.
    pub fn remembered(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.stored)? {
            // A file that is removed at this moment is too old.
            let bytes = fs::read(file?.path()).unwrap_or_default();
            entries.extend(read(&bytes));
        }
        entries.sort_by_key(|entry| entry.grant.generation());
        Ok(entries)
    }

    /// Removes the grants committed longer ago than [`Spool::REMEMBERED`].
    pub fn sweep(&self) -> io::Result<()> {
        for file in fs::read_dir(&self.stored)? {
            let file = file?;
            let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age > Self::REMEMBERED {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }

    /// Removes every grant of a connection, also committed ones and those set aside.
    pub fn erase(&self, connection: ConnectionId) -> io::Result<()> {
        erase(&self.folder, connection)?;
        erase(&self.stored, connection)?;
        self.folder.parent().map_or(Ok(()), |state| erase(&state.join(UNOPENED), connection))
    }
}

/// Removes the files of a folder that hold a grant of this connection.
fn erase(folder: &Path, connection: ConnectionId) -> io::Result<()> {
    let files = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let path = file?.path();
        // A file that is gone by now was not ours to remove.
        let Ok(bytes) = fs::read(&path) else { continue };
        if read(&bytes).is_some_and(|entry| entry.connection == connection) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Disk space for one grant. Dropping it unused removes the file.
#[derive(Debug)]
pub struct Reservation {
    /// None once the file holds a grant.
    path: Option<PathBuf>,
    stored: PathBuf,
    file: File,
}

impl Reservation {
    /// Writes the grant and waits until it is on the disk.
    ///
    /// # Errors
    ///
    /// When the disk fails; the space is released then.
    pub fn keep(mut self, entry: &Entry) -> io::Result<SpooledGrant> {
        let bytes = serde_json::to_vec(entry)?;
        self.write(&bytes)?;
        // A file that was removed meanwhile takes every write, but is never found again.
        if self.file.metadata()?.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let path = self.path.take().unwrap_or_default();
        Ok(SpooledGrant { path, stored: self.stored.clone(), length: bytes.len() })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(bytes)?;
        file.sync_all()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // A file that cannot be removed holds no token, and goes at the next start.
            let _ = fs::remove_file(path);
        }
    }
}

/// A grant that is on the disk.
#[derive(Debug)]
pub struct SpooledGrant {
    path: PathBuf,
    stored: PathBuf,
    /// The end of the grant within its reserved file, in bytes.
    length: usize,
}

impl SpooledGrant {
    /// Sets aside a grant that does not open, in the folder `unopened` beside the spool, for an
    /// operator: a received grant is never thrown away.
    pub fn set_aside(self) {
        let aside = || {
            let (folder, name) =
                (self.path.parent()?.parent()?.join(UNOPENED), self.path.file_name()?);
            Some((DirBuilder::new().recursive(true).mode(0o700).create(&folder), folder.join(name)))
        };
        let moved = aside().map(|(made, to)| made.and_then(|()| fs::rename(&self.path, to)));
        if !matches!(moved, Some(Ok(()))) {
            tracing::error!("cannot set a received grant aside: it stays in the spool");
        }
    }

    /// Marks the grant as committed: it is remembered for a while.
    pub fn mark_committed(self) {
        let Some(name) = self.path.file_name() else { return };
        let settled = OpenOptions::new().write(true).open(&self.path).and_then(|file| {
            // The rest of the reserved space is released, and the file's age counts from now.
            file.set_len(self.length as u64)?;
            fs::rename(&self.path, self.stored.join(name))
        });
        if let Err(error) = settled {
            tracing::warn!(%error, "cannot settle a file of the spool: the next start reads it again");
        }
    }

    /// Removes the grant, which is of no use any more.
    pub fn remove(self) {
        // The file may be gone with its connection.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot settle a file of the spool: the next start reads it again");
        }
    }
}

/// The bytes before the first zero: what was written into a reserved file.
fn text(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Reads the entry of a reserved file.
fn read(bytes: &[u8]) -> Option<Entry> {
    serde_json::from_slice(text(bytes)).ok()
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
