//! `check`: everything that a start needs, one line each, without starting or changing anything.

use std::path::Path;

use reqwest::Method;

use super::{CliError, environment, say};
use crate::{
    app::{connect_store, read_keyring, state_dir::open_to_all},
    clock::Clock,
    config::{Config, Database},
    failpoint::Failpoints,
    provider::{Body, Outbound, OutboundRequest, Profile},
    store::{SchemaStatus, Store, StoreError},
};

/// The largest difference allowed between the database's clock and ours, in milliseconds.
const MAX_CLOCK_DIFFERENCE_MS: i64 = 5_000;

/// One check: its subject, and the finding or the advice.
struct Line {
    what: String,
    found: Result<String, String>,
}

fn line(what: &str, found: Result<String, String>) -> Line {
    Line { what: what.to_owned(), found }
}

pub(crate) async fn check(file: Option<&Path>) -> Result<(), CliError> {
    let config = Config::load(file, environment())?;
    let mut failures = 0;
    let mut report = |lines: Vec<Line>| {
        lines.into_iter().try_for_each(|Line { what, found }| match found {
            Ok(about) => say(&format!("ok      {what}: {about}")),
            Err(advice) => {
                failures += 1;
                say(&format!("FAILED  {what}: {advice}"))
            }
        })
    };
    let about = match config.clients.len() {
        0 => "no clients yet; add [clients.NAME] to the configuration".to_owned(),
        1 => format!("1 client, public_url {}", config.public_url),
        clients => format!("{clients} clients, public_url {}", config.public_url),
    };
    report(vec![line("configuration", Ok(about)), line("state_dir", state_dir(&config))])?;
    report(database(&config).await)?;
    report(providers(&config).await)?;
    match failures {
        0 => Ok(()),
        1 => Err(CliError::unavailable("1 check failed")),
        failures => Err(CliError::unavailable(format!("{failures} checks failed"))),
    }
}

fn state_dir(config: &Config) -> Result<String, String> {
    let path = &config.state_dir;
    let shown = path.display();
    if !path.exists() {
        return Ok(format!("made at the first start: {shown}"));
    }
    if let Some(what) = open_to_all(path) {
        return Err(format!("{shown} {what}"));
    }
    // A file without a name, gone as soon as it is there.
    match tempfile::tempfile_in(path) {
        Ok(_) => Ok(format!("writable: {shown}")),
        Err(error) => Err(format!("{shown} cannot be written: {error}")),
    }
}

async fn database(config: &Config) -> Vec<Line> {
    if let Database::Embedded(path) = &config.database
        && !path.exists()
    {
        let about = format!("SQLite, made with its key at the first start in {}", path.display());
        return vec![line("database", Ok(about))];
    }
    let store = match connect_store(config, Clock::system()).await {
        Ok(store) => store,
        Err(error) => return vec![line("database", Err(error.to_string()))],
    };
    let lines = inspect(config, &store)
        .await
        .unwrap_or_else(|error| vec![line("database", Err(error.to_string()))]);
    store.close().await;
    lines
}

async fn inspect(config: &Config, store: &Store) -> Result<Vec<Line>, StoreError> {
    let schema = match store.schema_status().await? {
        SchemaStatus::Current => "reachable, schema up to date",
        SchemaStatus::Fresh => "reachable, empty; the first start makes the schema",
        SchemaStatus::Older { .. } => "reachable; the next start brings the schema up to date",
        other => {
            let advice = other.usable().err().map(|error| error.to_string()).unwrap_or_default();
            return Ok(vec![line("database", Err(advice))]);
        }
    };
    let path = config.key_file.display();
    let key = match read_keyring(config, store).await {
        Ok(Some(keyring)) => Ok(format!("key {} of {path} fits the database", keyring.active_id())),
        Ok(None) => Ok(format!("made at the first start in {path}")),
        Err(error) => Err(error.to_string().replacen("sealing key: ", "", 1)),
    };
    let mut lines = vec![line("database", Ok(schema.to_owned())), line("sealing key", key)];
    if store.schema_status().await? != SchemaStatus::Fresh {
        let theirs = store.database_clock().await?.as_millisecond();
        let difference = theirs - Clock::system().now().as_millisecond();
        let found = if difference.abs() > MAX_CLOCK_DIFFERENCE_MS {
            Err(format!("differs from the database's by {difference} ms; run NTP on both"))
        } else {
            Ok(format!("within {} ms of the database's", difference.abs()))
        };
        lines.push(line("clock", found));
    }
    Ok(lines)
}

async fn providers(config: &Config) -> Vec<Line> {
    let outbound = match Outbound::new(Clock::system(), Failpoints::default()) {
        Ok(outbound) => outbound,
        Err(error) => return vec![line("providers", Err(error.to_string()))],
    };
    let mut profiles: Vec<_> = config.clients.values().map(|client| &client.profile).collect();
    profiles.sort_by(|a, b| a.name.cmp(&b.name));
    profiles.dedup_by(|a, b| a.name == b.name);
    let mut lines = Vec::new();
    for profile in profiles {
        let Some(probe) = probe(profile) else { continue };
        let host = probe.url.host_str().unwrap_or_default().to_owned();
        // Any answer will do: what is asked is whether one comes.
        let found = match outbound.send(profile, probe, None).await {
            Ok(_) => Ok(format!("{host} answers")),
            Err(error) => Err(format!("{host}: {}", error.message)),
        };
        lines.push(line(&profile.title, found));
    }
    lines
}

/// A harmless request to a host that is the same for all accounts, if the provider has one.
fn probe(profile: &Profile) -> Option<OutboundRequest> {
    let authorize = profile.authorize.as_ref().map(|authorize| &authorize.url);
    let url = [Some(&profile.token.url), authorize]
        .into_iter()
        .flatten()
        .find(|url| url.host_names().next().is_none())?
        .sample();
    Some(OutboundRequest { method: Method::GET, url, headers: Vec::new(), body: Body::Empty })
}
