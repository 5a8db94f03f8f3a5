//! `operators`: the people who run the broker, straight in the database.

use secrecy::ExposeSecret as _;

use super::{
    Failure,
    args::{OperatorAction, Operators},
    say,
};
use crate::{
    app::{StartError, open_store},
    audit::{By, Kind, Record},
    caller::{self, Holder, Operator},
    clock::Clock,
    config::Config,
    state_dir::make_state_dir,
    store::StoreError,
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
        error => StartError::from(error).into(),
    })?;
    let detail = format!("{} {}, key {}", stored.holder, stored.owner, stored.id);
    let record = Record::new(Kind::OperatorMade, &By::command_line(), now).with_detail(&detail);
    store.insert_events(&[record]).await.map_err(StartError::from)?;
    store.close().await;
    tracing::info!("a running broker knows this key within a few seconds");
    say(key.expose_secret())
}
