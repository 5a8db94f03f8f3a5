//! Logging: to standard error, so that standard output belongs to the command.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{Log, LogFormat};

/// Starts logging for the rest of the process.
///
/// # Errors
///
/// One line when the filter cannot be read.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|_| {
        "setting `log.filter`: expected a level such as `info`, or directives such as \
         `info,token_broker=debug`"
            .to_owned()
    })?;
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
