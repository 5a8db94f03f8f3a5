//! `migrate`: the schema, ahead of a start.

use super::{CliError, say};
use crate::{
    app::{StartError, connect_store, state_dir::make_state_dir},
    clock::Clock,
    config::Config,
    store::SchemaStatus,
};

pub(crate) async fn migrate(config: &Config) -> Result<(), CliError> {
    make_state_dir(config)?;
    let store = connect_store(config, Clock::system()).await?;
    let current = store.schema_status().await.map_err(StartError::from)? == SchemaStatus::Current;
    if !current {
        store.migrate().await.map_err(StartError::from)?;
    }
    store.close().await;
    say(if current { "the schema is up to date" } else { "the schema was brought up to date" })
}
