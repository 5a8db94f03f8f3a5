//! Commands that open the database or the key file themselves.

use std::path::Path;

use secrecy::ExposeSecret as _;

use super::{
    Failure,
    args::{KeyAction, Keys, OperatorAction, Operators},
    environment, say,
};
use crate::{
    app::{connect_store, open_store},
    caller::{self, Holder, Operator},
    clock::Clock,
    config::Config,
    seal::Keyring,
    store::{SchemaStatus, StoreError},
};

#[expect(clippy::disallowed_methods, reason = "a new key is shown once, to its maker")]
pub(crate) async fn operators(config: &Config, args: &Operators) -> Result<(), Failure> {
    let OperatorAction::Create { name } = &args.action;
    let clock = Clock::system();
    make_state_dir(config)?;
    let store = open_store(config, clock.clone()).await?;
    let now = clock.now();
    let (key, stored) = caller::new_key(Holder::Operator, name.clone(), now, None);
    let operator = Operator { name: name.clone(), created_at: now };
    store.create_operator(&operator, &stored).await.map_err(|error| match error {
        StoreError::NameTaken(name) => Failure::usage(format!("operator `{name}` exists already")),
        error => Failure::unavailable(format!("database: {error}")),
    })?;
    store.close().await;
    say(key.expose_secret())
}

pub(crate) async fn migrate(config: &Config) -> Result<(), Failure> {
    make_state_dir(config)?;
    let store = connect_store(config, Clock::system()).await?;
    let before = store.schema_status().await.map_err(crate::app::StartError::from)?;
    if let SchemaStatus::Newer { .. } | SchemaStatus::Current = before {
        store.close().await;
        return match before {
            SchemaStatus::Current => say("the schema is up to date"),
            _ => Err(Failure::usage(
                "the database's schema is newer than this program; use a newer token-broker",
            )),
        };
    }
    store.migrate().await.map_err(crate::app::StartError::from)?;
    store.close().await;
    say("the schema was brought up to date")
}

fn make_state_dir(config: &Config) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    if let crate::config::Database::Server(_) = config.database {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir).map_err(
        |error| {
            let path = config.state_dir.display();
            Failure::usage(format!("setting `state_dir`: {path} cannot be made: {error}"))
        },
    )
}

pub(crate) fn keys(config: Option<&Path>, args: &Keys) -> Result<(), Failure> {
    let KeyAction::Generate { file } = &args.action;
    let path = match file {
        Some(path) => path.clone(),
        None => Config::load(config, environment())?.key_file,
    };
    Keyring::generate()
        .write_new(&path)
        .map_err(|error| Failure::usage(format!("sealing key: {}: {error}", path.display())))?;
    say(&format!(
        "wrote {}; keep a copy of it apart from the database: without it the stored tokens are lost",
        path.display()
    ))
}
