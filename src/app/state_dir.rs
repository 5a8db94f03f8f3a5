//! This process's own files: the folder `state_dir` and, in the embedded case, the database. Both
//! are locked for as long as the process lives.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::error::StartError;
use crate::{
    config::{Config, Database},
    seal::secret,
};

/// A folder of this process alone, for as long as it lives.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
    _database: Option<File>,
    /// The name of this replica, the same after every restart.
    pub replica: String,
}

impl StateDir {
    /// Makes the folder if need be, and locks it, and with it the database if that is a file.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        make_state_dir(config)?;
        let problem = |what: String| state_dir_problem(config, &what);
        let lock = lock_file(&config.state_dir.join("lock")).map_err(|error| {
            StartError::Settings(problem(format!("cannot be written: {error}")))
        })?;
        match lock.try_lock() {
            Ok(()) => {
                let replica = replica(&lock).map_err(|error| {
                    StartError::Settings(problem(format!("cannot be used: {error}")))
                })?;
                let database = match &config.database {
                    Database::Embedded(path) => Some(lock_database(path)?),
                    Database::Server(_) => None,
                };
                Ok(Self { _lock: lock, _database: database, replica })
            }
            // As with a port in use: it may be free in a moment.
            Err(TryLockError::WouldBlock) => Err(StartError::Unavailable(problem(
                "is in use by another token-broker; give each its own".to_owned(),
            ))),
            Err(TryLockError::Error(error)) => {
                Err(StartError::Settings(problem(format!("cannot be locked: {error}"))))
            }
        }
    }
}

/// Locks an SQLite database, by a file beside it, against a second process that serves from it;
/// commands that only look or write are welcome.
fn lock_database(path: &Path) -> Result<File, StartError> {
    // However it is called: the same file has the same lock.
    let mut beside = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
    beside.push(".lock");
    let beside = Path::new(&beside);
    let problem = |what: String| {
        StartError::Unavailable(format!("setting `database.url`: {} {what}", path.display()))
    };
    let lock = lock_file(beside)
        .map_err(|error| problem(format!("has no lock: {}: {error}", beside.display())))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(problem(
            "is in use by another token-broker; SQLite serves one, PostgreSQL several".to_owned(),
        )),
        Err(TryLockError::Error(error)) => Err(problem(format!("cannot be locked: {error}"))),
    }
}

/// Opens a file to be locked, and makes it if need be.
fn lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// The name of this replica, which lies in the lock file for as long as the folder does: by it a
/// replica knows its own attempts again after a crash.
fn replica(mut lock: &File) -> io::Result<String> {
    let mut name = String::new();
    lock.read_to_string(&mut name)?;
    if name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(name);
    }
    let name = hex::encode(secret::random_bytes::<8>());
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(name.as_bytes())?;
    lock.sync_all()?;
    Ok(name)
}

/// Makes the folder `state_dir`, for its owner alone, if it does not exist.
///
/// # Errors
///
/// When it cannot be made, or everybody may write into it: what lies there is believed at the next
/// start.
pub fn make_state_dir(config: &Config) -> Result<(), StartError> {
    DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir).map_err(|error| {
        let what = format!("cannot be made: {error}; set it to a folder that this user may write");
        StartError::Settings(state_dir_problem(config, &what))
    })?;
    match open_to_all(&config.state_dir) {
        None => Ok(()),
        Some(what) => Err(StartError::Settings(state_dir_problem(config, &what))),
    }
}

/// The error for a folder into which everybody may write.
pub(crate) fn open_to_all(folder: &Path) -> Option<String> {
    let mode = fs::metadata(folder).ok()?.mode() & 0o777;
    let open = mode & 0o002 != 0;
    open.then(|| format!("may be written by everybody (mode {mode:03o}); chmod it to 700"))
}

fn state_dir_problem(config: &Config, what: &str) -> String {
    format!("setting `state_dir`: {} {what}", config.state_dir.display())
}
