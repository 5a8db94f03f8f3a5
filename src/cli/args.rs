//! What the command line takes.

use std::path::PathBuf;

use clap::{Args as Arguments, Parser, Subcommand};
use jiff::Timestamp;

use url::Url;

use crate::domain::{
    caller::{Pattern, Verb},
    slug::Slug,
};

/// Keeps OAuth2 access tokens alive and hands a fresh one to any internal service.
#[derive(Debug, Parser)]
#[command(name = "token-broker", version, about, max_term_width = 100)]
pub(crate) struct Args {
    /// The configuration file (TOML); see config/default.toml for every setting.
    #[arg(long, short, global = true, env = "TOKEN_BROKER_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the broker.
    Serve,
    /// Try it out: the broker with simulated providers, in one process, leaving nothing behind.
    Demo(Demo),
    /// Run the simulated providers alone, for staging and CI.
    Simulate,
    /// Check configuration, database, keys, clock and reachability of the providers.
    Check,
    /// Print a connection's access token (asks a running broker, with a service's key).
    Token(Token),
    /// Make a consent link for a client and print it (asks a running broker).
    Connect(Connect),
    /// List the connections (asks a running broker).
    Connections(List),
    /// List, make and delete services and their keys (asks a running broker).
    Services(Services),
    /// Make an operator and print their key.
    Operators(Operators),
    /// Make, rotate and count the keys that seal stored tokens.
    Keys(Keys),
    /// Bring the database's schema up to date.
    Migrate,
    /// Let quarantined connections refresh again; says what that does before it does it.
    Release(Release),
    /// Print the API's description (OpenAPI 3.1).
    Openapi,
    /// Exit with 0 if the broker on this machine is ready: for containers.
    Healthcheck(Healthcheck),
}

#[derive(Arguments, Debug)]
pub(crate) struct Demo {
    /// Print one JSON object when ready, instead of text for people.
    #[arg(long)]
    pub(crate) json: bool,
    /// Press the buttons of every consent, so that every connection is live.
    #[arg(long)]
    pub(crate) auto_consent: bool,
    /// Keep the database and its key in this new folder, to look at afterwards.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) keep: Option<PathBuf>,
    /// Use this Postgres database instead of an embedded one; a password belongs into PGPASSWORD.
    #[arg(long, value_name = "URL", conflicts_with = "keep")]
    pub(crate) database_url: Option<String>,
}

/// How to reach a running broker.
#[derive(Arguments, Debug)]
pub(crate) struct Remote {
    /// The internal address of the broker.
    #[arg(
        long,
        env = "TOKEN_BROKER_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8081",
        value_parser = broker_url
    )]
    pub(crate) url: Url,
    /// A file that holds the key to show: a service's, or an operator's.
    #[arg(long, env = "TOKEN_BROKER_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Arguments, Debug)]
pub(crate) struct Token {
    /// The connection's name.
    pub(crate) connection: Slug,
    /// How many seconds the token should live at least.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) min_ttl: Option<u64>,
    /// Print the whole answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Arguments, Debug)]
pub(crate) struct Connect {
    /// The client, as the configuration names it.
    pub(crate) client: Slug,
    /// What the connection is or will be called [default: the client's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) connection: Option<Slug>,
    /// A scope to ask for, in place of the client's; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE")]
    pub(crate) scopes: Vec<String>,
    /// The account that makes the connection live without confirmation.
    #[arg(long, value_name = "ACCOUNT")]
    pub(crate) expected_account: Option<String>,
    /// For your own browser, within ten minutes; needs no confirmation (operators).
    #[arg(long = "self")]
    pub(crate) own_browser: bool,
    /// Exchange the API key in this file (amoCRM accounts from before 2020) instead of a link.
    #[arg(long, value_name = "FILE", requires_all = ["login", "account_host"])]
    pub(crate) api_key_file: Option<PathBuf>,
    /// The login of the API key's owner.
    #[arg(long, value_name = "LOGIN", requires = "api_key_file")]
    pub(crate) login: Option<String>,
    /// The account's own host, such as example.amocrm.ru.
    #[arg(long, value_name = "HOST", requires = "api_key_file")]
    pub(crate) account_host: Option<String>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Arguments, Debug)]
pub(crate) struct List {
    /// Print the whole answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Arguments, Debug)]
pub(crate) struct Services {
    #[command(subcommand)]
    pub(crate) action: ServiceAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceAction {
    /// List the services with the ids of their keys.
    List(List),
    /// Make a service and print its key, which is shown this once.
    Create {
        /// What it will be called.
        name: Slug,
        /// A connection it may use: a name, or a beginning followed by `*`; may be repeated.
        #[arg(long = "connection", value_name = "PATTERN", required = true)]
        connections: Vec<Pattern>,
        /// What it may do: token, consent, confirm; may be repeated [default: token].
        #[arg(long = "verb", value_name = "VERB", value_parser = verb)]
        verbs: Vec<Verb>,
        /// When its key ends, as 2026-12-31T00:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = time)]
        expires_at: Option<Timestamp>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a second key for a service and print it, to replace the first without a gap.
    AddKey {
        /// The service's name.
        name: Slug,
        #[command(flatten)]
        remote: Remote,
    },
    /// End one key of a service.
    DeleteKey {
        /// The service's name.
        name: Slug,
        /// The key's id.
        key: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete a service with all its keys.
    Delete {
        /// The service's name.
        name: Slug,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Arguments, Debug)]
pub(crate) struct Operators {
    #[command(subcommand)]
    pub(crate) action: OperatorAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorAction {
    /// Make an operator and print their key, which is shown this once.
    Create {
        /// What they will be called in records.
        name: Slug,
    },
    /// List the operators.
    List,
    /// Take an operator's access away, with their key.
    Delete {
        /// The operator's name.
        name: Slug,
    },
}

#[derive(Arguments, Debug)]
pub(crate) struct Keys {
    #[command(subcommand)]
    pub(crate) action: KeyAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Write a new sealing key to a new file; an existing file is touched by `--add` alone.
    Generate {
        /// Where to [default: the setting `sealing.key_file`].
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Add the key to the file that is there: it opens, and seals after `keys rotate`.
        #[arg(long)]
        add: bool,
    },
    /// Put the newest key first and seal every stored value with it, while brokers serve.
    Rotate,
    /// Show which key seals, and how many stored values need each.
    Status,
}

#[derive(Arguments, Debug)]
pub(crate) struct Release {
    /// The connection's name.
    #[arg(required_unless_present_any = ["all", "plan", "adopt"])]
    pub(crate) connection: Option<Slug>,
    /// Every connection that is quarantined.
    #[arg(long, conflicts_with = "connection")]
    pub(crate) all: bool,
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Take over a copy of another deployment's database: quarantine all of it, release nothing.
    #[arg(long, conflicts_with_all = ["all", "plan", "connection"])]
    pub(crate) adopt: bool,
}

#[derive(Arguments, Debug)]
pub(crate) struct Healthcheck {
    /// The internal address of the broker [default: that of the configuration].
    #[arg(long, env = "TOKEN_BROKER_URL", value_name = "URL", value_parser = broker_url)]
    pub(crate) url: Option<Url>,
}

/// The address of a broker. What is wrong is told without the text: it may hold a password.
fn broker_url(text: &str) -> Result<Url, &'static str> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .filter(|url| url.username().is_empty() && url.password().is_none())
        .filter(|url| url.query().is_none() && url.fragment().is_none())
        .ok_or("expected a URL such as http://127.0.0.1:8081, without user or query")
}

fn seconds(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "expected a number of seconds")
}

fn time(text: &str) -> Result<Timestamp, &'static str> {
    text.parse().map_err(|_| "expected a time such as 2026-12-31T00:00:00Z")
}

fn verb(text: &str) -> Result<Verb, &'static str> {
    text.parse().map_err(|_| "expected token, consent or confirm")
}
