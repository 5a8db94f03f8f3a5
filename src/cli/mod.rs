//! The commands. Results go to standard output, everything else to standard error; a failure is one
//! line that says what is wrong and what to do.
//!
//! May use: every room. Used by `main` alone.

mod args;
mod check;
mod connections;
mod demo;
mod healthcheck;
mod keys;
mod migrate;
mod operators;
mod release;
mod running;
mod serve;
mod services;
mod table;
mod usage;

use std::{
    collections::HashMap,
    fmt,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;
use tokio::runtime::Runtime;

use self::args::{Args, Command};
use crate::{
    app::{StartError, connect_store},
    broker::BrokerError,
    clock::Clock,
    config::{Config, ConfigError, Database, logging},
    http,
    os::hardening,
    store::{SchemaStatus, Store, StoreError},
};

/// The end of a command: a line for a person and an exit code for a script, in the numbers of BSD's
/// sysexits.
#[derive(Debug)]
pub(crate) struct CliError {
    message: String,
    code: u8,
}

impl CliError {
    /// Bad usage or configuration: 64.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 64 }
    }

    /// Something needed is not there or does not answer: 69.
    pub(crate) fn unavailable(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 69 }
    }

    /// Our own fault: 70.
    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 70 }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Settings(_) => Self::usage(error),
            StartError::Unavailable(_) => Self::unavailable(error),
        }
    }
}

impl From<BrokerError> for CliError {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Internal => Self::internal(error),
            BrokerError::Unavailable { .. } => Self::unavailable(error),
            error => Self::usage(error),
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::internal(error)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    if let Err(error) = hardening::forbid() {
        return finish(Err(CliError::internal(format!("core dumps cannot be forbidden: {error}"))));
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return finish(usage::answer(&error)),
    };
    finish(run(args))
}

/// Says what went wrong, if something did. It may repeat what others said: their line ends and
/// escape codes are shown, not obeyed.
fn finish(outcome: Result<(), CliError>) -> ExitCode {
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    let shown = |c: char| match c {
        c if c.is_control() => c.escape_default().collect(),
        c => String::from(c),
    };
    let message: String = failure.message.chars().map(shown).collect();
    let _ = writeln!(io::stderr(), "token-broker: {message}");
    ExitCode::from(failure.code)
}

fn run(args: Args) -> Result<(), CliError> {
    let config = args.config.as_deref();
    let runtime = Runtime::new()?;
    match args.command {
        Command::Serve => runtime.block_on(serve::serve(load(config)?)),
        Command::Demo(demo) => runtime.block_on(demo::demo(demo)),
        Command::Simulate => runtime.block_on(serve::simulate(load(config)?)),
        Command::Check => runtime.block_on(check::check(config)),
        Command::Token(token) => runtime.block_on(connections::token(&token)),
        Command::Connect(connect) => runtime.block_on(connections::connect(&connect)),
        Command::Connections(list) => runtime.block_on(connections::connections(&list)),
        Command::Services(services) => runtime.block_on(services::services(&services)),
        Command::Operators(operators) => {
            runtime.block_on(operators::operators(&load(config)?, &operators))
        }
        Command::Keys(keys) => runtime.block_on(keys::keys(config, &keys)),
        Command::Migrate => runtime.block_on(migrate::migrate(&load(config)?)),
        Command::Release(release) => runtime.block_on(release::release(&load(config)?, &release)),
        Command::Openapi => {
            say(&serde_json::to_string_pretty(&http::openapi()).map_err(CliError::internal)?)
        }
        Command::Healthcheck(healthcheck) => {
            runtime.block_on(healthcheck::healthcheck(config, &healthcheck))
        }
    }
}

/// Reads the configuration and starts logging as it says.
fn load(file: Option<&Path>) -> Result<Config, CliError> {
    let config = Config::load(file, environment())?;
    logging::start(&config.log).map_err(CliError::usage)?;
    Ok(config)
}

/// The process's environment, but for variables that are not text.
fn environment() -> HashMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Opens the database and changes nothing about it; it has to be the one that this program knows. Of
/// one that is not there yet it says that there is `nothing` of what was asked for.
async fn open_as_it_is(config: &Config, clock: Clock, nothing: &str) -> Result<Store, CliError> {
    if let Database::Embedded(path) = &config.database
        && !path.exists()
    {
        let path = path.display();
        return Err(CliError::usage(format!("{nothing}: there is no database {path}")));
    }
    let store = connect_store(config, clock).await?;
    let problem = match store.schema_status().await.map_err(StartError::from)? {
        SchemaStatus::Current => return Ok(store),
        SchemaStatus::EarlierBuild => StoreError::EarlierBuild.to_string(),
        SchemaStatus::Fresh => format!("{nothing}: the database is empty"),
        SchemaStatus::Older { .. } => {
            "the database's schema is older than this program: run `token-broker migrate` first"
                .to_owned()
        }
        SchemaStatus::Newer { found, known } => {
            StoreError::NewerSchema { found, known }.to_string()
        }
    };
    store.close().await;
    Err(CliError::usage(problem))
}

/// Prints a line of the result. A reader that went away is no failure of ours.
pub(crate) fn say(line: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
