//! The broker's view of the simulators: the registered applications, and the overlays that point
//! its profiles at them.

use std::collections::BTreeMap;

use secrecy::SecretString;

use super::{Simulated, Simulators};
use crate::domain::slug::Slug;

/// An application registered at a simulated provider.
#[derive(Clone, Debug)]
pub struct Application {
    /// Its identifier.
    pub client_id: String,
    /// Its simulated secret.
    pub client_secret: SecretString,
    /// Further settings of a client, such as Divar's `api_key`.
    pub settings: BTreeMap<String, SecretString>,
    /// The scopes to ask for.
    pub scopes: Vec<String>,
    /// The account that consents unless a person chooses another, as the account call names it.
    pub account: String,
}

impl Simulators {
    /// The application registered at each simulator.
    pub fn applications(&self) -> BTreeMap<Slug, Application> {
        Simulated::ALL.map(|which| (slug(which), self.application(which))).into()
    }

    /// For each provider, the tables to lay over its profile so that it means the simulator.
    pub fn overlays(&self) -> BTreeMap<Slug, toml::Table> {
        Simulated::ALL.map(|which| (slug(which), self.overlay(which))).into()
    }

    fn application(&self, which: Simulated) -> Application {
        let registered = &self.settings;
        let (client_id, client_secret, scopes, account) = match which {
            Simulated::Admitad => {
                let admitad = &registered.admitad;
                let account = admitad.accounts.first().map(|account| account.id.to_string());
                (&admitad.client_id, &admitad.simulated_client_secret, &admitad.scopes, account)
            }
            Simulated::Amocrm | Simulated::Kommo => {
                let amocrm = match which {
                    Simulated::Kommo => &registered.kommo,
                    _ => &registered.amocrm,
                };
                let account = amocrm.accounts.first().map(|account| account.id.to_string());
                (&amocrm.client_id, &amocrm.simulated_client_secret, &amocrm.scopes, account)
            }
            Simulated::Avito => {
                let avito = &registered.avito;
                let account = avito.accounts.first().map(|account| account.id.to_string());
                (&avito.client_id, &avito.simulated_client_secret, &avito.scopes, account)
            }
            Simulated::Divar => {
                let divar = &registered.divar;
                let account = divar.users.first().map(|user| user.id.clone());
                (&divar.client_id, &divar.simulated_client_secret, &divar.scopes, account)
            }
        };
        let settings = match which {
            Simulated::Divar => {
                let key = registered.divar.simulated_api_key.clone();
                BTreeMap::from([("api_key".to_owned(), SecretString::from(key))])
            }
            _ => BTreeMap::new(),
        };
        Application {
            client_id: client_id.clone(),
            client_secret: SecretString::from(client_secret.clone()),
            settings,
            scopes: scopes.clone(),
            account: account.unwrap_or_default(),
        }
    }

    fn overlay(&self, which: Simulated) -> toml::Table {
        let port = self.of(which).port();
        let text = match which {
            Simulated::Admitad => format!(
                r#"
                authorize.url = "http://localhost:{port}/api/authorize/"
                token.url = "http://127.0.0.1:{port}/token/"
                account.url = "http://127.0.0.1:{port}/me/"
                resource.base_url = "http://127.0.0.1:{port}"
                "#
            ),
            Simulated::Amocrm | Simulated::Kommo => format!(
                r#"
                vars.account_host.suffixes = ["{which}.localhost"]
                authorize.url = "http://localhost:{port}/oauth"
                token.url = "http://{{account_host}}:{port}/oauth2/access_token"
                account.url = "http://{{account_host}}:{port}/api/v4/account"
                resource.base_url = "http://{{account_host}}:{port}"
                "#
            ),
            Simulated::Avito => format!(
                r#"
                authorize.url = "http://localhost:{port}/oauth"
                token.url = "http://127.0.0.1:{port}/token"
                account.url = "http://127.0.0.1:{port}/core/v1/accounts/self"
                resource.base_url = "http://127.0.0.1:{port}"
                "#
            ),
            Simulated::Divar => format!(
                r#"
                authorize.url = "http://localhost:{port}/oauth2/auth"
                token.url = "http://localhost:{port}/oauth2/token"
                account.url = "http://127.0.0.1:{port}/v1/open-platform/users"
                resource.base_url = "http://127.0.0.1:{port}"
                "#
            ),
        };
        let key_exchange = match which {
            Simulated::Amocrm => format!(
                "key_exchange.url = \"http://{{account_host}}:{port}/oauth2/exchange_api_key\""
            ),
            _ => String::new(),
        };
        format!("network = \"loopback\"\n{text}\n{key_exchange}")
            .parse()
            .expect("the texts above are TOML whatever the port")
    }
}

fn slug(which: Simulated) -> Slug {
    which.as_str().parse().expect("lower-case letters are a slug")
}
