//! The sealing keys at start: a key file that does not fit the database stops the start.

use std::{collections::BTreeMap, io, path::Path};

use secrecy::SecretString;

use super::{error::StartError, migrate};
use crate::{
    config::{Config, Database},
    seal::{KeyFileError, Keyring, SealContext, Sealed, SealedField},
    store::{SchemaStatus, Store},
};

/// The place of the sealed sample that shows a foreign key before anything is changed.
const SEALING_CHECK: SealContext<'static> =
    SealContext { record: "database", field: SealedField::SealingCheck, generation: 0 };

/// Reads the sealing keys and checks that they fit the database. None if a new SQLite database has
/// yet to make its own. Changes nothing.
///
/// # Errors
///
/// When the key file is missing, unreadable, of another database, or lacks a key that a stored value
/// needs.
pub async fn read_keyring(config: &Config, store: &Store) -> Result<Option<Keyring>, StartError> {
    let path = &config.key_file;
    let schema = store.schema_status().await?.usable()?;
    let check = match schema {
        SchemaStatus::Fresh => None,
        _ => store.meta(SEALING_CHECK.field.as_str()).await?,
    };
    let keyring = match Keyring::read(path) {
        Ok(keyring) => keyring,
        Err(KeyFileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            let advice = match (&check, &config.database) {
                (None, Database::Embedded(_)) => return Ok(None),
                (None, Database::Server(_)) => "make it with `token-broker keys generate`",
                (Some(_), _) => {
                    "this database is sealed already: put the key file back; a new one from \
                     `token-broker keys generate` would not open it"
                }
            };
            let path = path.display();
            return Err(StartError::Settings(format!("sealing key: {path} is missing; {advice}")));
        }
        Err(error) => return Err(key_problem(path, "read", &error)),
    };
    if let Some(check) = check {
        keyring.open(SEALING_CHECK, &Sealed::from_stored(check)).map_err(|error| {
            StartError::Settings(format!(
                "sealing key: {} does not fit this database: {error}; nothing was changed",
                path.display()
            ))
        })?;
    }
    if schema == SchemaStatus::Current {
        check_needed_keys(path, &keyring, store).await?;
    }
    Ok(Some(keyring))
}

/// True if a key was removed too early.
async fn check_needed_keys(
    path: &Path,
    keyring: &Keyring,
    store: &Store,
) -> Result<(), StartError> {
    let held = keyring.ids();
    let mut missing = BTreeMap::new();
    for count in store.count_sealed().await? {
        if !count.key.is_empty() && !held.contains(&count.key) {
            *missing.entry(count.key).or_insert(0) += count.values;
        }
    }
    let Some((key, values)) = missing.into_iter().next() else { return Ok(()) };
    let path = path.display();
    let key: String = key.chars().take(64).collect();
    Err(StartError::Settings(format!(
        "sealing key: {path} lacks key `{key}`, with which stored values are sealed ({values}): put \
         it back; see `token-broker keys status`"
    )))
}

/// As [`read_keyring`]; then migrates the schema and completes a new database: the key file of an
/// embedded one, and the sealed sample that shows a foreign key.
pub(super) async fn open_keyring(config: &Config, store: &Store) -> Result<Keyring, StartError> {
    let path = &config.key_file;
    let read = read_keyring(config, store).await?;
    let migrated = migrate(store).await?;
    let keyring = if let Some(keyring) = read {
        if migrated {
            check_needed_keys(path, &keyring, store).await?;
        }
        keyring
    } else {
        let keyring = Keyring::generate();
        keyring.write_new(path).map_err(|error| key_problem(path, "written", &error))?;
        let path = path.display();
        tracing::info!("made the sealing key {path}; keep a copy of it apart from the database");
        keyring
    };
    let ours = keyring.seal(SEALING_CHECK, &SecretString::from("sealed with the right key"));
    let stands = store.put_meta_if_absent(SEALING_CHECK.field.as_str(), ours.as_str()).await?;
    if stands != ours.as_str() {
        // Ours may be late, or one of many: the key must open the sample that stands.
        keyring.open(SEALING_CHECK, &Sealed::from_stored(stands)).map_err(|error| {
            StartError::Settings(format!("sealing key: does not fit this database: {error}"))
        })?;
    }
    Ok(keyring)
}

/// The error of reading or writing (`done`) a key file, as one line.
pub fn key_problem(path: &Path, done: &str, error: &KeyFileError) -> StartError {
    let path = path.display();
    StartError::Settings(match error {
        KeyFileError::Io(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            format!("sealing key: {path} exists already and stays as it is; name another file")
        }
        KeyFileError::Io(error) => {
            format!("sealing key: {path} cannot be {done}: {error}")
        }
        error => format!("sealing key: {path}: {error}"),
    })
}
