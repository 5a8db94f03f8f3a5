//! The settings that make a broker use the simulators: profiles laid over, and clients.

use secrecy::ExposeSecret as _;
use toml::{Table, Value};

use super::{Application, Simulators};

impl Simulators {
    /// `[providers.profiles.*]` and `[clients.*]` for a broker's configuration; each client is named
    /// like its provider.
    pub fn configuration(&self) -> Table {
        let profiles = self.overlays();
        let profiles = profiles.into_iter().map(|(name, profile)| (name.into(), profile.into()));
        let clients = self.applications().into_iter().map(|(provider, application)| {
            let name = String::from(provider);
            let client = client(&name, application);
            (name, client.into())
        });
        let mut providers = Table::new();
        providers.insert("profiles".to_owned(), profiles.collect::<Table>().into());
        let mut settings = Table::new();
        settings.insert("providers".to_owned(), providers.into());
        settings.insert("clients".to_owned(), clients.collect::<Table>().into());
        settings
    }
}

#[expect(clippy::disallowed_methods, reason = "a simulated secret opens nothing")]
fn client(provider: &str, application: Application) -> Table {
    let scopes: Vec<Value> = application.scopes.into_iter().map(Value::from).collect();
    let mut client = Table::new();
    client.insert("provider".to_owned(), provider.into());
    client.insert("client_id".to_owned(), application.client_id.into());
    client.insert("client_secret".to_owned(), application.client_secret.expose_secret().into());
    client.insert("scopes".to_owned(), scopes.into());
    if !application.settings.is_empty() {
        let settings = application.settings.iter();
        let settings = settings.map(|(name, value)| (name.clone(), value.expose_secret().into()));
        client.insert("settings".to_owned(), settings.collect::<Table>().into());
    }
    client
}
