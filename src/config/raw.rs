//! The raw settings: all sources merged. Unknown settings and wrong types are refused here; values
//! are checked afterwards.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use config::{Environment, FileFormat};
use secrecy::SecretString;
use serde::Deserialize;

use super::{ConfigError, wrong};
use crate::simulator::SimulatorSettings;

const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The prefix of the names of environment variables.
const PREFIX: &str = "TOKEN_BROKER";

/// The separator between the parts of such a name.
const SEPARATOR: &str = "__";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawConfig {
    pub(super) public_url: String,
    pub(super) public_listen: String,
    pub(super) internal_url: String,
    pub(super) internal_listen: String,
    pub(super) state_dir: PathBuf,
    pub(super) deployment: Option<String>,
    pub(super) database: Database,
    pub(super) sealing: Sealing,
    pub(super) audit: Audit,
    pub(super) log: Log,
    pub(super) providers: Providers,
    pub(super) clients: BTreeMap<String, Client>,
    pub(super) return_to: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) simulators: SimulatorSettings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Database {
    pub(super) url: Option<SecretString>,
    pub(super) url_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Sealing {
    pub(super) key_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Audit {
    pub(super) keep_days: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Log {
    pub(super) format: String,
    pub(super) filter: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Providers {
    pub(super) folder: Option<PathBuf>,
    pub(super) profiles: BTreeMap<String, toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[expect(clippy::struct_field_names, reason = "they are OAuth's names")]
pub(super) struct Client {
    pub(super) provider: String,
    pub(super) client_id: String,
    pub(super) client_secret: Option<SecretString>,
    pub(super) client_secret_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) scopes: List,
    /// Every service, unless it is set.
    pub(super) services: Option<List>,
    pub(super) grant: Option<String>,
    #[serde(default)]
    pub(super) settings: BTreeMap<String, SecretString>,
}

/// A list, or one text with spaces between: the environment has no lists.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of texts, or one text with spaces between")]
pub(super) enum List {
    List(Vec<String>),
    Text(String),
}

impl Default for List {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl List {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::List(list) => list,
            Self::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        }
    }
}

impl RawConfig {
    /// Embedded defaults, then `file`, then `environment`, then `overrides`.
    pub(super) fn read(
        file: Option<&Path>,
        environment: HashMap<String, String>,
        overrides: &toml::Table,
    ) -> Result<Self, ConfigError> {
        let mut builder = config::Config::builder()
            .add_source(config::File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(path) = file {
            let text = read_toml(path)?;
            builder = builder.add_source(config::File::from_str(&text, FileFormat::Toml));
        }
        builder
            .add_source(
                Environment::with_prefix(PREFIX)
                    .prefix_separator(SEPARATOR)
                    .separator(SEPARATOR)
                    .source(Some(environment)),
            )
            .add_source(config::File::from_str(&overrides.to_string(), FileFormat::Toml))
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| describe(&error, None))
    }
}

/// The variable that sets a setting or a part of it, if one of these does.
pub(super) fn variable<'a>(
    setting: &str,
    mut names: impl Iterator<Item = &'a String>,
) -> Option<&'a String> {
    names.find(|name| {
        let name = name.to_lowercase().replace(SEPARATOR, ".");
        name.strip_prefix(&PREFIX.to_lowercase())
            .and_then(|rest| rest.strip_prefix('.')?.strip_prefix(setting))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Reads a TOML file and checks its syntax, so that a mistake is told by its place and not by a
/// quotation.
fn read_toml(path: &Path) -> Result<String, ConfigError> {
    let file_error = |problem: String| ConfigError::File { path: path.to_owned(), problem };
    let text =
        fs::read_to_string(path).map_err(|error| file_error(format!("cannot be read: {error}")))?;
    match text.parse::<toml::Table>() {
        Ok(_) => Ok(text),
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            let problem = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            Err(file_error(format!("line {line} is not valid TOML: {problem}")))
        }
    }
}

/// Names the wrong setting and the expected form. Only serde's words on our own types are repeated,
/// never the value found: it may be a secret.
fn describe(error: &config::ConfigError, setting: Option<&str>) -> ConfigError {
    use config::ConfigError as E;
    let named = setting.unwrap_or("configuration");
    match error {
        E::At { error, key, .. } => describe(error, key.as_deref().or(setting)),
        E::Type { expected, key, .. } => {
            wrong(key.as_deref().unwrap_or(named), format!("expected {expected}"))
        }
        E::NotFound(name) => wrong(name, "is missing"),
        E::Message(text) => {
            let (found, expected) = match text.strip_prefix("expected ") {
                Some(expected) => ("", expected),
                None => text.rsplit_once(", expected ").unwrap_or((text, "")),
            };
            let unknown = found.strip_prefix("unknown field `").and_then(|t| t.strip_suffix('`'));
            match unknown {
                Some(field) => {
                    let parent = setting.map(|parent| format!("{parent}.")).unwrap_or_default();
                    let problem = format!("there is no such setting; expected {expected}");
                    wrong(format!("{parent}{field}"), problem)
                }
                None if expected.is_empty() => wrong(named, "is not what can be set here"),
                None => wrong(named, format!("expected {expected}")),
            }
        }
        _ => wrong(named, "cannot be read"),
    }
}
