//! A wrong command line, told in one line; and help, which is none.

use std::error::Error as _;

use clap::{
    Error,
    error::{ContextKind, ErrorKind},
};

use super::CliError;

/// Prints help where it was asked for; everything else is a failure.
pub(super) fn answer(error: &Error) -> Result<(), CliError> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(error.print()?),
        _ => Err(CliError::usage(line(error))),
    }
}

/// The paragraphs of clap's message: the error, then tips, the usage, and a reference to `--help`.
fn line(error: &Error) -> String {
    let rendered = error.render().to_string();
    let mut paragraphs = rendered.split("\n\n");
    let said = paragraphs.next().unwrap_or_default();
    let rest: Vec<&str> = paragraphs.flat_map(str::lines).map(str::trim).collect();

    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "name a command".to_owned()
        }
        // clap quotes the value, and it may hold a password; our parsers say what was expected.
        ErrorKind::ValueValidation => match (error.get(ContextKind::InvalidArg), error.source()) {
            (Some(argument), Some(expected)) => format!("{argument}: {expected}"),
            _ => "a value is wrong".to_owned(),
        },
        _ => said.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let tip = rest.iter().find_map(|line| line.strip_prefix("tip: "));
    let tip = tip.map(|tip| format!(" ({tip})")).unwrap_or_default();
    let command = rest.iter().find_map(|line| line.strip_prefix("Usage: "));
    let command: Vec<&str> = command
        .unwrap_or("token-broker")
        .split_whitespace()
        .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect();
    format!("{what}{tip}; see `{} --help`", command.join(" "))
}
