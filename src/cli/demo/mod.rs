//! `demo`: the broker and the simulated providers in one process, ready to be tried.

mod auto_consent;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::{CliError, args::Demo, environment, say, serve::until_signal};
use crate::{
    app::{App, Listeners},
    audit::Actor,
    broker::{Broker, Caller, ConnectionView, LinkRequest, NewConnection},
    clock::Clock,
    config::{Config, logging},
    domain::{
        caller::Verb,
        connection::{GrantType, State},
        slug::Slug,
    },
    failpoint::Failpoints,
    seal::Keyring,
    simulator::{Simulated, Simulators},
};

/// The connections of the demo: their names, providers and grants.
const CONNECTIONS: [(&str, Simulated, GrantType); 7] = [
    ("avito-own", Simulated::Avito, GrantType::ClientCredentials),
    ("avito-shop", Simulated::Avito, GrantType::AuthorizationCode),
    ("amocrm-shop", Simulated::Amocrm, GrantType::AuthorizationCode),
    ("kommo-shop", Simulated::Kommo, GrantType::AuthorizationCode),
    ("admitad-own", Simulated::Admitad, GrantType::ClientCredentials),
    ("admitad-web", Simulated::Admitad, GrantType::AuthorizationCode),
    ("divar-shop", Simulated::Divar, GrantType::AuthorizationCode),
];

pub(crate) async fn demo(args: Demo) -> Result<(), CliError> {
    let signalled = until_signal();
    let clock = Clock::system();
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listeners = Listeners::bind(any_port, any_port).await?;
    let place = DemoFolder::choose(args.keep.as_deref())?;
    let mut settings = toml::Table::new();
    settings.insert("public_url".into(), url_of(listeners.public.local_addr()?).into());
    settings.insert("internal_url".into(), url_of(listeners.internal.local_addr()?).into());
    settings.insert("state_dir".into(), place.path().display().to_string().into());
    if let Some(url) = &args.database_url {
        let database = toml::Table::from_iter([("url".to_owned(), url.clone().into())]);
        settings.insert("database".into(), database.into());
    }
    let mut simulated = load(&settings)?.simulators;
    simulated.take_free_ports();
    simulated.register_callbacks(&url_of(listeners.public.local_addr()?));
    let simulators = Simulators::start(simulated, clock.clone())
        .await
        .map_err(|error| CliError::unavailable(format!("simulators: {error}")))?;
    settings.extend(simulators.configuration());
    let config = load(&settings)?;
    logging::start(&config.log).map_err(CliError::usage)?;
    if args.database_url.is_some() {
        Keyring::generate().write_new(&config.key_file).map_err(CliError::unavailable)?;
    }
    let urls = (base(&config.public_url), base(&config.internal_url));
    let app = App::start(config, listeners, clock, Failpoints::default()).await?;
    let broker = Arc::clone(app.broker());
    let shutdown = app.shutdown();
    let tasks = TaskTracker::new();
    tasks.spawn(app.run());
    tasks.close();
    let prepared = prepare(&broker, &simulators, args.auto_consent).await;
    let outcome = match prepared {
        Ok(prepared) => {
            let ready = Ready::new(urls, prepared, &simulators);
            if args.json { ready.say_json() } else { ready.say_text(args.auto_consent) }
        }
        Err(failure) => Err(failure),
    };
    if outcome.is_ok() {
        signalled.await?;
    }
    shutdown.cancel();
    tasks.wait().await;
    simulators.shutdown().await;
    outcome
}

/// The folder of the demo's database and key.
enum DemoFolder {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl DemoFolder {
    fn choose(keep: Option<&Path>) -> Result<Self, CliError> {
        let Some(path) = keep else {
            let folder = tempfile::Builder::new().prefix("token-broker-demo-").tempdir()?;
            return Ok(Self::Temporary(folder));
        };
        if path.join("token-broker.sqlite").exists() {
            return Err(CliError::usage(format!(
                "--keep: {} holds the database of another demo; name another folder",
                path.display()
            )));
        }
        Ok(Self::Kept(path.to_owned()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

/// The settings of the demo over the defaults. Of the environment only logging and the simulators
/// are heard: a demo is the same on every machine.
fn load(settings: &toml::Table) -> Result<Config, CliError> {
    let mut environment: HashMap<_, _> = environment()
        .into_iter()
        .filter(|(name, _)| {
            name.starts_with("TOKEN_BROKER__LOG__")
                || name.starts_with("TOKEN_BROKER__SIMULATORS__")
        })
        .collect();
    let filter = "TOKEN_BROKER__LOG__FILTER".to_owned();
    environment.entry(filter).or_insert_with(|| "warn".to_owned());
    Ok(Config::load_over(None, environment, settings)?)
}

fn url_of(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn base(url: &url::Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// The connections and keys made for the person who tries it out.
struct Prepared {
    operator_key: SecretString,
    service_key: SecretString,
    connections: Vec<ConnectionView>,
    links: BTreeMap<String, SecretString>,
}

async fn prepare(
    broker: &Arc<Broker>,
    simulators: &Simulators,
    auto_consent: bool,
) -> Result<Prepared, CliError> {
    let name: Slug = "demo".parse().map_err(CliError::internal)?;
    let operator = Caller::Operator(name.clone());
    let by = Actor::new(operator.label(), None);
    let operator_key = broker.create_operator(name.clone()).await?;
    let everything = vec!["*".parse().map_err(CliError::internal)?];
    let verbs = BTreeSet::from([Verb::Token]);
    let (_, service_key, _) = broker.create_service(&by, name, everything, verbs, None).await?;
    let applications = simulators.applications();
    let mut links = BTreeMap::new();
    for (connection, provider, grant_type) in CONNECTIONS {
        let name: Slug = connection.parse().map_err(CliError::internal)?;
        let client: Slug = provider.as_str().parse().map_err(CliError::internal)?;
        if grant_type == GrantType::ClientCredentials {
            let new = NewConnection {
                name,
                client,
                grant_type: Some(grant_type),
                scopes: None,
                expected_account: None,
            };
            broker.create_connection(&by, new).await?;
            continue;
        }
        let request = LinkRequest {
            connection: name,
            expected_account: applications.get(&client).map(|app| app.account.clone()),
            client: Some(client),
            scopes: None,
            return_to: None,
            own_browser: false,
        };
        let link = broker.make_link(&operator, None, request).await?;
        if auto_consent {
            auto_consent::consent(&link.url).await?;
        }
        links.insert(connection.to_owned(), link.url);
    }
    let connections = broker.views(&operator);
    if auto_consent && let Some(other) = connections.iter().find(|c| c.state != State::Active) {
        return Err(CliError::internal(format!(
            "{} is {} after its consent",
            other.name, other.state
        )));
    }
    Ok(Prepared { operator_key, service_key, connections, links })
}

/// The text printed when all is ready.
#[derive(Serialize)]
struct Ready {
    public_url: String,
    internal_url: String,
    operator_key: String,
    service_key: String,
    connections: Vec<Listed>,
    consent_links: BTreeMap<String, String>,
    simulators: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    provider: String,
    state: State,
}

impl Ready {
    #[expect(
        clippy::disallowed_methods,
        reason = "a demo's keys and links are for whoever runs it"
    )]
    fn new(
        (public_url, internal_url): (String, String),
        prepared: Prepared,
        simulators: &Simulators,
    ) -> Self {
        let connections = prepared
            .connections
            .into_iter()
            .map(|connection| Listed {
                name: connection.name.to_string(),
                provider: connection.provider.unwrap_or_default(),
                state: connection.state,
            })
            .collect();
        Self {
            public_url,
            internal_url,
            operator_key: prepared.operator_key.expose_secret().to_owned(),
            service_key: prepared.service_key.expose_secret().to_owned(),
            connections,
            consent_links: prepared
                .links
                .into_iter()
                .map(|(name, url)| (name, url.expose_secret().to_owned()))
                .collect(),
            simulators: Simulated::ALL
                .into_iter()
                .map(|which| (which.as_str(), simulators.of(which).base_url()))
                .collect(),
        }
    }

    fn say_json(&self) -> Result<(), CliError> {
        say(&serde_json::to_string(self).map_err(CliError::internal)?)
    }

    fn say_text(&self, consented: bool) -> Result<(), CliError> {
        let Self { internal_url, service_key, operator_key, .. } = self;
        say("token-broker and the simulated providers are running. Ctrl-C ends the demo.")?;
        say("\nFetch a fresh token, as a service does before each request:\n")?;
        for connection in self.connections.iter().filter(|c| c.state == State::Active) {
            say(&format!(
                "  curl -s -H 'Authorization: Bearer {service_key}' \
                 {internal_url}/v1/connections/{}/token",
                connection.name
            ))?;
        }
        if !consented {
            say(
                "\nOpen a link in a browser and press Allow; then fetch its token in the same way:\n",
            )?;
            for (name, url) in &self.consent_links {
                say(&format!("  {name:12} {url}"))?;
            }
        }
        say(&format!("\n{}", self.resource_lines()))?;
        say(&format!("Look next:\n\n  health       {internal_url}/health"))?;
        say(&format!("  the API      {internal_url}/openapi.json"))?;
        say(&format!(
            "  connections  curl -s -H 'Authorization: Bearer {operator_key}' \
             {internal_url}/v1/connections"
        ))?;
        for (provider, url) in &self.simulators {
            say(&format!("  {provider:12} {url}/_simulator/oracle"))?;
        }
        Ok(())
    }

    /// A resource call with a token: its headers and base URL.
    fn resource_lines(&self) -> String {
        let Self { internal_url, service_key, .. } = self;
        let fetch = |connection: &str| {
            format!(
                "$(curl -s -H 'Authorization: Bearer {service_key}' \
                 {internal_url}/v1/connections/{connection}/token \
                 | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')"
            )
        };
        let avito = &self.simulators["avito"];
        let amocrm = &self.simulators["amocrm"];
        let port = amocrm.rsplit(':').next().unwrap_or_default();
        let (avito_token, amocrm_token) = (fetch("avito-own"), fetch("amocrm-shop"));
        format!(
            r#"Use a token, with the headers and base URL that come with it:

  curl -s -H "Authorization: Bearer {avito_token}" {avito}/core/v1/accounts/self

Each amoCRM account has a host of its own. Once amocrm-shop is live, this reaches it even where
*.localhost is not resolved:

  curl -s -H "Authorization: Bearer {amocrm_token}" -H 'Host: demo.amocrm.localhost:{port}' {amocrm}/api/v4/account
"#
        )
    }
}
