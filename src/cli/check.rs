//! `check`: everything that a start needs, one line each, without starting or changing anything.

use std::path::Path;

use reqwest::Method;

use super::{Failure, environment, say};
use crate::{
    app::connect_store,
    clock::Clock,
    config::{Config, Database},
    provider::{Body, Outbound, OutboundRequest, Profile},
    seal::Keyring,
    store::SchemaStatus,
};

/// How far the database's clock may differ from ours, in milliseconds.
const MAX_CLOCK_DIFFERENCE_MS: i64 = 5_000;

pub(crate) async fn check(file: Option<&Path>) -> Result<(), Failure> {
    let config = Config::load(file, environment())?;
    let mut report = Report::default();
    let clients = config.clients.len();
    ok("configuration", &format!("{clients} clients, {}", config.public_url))?;
    if clients == 0 {
        say("note    clients: none yet; add [clients.NAME] to the configuration")?;
    }
    check_database(&config, &mut report).await?;
    check_key(&config, &mut report)?;
    check_providers(&config, &mut report).await?;
    match report.failures {
        0 => Ok(()),
        1 => Err(Failure::unavailable("1 check failed")),
        failures => Err(Failure::unavailable(format!("{failures} checks failed"))),
    }
}

async fn check_database(config: &Config, report: &mut Report) -> Result<(), Failure> {
    if let Database::Embedded(path) = &config.database
        && !path.exists()
    {
        let about = format!("SQLite, to be made at the first start in {}", path.display());
        return ok("database", &about);
    }
    let clock = Clock::system();
    let store = match connect_store(config, clock.clone()).await {
        Ok(store) => store,
        Err(error) => return report.fail("database", &error.to_string()),
    };
    match store.schema_status().await {
        Ok(SchemaStatus::Current) => ok("database", "reachable, schema up to date")?,
        Ok(SchemaStatus::Fresh) => {
            ok("database", "reachable, empty; the first start makes the schema")?;
        }
        Ok(SchemaStatus::Older { .. }) => {
            ok("database", "reachable; the next start brings the schema up to date")?;
        }
        Ok(SchemaStatus::Newer { .. }) => {
            report.fail("database", "its schema is newer than this program; use a newer one")?;
        }
        Err(error) => report.fail("database", &error.to_string())?,
    }
    match store.database_clock().await {
        Ok(theirs) => {
            let difference = theirs.as_millisecond() - clock.now().as_millisecond();
            if difference.abs() > MAX_CLOCK_DIFFERENCE_MS {
                let advice = format!("differs from the database's by {difference} ms; run NTP");
                report.fail("clock", &advice)?;
            } else {
                ok("clock", &format!("within {} ms of the database's", difference.abs()))?;
            }
        }
        Err(error) => report.fail("clock", &error.to_string())?,
    }
    store.close().await;
    Ok(())
}

fn check_key(config: &Config, report: &mut Report) -> Result<(), Failure> {
    let path = &config.key_file;
    let shown = path.display();
    let embedded = matches!(&config.database, Database::Embedded(path) if !path.exists());
    match Keyring::read(path) {
        Ok(keyring) => ok("sealing key", &format!("{} in {shown}", keyring.active_id())),
        Err(_) if embedded && !path.exists() => {
            ok("sealing key", &format!("to be made at the first start in {shown}"))
        }
        Err(error) => report.fail("sealing key", &format!("{shown}: {error}; see `keys generate`")),
    }
}

async fn check_providers(config: &Config, report: &mut Report) -> Result<(), Failure> {
    let outbound = Outbound::new(Clock::system()).map_err(Failure::unavailable)?;
    let mut seen = Vec::new();
    for client in config.clients.values() {
        let profile = &client.profile;
        if seen.contains(&&profile.name) {
            continue;
        }
        seen.push(&profile.name);
        let Some(probe) = probe(profile) else { continue };
        let host = probe.url.host_str().unwrap_or_default().to_owned();
        // Any answer will do: what is asked is whether one comes.
        match outbound.send(profile, probe).await {
            Ok(_) => ok(&profile.title, &format!("{host} answers"))?,
            Err(error) => report.fail(&profile.title, &format!("{host}: {}", error.message))?,
        }
    }
    Ok(())
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

/// Prints each line and counts the failures.
#[derive(Default)]
struct Report {
    failures: u32,
}

impl Report {
    fn fail(&mut self, what: &str, advice: &str) -> Result<(), Failure> {
        self.failures += 1;
        say(&format!("FAILED  {what}: {advice}"))
    }
}

fn ok(what: &str, about: &str) -> Result<(), Failure> {
    say(&format!("ok      {what}: {about}"))
}
