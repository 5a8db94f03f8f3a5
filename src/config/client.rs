//! The settings of a client, checked against the provider's profile.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use secrecy::SecretString;
use url::Url;

use super::{
    ConfigError,
    raw::{self, List},
    secret::one_of,
    wrong,
};
use crate::{
    domain::{caller::Pattern, slug::Slug},
    provider::{
        Catalogue,
        client::{Client, choose_grant},
    },
};

impl raw::Client {
    pub(super) fn check(
        mut self,
        name: &Slug,
        providers: &Catalogue,
        public_url: &Url,
    ) -> Result<Client, ConfigError> {
        let setting = |key: &str| format!("clients.{name}.{key}");
        let profile = providers.get(&self.provider).ok_or_else(|| {
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
        let grant = self.grant.map(|word| word.parse()).transpose().map_err(|_| {
            wrong(setting("grant"), "expected authorization_code or client_credentials")
        })?;
        let grant_type =
            choose_grant(profile, grant).map_err(|problem| wrong(setting("grant"), problem))?;
        let services = self.services.map_or_else(|| vec!["*".to_owned()], List::into_vec);
        let services = services.into_iter().map(Pattern::try_from).collect::<Result<_, _>>();
        let services =
            services.map_err(|problem| wrong(setting("services"), problem.to_string()))?;
        let client = Client {
            name: name.clone(),
            profile: Arc::clone(profile),
            client_id: self.client_id,
            client_secret,
            settings,
            scopes: self.scopes.into_vec(),
            services,
            grant_type,
            redirect_uri: redirect_uri(public_url, name),
        };
        client.check_scopes(&client.scopes).map_err(|problem| wrong(setting("scopes"), problem))?;
        Ok(client)
    }
}

/// The one redirect URI of a client, to be registered at the provider byte for byte.
pub fn redirect_uri(public_url: &Url, client: &Slug) -> String {
    format!("{}/callback/{client}", public_url.as_str().trim_end_matches('/'))
}

#[expect(clippy::disallowed_methods, reason = "a path beside secrets is not one itself")]
fn path_from_setting(value: &SecretString) -> PathBuf {
    use secrecy::ExposeSecret as _;
    PathBuf::from(value.expose_secret())
}
