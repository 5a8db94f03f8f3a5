//! Settings: the embedded defaults, then a file, then the environment; checked before anything
//! starts.
//!
//! A wrong setting is one line that names it and says what was expected. Neither a value nor a
//! line of the file is ever quoted: it may be a secret.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use config::{Environment, FileFormat};
use secrecy::SecretString;
use serde::Deserialize;
use url::{Host, Url};

use crate::{
    client::Client,
    connection::GrantType,
    provider::{Catalogue, Profile},
    simulator::SimulatorSettings,
    slug::Slug,
};

const DEFAULTS: &str = include_str!("../config/default.toml");

/// Everything the broker is told, checked.
#[derive(Debug)]
pub struct Config {
    /// Where browsers and providers reach us: scheme and host, perhaps a port; no path.
    pub public_url: Url,
    /// What the public listener binds.
    pub public_listen: SocketAddr,
    /// Where services reach us, and the issuer in the OAuth metadata.
    pub internal_url: Url,
    /// What the internal listener binds.
    pub internal_listen: SocketAddr,
    /// This replica's own folder.
    pub state_dir: PathBuf,
    /// Where the connections are kept.
    pub database: Database,
    /// The file of sealing keys.
    pub key_file: PathBuf,
    /// How to log.
    pub log: Log,
    /// Every known provider.
    pub providers: Catalogue,
    /// Our registrations.
    pub clients: BTreeMap<Slug, Arc<Client>>,
    /// Where a person may be sent after consenting.
    pub return_to: BTreeMap<Slug, Url>,
    /// How `simulate` and `demo` imitate the providers.
    pub simulators: SimulatorSettings,
}

/// Where the connections are kept.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file of our own, for one process.
    Embedded(PathBuf),
    /// A server, by its URL; the URL may hold a password.
    Server(SecretString),
}

/// How to log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One readable line.
    Text,
}

/// One line that names the setting and says what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("configuration file {path}: {problem}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the place.
        problem: String,
    },
    /// A provider's profile is wrong.
    #[error(transparent)]
    Profile(#[from] crate::provider::ProfileError),
    /// A setting is wrong.
    #[error("setting `{setting}`: {problem}")]
    Setting {
        /// Its name, as in the file.
        setting: String,
        /// What is wrong and what was expected.
        problem: String,
    },
}

fn wrong(setting: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Setting { setting: setting.into(), problem: problem.into() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    public_url: Url,
    public_listen: SocketAddr,
    internal_url: Url,
    internal_listen: SocketAddr,
    state_dir: PathBuf,
    database: DatabaseSettings,
    sealing: SealingSettings,
    log: Log,
    providers: ProviderSettings,
    clients: BTreeMap<Slug, ClientSettings>,
    return_to: BTreeMap<Slug, Url>,
    #[serde(default)]
    simulators: SimulatorSettings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DatabaseSettings {
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SealingSettings {
    key_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderSettings {
    folder: Option<PathBuf>,
    profiles: BTreeMap<Slug, toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientSettings {
    provider: Slug,
    client_id: String,
    client_secret: Option<SecretString>,
    client_secret_file: Option<PathBuf>,
    #[serde(default)]
    scopes: Scopes,
    grant: Option<GrantType>,
    #[serde(default)]
    settings: BTreeMap<String, SecretString>,
}

/// A list, or one text with spaces between: the environment has no lists.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Scopes {
    #[default]
    None,
    List(Vec<String>),
    Text(String),
}

impl Scopes {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::List(list) => list,
            Self::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        }
    }
}

impl Config {
    /// Reads the settings: embedded defaults, then `file`, then `environment`.
    ///
    /// # Errors
    ///
    /// One line for the first thing that is wrong.
    pub fn load(
        file: Option<&Path>,
        environment: HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        Self::load_over(file, environment, &toml::Table::new())
    }

    /// As [`Config::load`], with settings of the program's own on top of all others.
    ///
    /// # Errors
    ///
    /// One line for the first thing that is wrong.
    pub fn load_over(
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
        let settings: Settings = builder
            .add_source(
                Environment::with_prefix("TOKEN_BROKER")
                    .prefix_separator("__")
                    .separator("__")
                    .source(Some(environment)),
            )
            .add_source(config::File::from_str(&overrides.to_string(), FileFormat::Toml))
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| describe(&error))?;
        settings.check()
    }
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
            Err(file_error(format!("line {line} is not valid TOML: {}", error.message())))
        }
    }
}

/// Says what is wrong with a setting, without its value.
fn describe(error: &config::ConfigError) -> ConfigError {
    use config::ConfigError as E;
    fn walk(error: &E, key: Option<&str>) -> (Option<String>, String) {
        match error {
            E::At { error, key: inner, .. } => walk(error, inner.as_deref().or(key)),
            E::Type { expected, key: inner, .. } => {
                (inner.as_deref().or(key).map(str::to_owned), format!("expected {expected}"))
            }
            E::NotFound(name) => (Some(name.clone()), "is missing".to_owned()),
            E::Message(text) => (key.map(str::to_owned), first_line(text)),
            other => (key.map(str::to_owned), first_line(&other.to_string())),
        }
    }
    match walk(error, None) {
        (Some(setting), problem) => wrong(setting, problem),
        (None, problem) => match problem.split_once('`').and_then(|(_, rest)| rest.split_once('`'))
        {
            Some((name, _)) if problem.starts_with("unknown field") => {
                wrong(name, "is not a setting of token-broker; see config/default.toml")
            }
            Some((name, _)) if problem.starts_with("missing field") => wrong(name, "is missing"),
            _ => wrong("?", problem),
        },
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl Settings {
    fn check(self) -> Result<Config, ConfigError> {
        check_public_url(&self.public_url)?;
        check_origin("internal_url", &self.internal_url)?;
        if self.state_dir.as_os_str().is_empty() {
            return Err(wrong("state_dir", "expected a folder"));
        }
        let database =
            match one_of("database.url", self.database.url, self.database.url_file.as_deref())? {
                Some(url) => Database::Server(url),
                None => Database::Embedded(self.state_dir.join("token-broker.sqlite")),
            };
        let key_file = self.sealing.key_file.unwrap_or_else(|| self.state_dir.join("sealing.keys"));
        let providers =
            Catalogue::load(self.providers.folder.as_deref(), &self.providers.profiles)?;
        let mut clients = BTreeMap::new();
        for (name, settings) in self.clients {
            let client = settings.check(&name, &providers, &self.public_url)?;
            clients.insert(name, Arc::new(client));
        }
        for (name, url) in &self.return_to {
            if !matches!(url.scheme(), "https" | "http") {
                return Err(wrong(format!("return_to.{name}"), "expected an http or https URL"));
            }
        }
        Ok(Config {
            public_url: self.public_url,
            public_listen: self.public_listen,
            internal_url: self.internal_url,
            internal_listen: self.internal_listen,
            state_dir: self.state_dir,
            database,
            key_file,
            log: self.log,
            providers,
            clients,
            return_to: self.return_to,
            simulators: self.simulators,
        })
    }
}

impl ClientSettings {
    fn check(
        mut self,
        name: &Slug,
        providers: &Catalogue,
        public_url: &Url,
    ) -> Result<Client, ConfigError> {
        let setting = |key: &str| format!("clients.{name}.{key}");
        let profile = providers.get(self.provider.as_str()).ok_or_else(|| {
            let known: Vec<_> = providers.names().map(Slug::as_str).collect();
            wrong(setting("provider"), format!("no such provider; known: {}", known.join(", ")))
        })?;
        if self.client_id.is_empty() {
            return Err(wrong(setting("client_id"), "is empty"));
        }
        let client_secret = one_of(
            &setting("client_secret"),
            self.client_secret,
            self.client_secret_file.as_deref(),
        )?
        .ok_or_else(|| {
            wrong(setting("client_secret"), "is missing; set it or `client_secret_file`")
        })?;
        let mut settings = BTreeMap::new();
        for (key, about) in &profile.client {
            let file = self.settings.remove(&format!("{key}_file"));
            let file = file.as_ref().map(path_from_setting);
            let direct = self.settings.remove(key);
            let value = one_of(&setting(&format!("settings.{key}")), direct, file.as_deref())?
                .ok_or_else(|| {
                    let problem = format!(
                        "is missing; {} needs it: {}; set it or `{key}_file`",
                        profile.title, about.about
                    );
                    wrong(setting(&format!("settings.{key}")), problem)
                })?;
            settings.insert(key.clone(), value);
        }
        if let Some(unknown) = self.settings.keys().next() {
            let problem = format!("is not a setting of {}'s profile", profile.title);
            return Err(wrong(setting(&format!("settings.{unknown}")), problem));
        }
        let grant_type = choose_grant(profile, self.grant)
            .map_err(|problem| wrong(setting("grant"), problem))?;
        Ok(Client {
            name: name.clone(),
            profile: Arc::clone(profile),
            client_id: self.client_id,
            client_secret,
            settings,
            scopes: self.scopes.into_vec(),
            grant_type,
            redirect_uri: redirect_uri(public_url, name),
        })
    }
}

/// The one redirect URI of a client, to be registered at the provider byte for byte.
#[must_use]
pub fn redirect_uri(public_url: &Url, client: &Slug) -> String {
    format!("{}/callback/{client}", public_url.as_str().trim_end_matches('/'))
}

/// The grant that was asked for, if the provider has it; else the first that it has.
///
/// # Errors
///
/// One sentence that says what the provider offers instead.
pub fn choose_grant(profile: &Profile, asked: Option<GrantType>) -> Result<GrantType, String> {
    let offered: Vec<GrantType> = [GrantType::AuthorizationCode, GrantType::ClientCredentials]
        .into_iter()
        .filter(|grant| profile.grant(*grant).is_some())
        .collect();
    let words = || offered.iter().map(|grant| grant.as_str()).collect::<Vec<_>>().join(", ");
    match asked {
        Some(grant) if offered.contains(&grant) => Ok(grant),
        Some(grant) => {
            Err(format!("{} does not offer {grant}; it offers {}", profile.title, words()))
        }
        None => offered
            .first()
            .copied()
            .ok_or_else(|| format!("{} offers no grant a connection can use", profile.title)),
    }
}

fn check_public_url(url: &Url) -> Result<(), ConfigError> {
    check_origin("public_url", url)?;
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
    Ok(())
}

fn check_origin(setting: &str, url: &Url) -> Result<(), ConfigError> {
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if plain { Ok(()) } else { Err(wrong(setting, "expected scheme://host, without a path")) }
}

/// The value of a secret that can be given directly or in a file, but not both.
fn one_of(
    setting: &str,
    direct: Option<SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, ConfigError> {
    match (direct, file) {
        (Some(_), Some(_)) => {
            Err(wrong(setting, format!("is set twice: keep it or `{setting}_file`, not both")))
        }
        (None, Some(path)) => {
            let text = read_secret(path)
                .map_err(|error| wrong(format!("{setting}_file"), error.to_string()))?;
            Ok(Some(text))
        }
        (direct, None) => Ok(direct),
    }
}

/// Reads a secret from a file, without the line end that editors add.
///
/// # Errors
///
/// When the file cannot be read as text or is empty; the message names the file.
pub fn read_secret(path: &Path) -> io::Result<SecretString> {
    let told = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
    };
    let mut text = fs::read_to_string(path).map_err(told)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err(told(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")));
    }
    Ok(SecretString::from(text))
}

#[expect(clippy::disallowed_methods, reason = "a path beside secrets is not one itself")]
fn path_from_setting(value: &SecretString) -> PathBuf {
    use secrecy::ExposeSecret as _;
    PathBuf::from(value.expose_secret())
}
