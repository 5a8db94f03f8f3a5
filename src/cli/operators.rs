//! `operators`: the people who run the broker, straight in the database.

use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use super::{
    Failure,
    args::{OperatorAction, Operators},
    say,
    table::table,
};
use crate::{
    app::{StartError, open_store},
    audit::{By, Kind, Record},
    caller::{self, Holder, Operator},
    clock::Clock,
    config::Config,
    slug::Slug,
    state_dir::make_state_dir,
    store::{Store, StoreError},
};

pub(crate) async fn operators(config: &Config, args: &Operators) -> Result<(), Failure> {
    let clock = Clock::system();
    make_state_dir(config)?;
    let store = open_store(config, clock.clone()).await?;
    let done = match &args.action {
        OperatorAction::Create { name } => create(&store, name, clock.now()).await,
        OperatorAction::Delete { name } => delete(&store, name, clock.now()).await,
        OperatorAction::List => list(&store).await,
    };
    store.close().await;
    done
}

#[expect(clippy::disallowed_methods, reason = "a new key is shown once, to its maker")]
async fn create(store: &Store, name: &Slug, now: Timestamp) -> Result<(), Failure> {
    let (key, stored) = caller::new_key(Holder::Operator, name.clone(), now, None);
    let operator = Operator { name: name.clone(), created_at: now };
    store.create_operator(&operator, &stored).await.map_err(|error| match error {
        StoreError::NameTaken(name) => Failure::usage(format!("operator `{name}` exists already")),
        error => StartError::from(error).into(),
    })?;
    let detail = format!("{} {}, key {}", stored.holder, stored.owner, stored.id);
    note(store, Kind::OperatorMade, &detail, now).await?;
    tracing::info!("a running broker knows this key within a few seconds");
    say(key.expose_secret())
}

async fn delete(store: &Store, name: &Slug, now: Timestamp) -> Result<(), Failure> {
    if !store.delete_operator(name).await.map_err(StartError::from)? {
        return Err(Failure::usage(format!("there is no operator `{name}`")));
    }
    note(store, Kind::OperatorDeleted, &format!("operator {name}"), now).await?;
    say(&format!("deleted: {name}; a running broker refuses the key within a few seconds"))
}

async fn list(store: &Store) -> Result<(), Failure> {
    let operators = store.operators().await.map_err(StartError::from)?;
    let rows = operators.iter().map(|who| [who.name.to_string(), format!("{:.0}", who.created_at)]);
    table(["OPERATOR", "MADE"], rows)
}

async fn note(store: &Store, kind: Kind, detail: &str, now: Timestamp) -> Result<(), Failure> {
    let record = Record::new(kind, &By::command_line(), now).with_detail(detail);
    store.insert_events(&[record]).await.map_err(StartError::from)?;
    Ok(())
}
