//! `release`: ends the quarantine of a restored or copied database, straight in the database.

use std::fmt;

use jiff::Timestamp;

use super::{CliError, args::Release, open_as_it_is, say, table::table};
use crate::{
    app::{
        StartError, check_deployment, compare_deployment, open_store, state_dir::make_state_dir,
    },
    audit::{Actor, AuditEvent, EventKind},
    clock::Clock,
    config::Config,
    domain::{
        connection::{GrantType, State},
        record::Record,
        slug::Slug,
    },
    provider::{Rotation, client::Client},
    store::{self, Store},
};

pub(crate) async fn release(config: &Config, args: &Release) -> Result<(), CliError> {
    let clock = Clock::system();
    let store = if args.plan {
        open_as_it_is(config, clock.clone(), "there is nothing to release").await?
    } else {
        make_state_dir(config)?;
        open_store(config, clock.clone()).await?
    };
    let done = release_in(&store, config, args, clock.now()).await;
    store.close().await;
    done
}

async fn release_in(
    store: &Store,
    config: &Config,
    args: &Release,
    now: Timestamp,
) -> Result<(), CliError> {
    if args.adopt {
        return adopt(store, config).await;
    }
    if args.plan {
        compare_deployment(config, store).await?;
    } else {
        check_deployment(config, store).await?;
    }
    let records = store.records().await.map_err(StartError::from)?;
    let chosen = choose(records, args.connection.as_ref())?;
    if chosen.is_empty() {
        return say("no connection is quarantined: there is nothing to release");
    }
    list(config, &chosen, now)?;
    if args.plan {
        return Ok(());
    }
    let mut released = 0;
    for record in &chosen {
        let id = record.connection.id;
        if store.end_quarantine(id).await.map_err(StartError::from)? {
            released += 1;
            let event = AuditEvent::new(EventKind::ConnectionReleased, &Actor::command_line(), now)
                .about(id, &record.connection.name);
            store.insert_events(&[event]).await.map_err(StartError::from)?;
        }
    }
    say(&format!("released: {released}; a running broker knows within a few seconds"))
}

/// Makes the database that of our deployment; nothing is refreshed from it before a release.
async fn adopt(store: &Store, config: &Config) -> Result<(), CliError> {
    let Some(ours) = &config.deployment else {
        return Err(CliError::usage("set `deployment` to the name that this copy shall have"));
    };
    let found = store.identity().await.map_err(StartError::from)?;
    let quarantines = found.position.quarantines + 1;
    let stopped = store.quarantine(&found, quarantines, "database_adopted").await;
    let Some(stopped) = stopped.map_err(StartError::from)? else {
        return Err(CliError::usage("somebody quarantined it at this moment; try again"));
    };
    store.put_meta(store::DEPLOYMENT, ours.as_str()).await.map_err(StartError::from)?;
    say(&format!(
        "the database belongs to `{ours}` now; quarantined: {stopped}; see `token-broker release \
         --plan` before you release anything"
    ))
}

/// The quarantined connections, or the one of that name.
fn choose(records: Vec<Record>, name: Option<&Slug>) -> Result<Vec<Record>, CliError> {
    let is_quarantined = |record: &Record| record.connection.state == State::Quarantined;
    let Some(name) = name else {
        return Ok(records.into_iter().filter(is_quarantined).collect());
    };
    let named = records.into_iter().find(|record| record.connection.name == *name);
    let named = named.ok_or_else(|| CliError::usage(format!("there is no connection `{name}`")))?;
    if !is_quarantined(&named) {
        let state = named.connection.state;
        return Err(CliError::usage(format!(
            "connection `{name}` is {state}, not quarantined: there is nothing to release"
        )));
    }
    Ok(vec![named])
}

fn list(config: &Config, records: &[Record], now: Timestamp) -> Result<(), CliError> {
    let rows = records.iter().map(|record| {
        let client = config.clients.get(&record.connection.client);
        let provider = client.map(|client| client.profile.name.to_string());
        let rotation = client.map(|client| class(client.profile.tokens.rotation).to_owned());
        let stored = record.grant.as_ref().map(|grant| format!("{:.0}", grant.received_at));
        let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        [
            record.connection.name.to_string(),
            or_dash(provider),
            or_dash(rotation),
            record.generation().to_string(),
            or_dash(stored),
            next(record, client.map(AsRef::as_ref), now).to_string(),
        ]
    });
    table(["CONNECTION", "PROVIDER", "ROTATION", "GENERATION", "STORED", "RELEASE"], rows)
}

/// The word for a rotation class in a profile.
fn class(rotation: Rotation) -> &'static str {
    match rotation {
        Rotation::Grace => "grace",
        Rotation::None => "none",
        Rotation::SingleUse => "single_use",
        Rotation::SingleUseFamily => "single_use_family",
    }
}

/// The consequence of releasing a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// It waits as it did before.
    Wait,
    /// It refreshes as before: what it presents does not wear out.
    Resume,
    /// Its refresh token may have been used since the copy was made.
    PresentOnce,
    /// There is nothing that may be presented.
    Consent,
    /// It refreshes once its client is configured again.
    Stray,
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "waits for a consent or its confirmation",
            Self::Resume => "resumes",
            Self::PresentOnce => "presents its refresh token once: watch it",
            Self::Consent => "needs a new consent",
            Self::Stray => "waits for its client, which is not configured",
        })
    }
}

fn next(record: &Record, client: Option<&Client>, now: Timestamp) -> Next {
    let Some(client) = client else { return Next::Stray };
    let asks_for_itself = record.connection.grant_type == GrantType::ClientCredentials;
    let Some(grant) = &record.grant else {
        return if asks_for_itself { Next::Resume } else { Next::Wait };
    };
    let rotation = client.profile.tokens.rotation;
    let presentable = grant.refresh.is_some()
        && client.profile.grants.refresh_token.is_some()
        && rotation.may_present(record.open_attempts, grant.expires_at > now);
    match rotation {
        _ if asks_for_itself => Next::Resume,
        _ if !presentable => Next::Consent,
        Rotation::None => Next::Resume,
        Rotation::Grace | Rotation::SingleUse | Rotation::SingleUseFamily => Next::PresentOnce,
    }
}
