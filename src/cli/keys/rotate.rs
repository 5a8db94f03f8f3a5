//! `keys rotate`: seals every stored value with the newest key, while brokers serve.
//!
//! There is no state but the key file and the rows themselves, so a rotation that was broken off at
//! any moment is taken up by running it again.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::sleep;

use super::{CliError, open, say};
use crate::{
    app::{StartError, key_problem, read_keyring},
    config::{Config, Database},
    seal::{Keyring, Sealed, add_key, promote_key},
    store::{SEALED_COLUMNS, SealedColumn, SealedValue, Store, StoreError},
};

/// Values read at once, and values exchanged between two progress lines.
const PAGE: i64 = 1_000;

/// Values sealed before they are stored.
const CHUNK: usize = 100;

/// Steps that run at once: a serving broker needs most of the database's time.
const AT_ONCE: usize = 4;

/// Longer than a running broker takes to see that its key file has changed.
const TAKEN_UP: Duration = Duration::from_secs(3);

/// Rounds before it is said that some replica goes on sealing with another key.
const LOOKS: u32 = 5;

/// Attempts at a database that gives no answer.
const TRIES: u32 = 5;

pub(super) async fn rotate(config: &Config) -> Result<(), CliError> {
    let store = open(config).await?;
    let rotated = rotate_in(config, &store).await;
    store.close().await;
    rotated
}

async fn rotate_in(config: &Config, store: &Store) -> Result<(), CliError> {
    let path = &config.key_file;
    let Some(keyring) = read_keyring(config, store).await? else {
        let path = path.display();
        return Err(CliError::usage(format!("sealing key: {path} is missing")));
    };
    if keyring.ids().len() == 1 {
        let key = add_key(path).map_err(|error| key_problem(path, "changed", &error))?;
        say(&format!("added key {key} to {}", path.display()))?;
        if let Database::Server(_) = config.database {
            return say(
                "nothing is sealed with it yet: give the file to every replica first, wait a few \
                 seconds until each has taken it up, then run `token-broker keys rotate` again",
            );
        }
    }
    let promoted = promote_key(path).map_err(|error| key_problem(path, "changed", &error))?;
    let keyring = Keyring::read(path).map_err(|error| key_problem(path, "read", &error))?;
    let key = keyring.active_id();
    if promoted.is_some() {
        say(&format!("key {key} seals from now on"))?;
    }
    reseal(store, &keyring, promoted.is_some()).await?;
    say(&format!("every stored value is sealed with key {key}"))?;
    if let Database::Server(_) = config.database {
        say(&format!(
            "a replica whose own key file does not begin with key {key} goes on sealing with \
             another: give it this file, then run `token-broker keys rotate` once more"
        ))?;
    }
    say("leave the older keys in the file for 15 minutes; then see `token-broker keys status`")
}

/// Until a look finds nothing more; the first look after the file has changed is never the last, for
/// running brokers may not have seen it yet.
async fn reseal(store: &Store, keyring: &Keyring, changed: bool) -> Result<(), CliError> {
    for look in 0..LOOKS {
        let found = look_through(store, keyring).await?;
        if found.unopened > 0 {
            return Err(CliError::unavailable(format!(
                "values that do not open stay as they are ({}): delete or connect anew what they \
                 belong to, then run `token-broker keys rotate` again",
                found.unopened
            )));
        }
        if found.values == 0 && !(changed && look == 0) {
            return Ok(());
        }
        sleep(TAKEN_UP).await;
    }
    Err(CliError::unavailable(format!(
        "a running broker goes on sealing with another key: its key file does not begin with key {}; \
         give it this one and run `token-broker keys rotate` again",
        keyring.active_id()
    )))
}

/// The findings of a round over all values.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Values of another key.
    values: usize,
    /// Those of them that do not open.
    unopened: usize,
}

async fn look_through(store: &Store, keyring: &Keyring) -> Result<Found, CliError> {
    let mut found = Found::default();
    for column in SEALED_COLUMNS {
        let key = keyring.active_id();
        let mut behind = None;
        let mut done = 0;
        loop {
            let read = || store.sealed_otherwise(column, &key, behind.as_ref(), PAGE);
            let page = patiently(read).await?;
            let Some(last) = page.last().cloned() else { break };
            found.values += page.len();
            let (anew, unopened) = seal_anew(keyring, column, page)?;
            found.unopened += unopened;
            done += exchange(store, column, &anew).await?;
            say(&format!("{}: {done} values sealed anew with key {key}", column.table))?;
            behind = Some(last);
        }
    }
    Ok(found)
}

/// Seals the values of a page with the first key; tells of those that do not open.
fn seal_anew(
    keyring: &Keyring,
    column: &SealedColumn,
    page: Vec<SealedValue>,
) -> Result<(Vec<(SealedValue, Sealed)>, usize), CliError> {
    let mut anew = Vec::with_capacity(page.len());
    let mut unopened = 0;
    for value in page {
        match keyring.open(value.context(), &value.sealed) {
            Ok(secret) => {
                let sealed = keyring.seal(value.context(), &secret);
                anew.push((value, sealed));
            }
            Err(error) => {
                unopened += 1;
                say(&format!("{} of {} stays as it is: {error}", column.table, value.record))?;
            }
        }
    }
    Ok((anew, unopened))
}

async fn exchange(
    store: &Store,
    column: &SealedColumn,
    anew: &[(SealedValue, Sealed)],
) -> Result<u64, CliError> {
    stream::iter(anew.chunks(CHUNK))
        .map(|chunk| patiently(move || store.reseal(column, chunk)))
        .buffer_unordered(AT_ONCE)
        .try_fold(0, async |sum, exchanged| Ok(sum + exchanged))
        .await
}

/// Takes a step of the store that may be repeated, and waits for a database that is busy.
async fn patiently<T, F>(step: impl Fn() -> F) -> Result<T, CliError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut tries = 1;
    loop {
        match step().await {
            Err(StoreError::Unreachable(_)) if tries < TRIES => tries += 1,
            done => return done.map_err(|error| StartError::from(error).into()),
        }
        sleep(Duration::from_secs(1)).await;
    }
}
