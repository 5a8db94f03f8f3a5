//! Logging: to standard error, so that standard output belongs to the command.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// The logging settings.
#[derive(Clone, Debug)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One readable line.
    Text,
}

/// Reads the directives of a filter.
pub fn parse(filter: &str) -> Result<EnvFilter, &'static str> {
    EnvFilter::try_new(filter).map_err(
        |_| "expected a level such as `info`, or directives such as `info,token_broker=debug`",
    )
}

/// Starts logging for the rest of the process.
pub fn start(log: &Log) -> Result<(), &'static str> {
    let filter = parse(&log.filter)?;
    let registry = tracing_subscriber::registry().with(filter);
    let colours = std::io::stderr().is_terminal();
    let writer = fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = match log.format {
        LogFormat::Json => registry.with(writer.json()).try_init(),
        LogFormat::Text => registry.with(writer.with_target(false)).try_init(),
    };
    Ok(())
}
