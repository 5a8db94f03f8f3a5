//! Settings: the embedded defaults, then a file, then the environment; checked before anything
//! starts.
//!
//! A wrong setting is one line that names it and says what was expected. Neither a value nor a
//! line of the file is ever quoted: it may be a secret.
//!
//! May use: `provider` for profiles and clients, `simulator` for its settings, `domain`. Used by
//! `app` and the commands.

mod client;
pub mod logging;
mod raw;
mod secret;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use url::{Host, Url};

pub use self::{
    client::redirect_uri,
    logging::{Log, LogFormat},
    secret::read_secret,
};
use self::{raw::RawConfig, secret::one_of};
use crate::{
    domain::slug::{NotASlug, Slug},
    provider::{Catalogue, client::Client},
    simulator::SimulatorSettings,
};

/// Everything the broker is told, checked.
#[derive(Debug)]
pub struct Config {
    /// The URL for browsers and providers: scheme and host, perhaps a port; no path.
    pub public_url: Url,
    /// The address of the public listener.
    pub public_listen: SocketAddr,
    /// The URL for services, and the issuer in the OAuth metadata.
    pub internal_url: Url,
    /// The address of the internal listener.
    pub internal_listen: SocketAddr,
    /// This replica's own folder.
    pub state_dir: PathBuf,
    /// The name of this installation, which its database must be of.
    pub deployment: Option<Slug>,
    /// The database of the connections.
    pub database: Database,
    /// The file of sealing keys.
    pub key_file: PathBuf,
    /// For how long the database keeps audit records.
    pub keep_events: Duration,
    /// The logging settings.
    pub log: Log,
    /// Every known provider.
    pub providers: Catalogue,
    /// Our registrations.
    pub clients: BTreeMap<Slug, Arc<Client>>,
    /// The URLs that a person may be sent to after consenting.
    pub return_to: BTreeMap<Slug, Url>,
    /// The settings of `simulate` and `demo`.
    pub simulators: SimulatorSettings,
}

/// The database of the connections.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file of our own, for one process.
    Embedded(PathBuf),
    /// A server, by its URL; the URL may hold a password.
    Server(SecretString),
}

/// One line that names the setting and the expected form.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("configuration file {path}: {problem}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem, with its place.
        problem: String,
    },
    /// A provider's profile is wrong.
    #[error(transparent)]
    Profile(#[from] crate::provider::ProfileError),
    /// A setting is wrong.
    #[error("setting `{setting}`{}: {problem}", in_environment(variable.as_deref()))]
    Setting {
        /// Its name, as in the file.
        setting: String,
        /// The environment variable that sets it, if one does.
        variable: Option<String>,
        /// The problem, and the expected form.
        problem: String,
    },
}

fn wrong(setting: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Setting { setting: setting.into(), variable: None, problem: problem.into() }
}

fn in_environment(variable: Option<&str>) -> String {
    variable.map(|name| format!(" (environment variable {name})")).unwrap_or_default()
}

impl Config {
    /// Reads the settings: embedded defaults, then `file`, then `environment`.
    pub fn load(
        file: Option<&Path>,
        environment: HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        Self::load_over(file, environment, &toml::Table::new())
    }

    /// As [`Config::load`], with settings of the program's own on top of all others.
    pub fn load_over(
        file: Option<&Path>,
        environment: HashMap<String, String>,
        overrides: &toml::Table,
    ) -> Result<Self, ConfigError> {
        let variables: Vec<String> = environment.keys().cloned().collect();
        RawConfig::read(file, environment, overrides).and_then(RawConfig::check).map_err(
            |mut error| {
                if let ConfigError::Setting { setting, variable, .. } = &mut error {
                    *variable = raw::variable(setting, variables.iter()).cloned();
                }
                error
            },
        )
    }
}

impl RawConfig {
    fn check(self) -> Result<Config, ConfigError> {
        let public_url = check_public_url(&self.public_url)?;
        let internal_url = check_origin("internal_url", &self.internal_url)?;
        let public_listen = check_listen("public_listen", &self.public_listen)?;
        let internal_listen = check_listen("internal_listen", &self.internal_listen)?;
        if public_listen == internal_listen && public_listen.port() != 0 {
            return Err(wrong("internal_listen", "expected another address than `public_listen`"));
        }
        if self.state_dir.as_os_str().is_empty() {
            return Err(wrong("state_dir", "expected a folder"));
        }
        let deployment = self.deployment.map(|name| name.parse()).transpose();
        let deployment =
            deployment.map_err(|problem: NotASlug| wrong("deployment", problem.to_string()))?;
        let database =
            match one_of("database.url", self.database.url, self.database.url_file.as_deref())? {
                Some(url) => check_database(url)?,
                None => Database::Embedded(self.state_dir.join("token-broker.sqlite")),
            };
        let key_file = self.sealing.key_file.unwrap_or_else(|| self.state_dir.join("sealing.keys"));
        let profiles = named("providers.profiles", self.providers.profiles)?;
        let providers = Catalogue::load(self.providers.folder.as_deref(), &profiles)?;
        let mut clients = BTreeMap::new();
        for (name, client) in named("clients", self.clients)? {
            let client = client.check(&name, &providers, &public_url)?;
            clients.insert(name, Arc::new(client));
        }
        let mut return_to = BTreeMap::new();
        for (name, url) in named("return_to", self.return_to)? {
            let url = check_url(&format!("return_to.{name}"), &url)?;
            return_to.insert(name, url);
        }
        Ok(Config {
            public_url,
            public_listen,
            internal_url,
            internal_listen,
            state_dir: self.state_dir,
            deployment,
            database,
            key_file,
            keep_events: self.audit.check()?,
            log: self.log.check()?,
            providers,
            clients,
            return_to,
            simulators: self.simulators,
        })
    }
}

impl raw::Audit {
    fn check(&self) -> Result<Duration, ConfigError> {
        match self.keep_days {
            1..=36_500 => Ok(Duration::from_hours(24) * self.keep_days),
            _ => Err(wrong("audit.keep_days", "expected a number of days from 1 to 36500")),
        }
    }
}

impl raw::Log {
    fn check(self) -> Result<Log, ConfigError> {
        let format = match self.format.as_str() {
            "json" => LogFormat::Json,
            "text" => LogFormat::Text,
            _ => return Err(wrong("log.format", "expected `text` or `json`")),
        };
        logging::parse(&self.filter).map_err(|problem| wrong("log.filter", problem))?;
        Ok(Log { format, filter: self.filter })
    }
}

/// A table whose keys are names that the operator chose.
fn named<T>(table: &str, written: BTreeMap<String, T>) -> Result<BTreeMap<Slug, T>, ConfigError> {
    written
        .into_iter()
        .map(|(name, value)| match name.parse() {
            Ok(slug) => Ok((slug, value)),
            Err(error) => {
                let setting = format!("{table}.{}", name.escape_debug());
                Err(wrong(setting, format!("{error}")))
            }
        })
        .collect()
}

fn check_public_url(text: &str) -> Result<Url, ConfigError> {
    let url = check_origin("public_url", text)?;
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if url.scheme() == "http" && !loopback {
        let problem = "expected https; http is accepted on a loopback address only, because \
                       anyone on the way could take the consent over";
        return Err(wrong("public_url", problem));
    }
    Ok(url)
}

fn check_origin(setting: &str, text: &str) -> Result<Url, ConfigError> {
    let url = check_url(setting, text)?;
    let plain = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if plain {
        Ok(url)
    } else {
        Err(wrong(setting, "expected a scheme and a host alone, such as https://broker.example"))
    }
}

fn check_url(setting: &str, text: &str) -> Result<Url, ConfigError> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| wrong(setting, "expected a URL such as https://broker.example"))
}

fn check_listen(setting: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse()
        .map_err(|_| wrong(setting, "expected an IP address and a port, such as 127.0.0.1:8080"))
}

#[expect(clippy::disallowed_methods, reason = "the scheme and a path are no secret")]
fn check_database(url: SecretString) -> Result<Database, ConfigError> {
    match url.expose_secret().split_once(':') {
        Some(("postgres" | "postgresql", _)) => Ok(Database::Server(url)),
        Some(("sqlite", path)) if !path.is_empty() => {
            Ok(Database::Embedded(path.strip_prefix("//").unwrap_or(path).into()))
        }
        _ => {
            let problem = "expected postgres://USER:PASSWORD@HOST/NAME; leave it out for SQLite \
                           in `state_dir`";
            Err(wrong("database.url", problem))
        }
    }
}
