//! `keys`: the file of sealing keys, and what is sealed with them.

mod rotate;
mod status;

use std::path::{Path, PathBuf};

use super::{
    CliError,
    args::{KeyAction, Keys},
    environment, open_as_it_is, say,
};
use crate::{
    app::{key_problem, state_dir::make_state_dir},
    clock::Clock,
    config::Config,
    seal::{Keyring, add_key},
    store::Store,
};

pub(crate) async fn keys(config: Option<&Path>, args: &Keys) -> Result<(), CliError> {
    match &args.action {
        KeyAction::Generate { file, add: true } => add(&key_file(config, file.as_deref())?),
        KeyAction::Generate { file, add: false } => generate(config, file.as_deref()),
        KeyAction::Rotate => rotate::rotate(&Config::load(config, environment())?).await,
        KeyAction::Status => status::status(&Config::load(config, environment())?).await,
    }
}

fn key_file(config: Option<&Path>, file: Option<&Path>) -> Result<PathBuf, CliError> {
    match file {
        Some(path) => Ok(path.to_owned()),
        None => Ok(Config::load(config, environment())?.key_file),
    }
}

fn generate(config: Option<&Path>, file: Option<&Path>) -> Result<(), CliError> {
    let path = if let Some(path) = file {
        path.to_owned()
    } else {
        let config = Config::load(config, environment())?;
        // On a fresh machine the key comes before the first start.
        if config.key_file.starts_with(&config.state_dir) {
            make_state_dir(&config)?;
        }
        config.key_file
    };
    Keyring::generate().write_new(&path).map_err(|error| key_problem(&path, "written", &error))?;
    say(&format!(
        "wrote {}; keep a copy of it apart from the database: without it the stored tokens are lost",
        path.display()
    ))
}

fn add(path: &Path) -> Result<(), CliError> {
    let key = add_key(path).map_err(|error| key_problem(path, "changed", &error))?;
    let path = path.display();
    say(&format!(
        "added key {key} to {path}: it opens, and seals after `token-broker keys rotate`; keep a new \
         copy of the file apart from the database"
    ))?;
    say(
        "a running broker takes it up within a few seconds; where replicas have files of their own, \
         give this one to each of them first",
    )
}

async fn open(config: &Config) -> Result<Store, CliError> {
    open_as_it_is(config, Clock::system(), "nothing is sealed yet").await
}
