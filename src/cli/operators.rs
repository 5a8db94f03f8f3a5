//! `operators`: the people who run the broker, straight in the database.

use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use super::{
    CliError,
    args::{OperatorAction, Operators},
    open_as_it_is, say,
    table::table,
};
use crate::{
    app::{StartError, open_store, state_dir::make_state_dir},
    audit::{Actor, AuditEvent, EventKind},
    clock::Clock,
    config::Config,
    domain::{
        caller::{self, Holder, Operator},
        slug::Slug,
    },
    store::{Store, StoreError},
};

pub(crate) async fn operators(config: &Config, args: &Operators) -> Result<(), CliError> {
    let clock = Clock::system();
    let store = match &args.action {
        OperatorAction::List => {
            open_as_it_is(config, clock.clone(), "there is no operator yet").await?
        }
        OperatorAction::Create { .. } | OperatorAction::Delete { .. } => {
            make_state_dir(config)?;
            open_store(config, clock.clone()).await?
        }
    };
    let done = match &args.action {
        OperatorAction::Create { name } => create(&store, name, clock.now()).await,
        OperatorAction::Delete { name } => delete(&store, name, clock.now()).await,
        OperatorAction::List => list(&store).await,
    };
    store.close().await;
    done
}

#[expect(clippy::disallowed_methods, reason = "a new key is shown once, to its maker")]
async fn create(store: &Store, name: &Slug, now: Timestamp) -> Result<(), CliError> {
    let (key, stored) = caller::new_key(Holder::Operator, name.clone(), now, None);
    let operator = Operator { name: name.clone(), created_at: now };
    store.create_operator(&operator, &stored).await.map_err(|error| match error {
        StoreError::NameTaken(name) => CliError::usage(format!("operator `{name}` exists already")),
        error => StartError::from(error).into(),
    })?;
    let detail = format!("{} {}, key {}", stored.holder, stored.owner, stored.id);
    // First of all: whatever fails from here on, it is never shown again.
    let said = say(key.expose_secret());
    tracing::info!("a running broker knows this key within a few seconds");
    note(store, EventKind::OperatorMade, &detail, now).await.and(said)
}

async fn delete(store: &Store, name: &Slug, now: Timestamp) -> Result<(), CliError> {
    if !store.delete_operator(name).await.map_err(StartError::from)? {
        return Err(CliError::usage(format!("there is no operator `{name}`")));
    }
    let said =
        say(&format!("deleted: {name}; a running broker refuses the key within a few seconds"));
    note(store, EventKind::OperatorDeleted, &format!("operator {name}"), now).await.and(said)
}

async fn list(store: &Store) -> Result<(), CliError> {
    let operators = store.operators().await.map_err(StartError::from)?;
    let rows = operators.iter().map(|who| [who.name.to_string(), format!("{:.0}", who.created_at)]);
    table(["OPERATOR", "MADE"], rows)
}

async fn note(
    store: &Store,
    kind: EventKind,
    detail: &str,
    now: Timestamp,
) -> Result<(), CliError> {
    let record = AuditEvent::new(kind, &Actor::command_line(), now).with_detail(detail);
    store.insert_events(&[record]).await.map_err(StartError::from)?;
    Ok(())
}
