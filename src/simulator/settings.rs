//! Settings of the simulated providers: lives, ports, and the rules that no source confirms.
//!
//! Every secret here is simulated and opens nothing, so it is plain text, and its name says so.
//! A switch stands for a question that no source answers; its default is the harsher reading, or
//! the documented one. All lives are in seconds.

use serde::Deserialize;

pub use super::switch::{
    Denial, ErrorStyle, ExpiresIn, Hydra, MissingSlash, OldAccessToken, OldRefreshToken,
    RedirectUriMismatch, RefreshMode, RefreshParameters, RevocationEndpoint, RotationClass,
    SpaceScopes,
};

/// The simulators of all providers, as sections `[simulators.*]` of the configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatorSettings {
    /// Simulated Admitad.
    pub admitad: AdmitadSettings,
    /// Simulated amoCRM.
    pub amocrm: AmocrmSettings,
    /// Simulated Avito.
    pub avito: AvitoSettings,
    /// Simulated Divar.
    pub divar: DivarSettings,
    /// Simulated Kommo: amoCRM's settings with a port and a redirect URI of its own.
    pub kommo: AmocrmSettings,
}

impl SimulatorSettings {
    /// Lets every simulator take a free port.
    pub fn take_free_ports(&mut self) {
        for port in [
            &mut self.admitad.port,
            &mut self.amocrm.port,
            &mut self.avito.port,
            &mut self.divar.port,
            &mut self.kommo.port,
        ] {
            *port = 0;
        }
    }

    /// Registers `{public_url}/callback/{provider}` wherever no redirect URI is registered yet.
    pub fn register_callbacks(&mut self, public_url: &str) {
        let uri = |provider| format!("{}/callback/{provider}", public_url.trim_end_matches('/'));
        self.admitad.redirect_uri.get_or_insert_with(|| uri("admitad"));
        self.amocrm.redirect_uri.get_or_insert_with(|| uri("amocrm"));
        self.avito.redirect_uri.get_or_insert_with(|| uri("avito"));
        self.kommo.redirect_uri.get_or_insert_with(|| uri("kommo"));
        if self.divar.redirect_uris.is_empty() {
            self.divar.redirect_uris.push(uri("divar"));
        }
    }
}

/// Simulated Avito.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AvitoSettings {
    /// The loopback port; 0 takes a free one.
    pub port: u16,
    /// The life of an access token.
    pub access_life: u32,
    /// The life of a refresh token. No source says.
    pub refresh_life: u32,
    /// The life of a code. No source says.
    pub code_life: u32,
    /// The registered application.
    pub client_id: String,
    /// Its secret.
    pub simulated_client_secret: String,
    /// Its registered redirect URI, the only one that Avito uses.
    pub redirect_uri: Option<String>,
    /// The scopes approved for it.
    pub scopes: Vec<String>,
    /// The accounts that can consent. The first owns the application: client credentials act for
    /// it.
    pub accounts: Vec<Account>,
    /// The redirect from `/token` to `/token/`, which the documented curl lines prepare for.
    pub token_redirect: bool,
    /// The answer to a scope parameter with spaces in place of commas.
    pub space_scopes: SpaceScopes,
    /// The answer to an authorisation request with a `redirect_uri` that is not the registered one.
    pub redirect_uri_mismatch: RedirectUriMismatch,
    /// The fate of the refresh token that was just used.
    pub old_refresh_token: OldRefreshToken,
    /// Under which status the token endpoint reports an error.
    pub error_style: ErrorStyle,
    /// A rotation class in place of its own rule.
    pub rotation: Option<RotationClass>,
    /// For how long after its first use a refresh token still works, in the classes with a grace.
    pub rotation_grace: u32,
}

impl Default for AvitoSettings {
    fn default() -> Self {
        Self {
            port: 0,
            access_life: 86_400,
            refresh_life: 31_536_000,
            code_life: 600,
            client_id: "simulated-avito-client".into(),
            simulated_client_secret: "simulated-avito-secret".into(),
            redirect_uri: None,
            scopes: texts(["user:read", "messenger:read", "messenger:write", "items:info"]),
            accounts: vec![
                Account { id: 10_000_001, name: "Demo shop".into() },
                Account { id: 10_000_002, name: "Second shop".into() },
            ],
            token_redirect: false,
            space_scopes: SpaceScopes::Refuse,
            redirect_uri_mismatch: RedirectUriMismatch::Ignore,
            old_refresh_token: OldRefreshToken::Dies,
            error_style: ErrorStyle::Rfc,
            rotation: None,
            rotation_grace: 60,
        }
    }
}

/// Simulated amoCRM or Kommo.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AmocrmSettings {
    /// The loopback port; 0 takes a free one.
    pub port: u16,
    /// The life of an access token.
    pub access_life: u32,
    /// The life of an unused refresh token.
    pub refresh_life: u32,
    /// The life of a code.
    pub code_life: u32,
    /// The integration's UUID.
    pub client_id: String,
    /// The integration's secret.
    pub simulated_client_secret: String,
    /// Its one registered redirect URI, compared byte for byte in every token request.
    pub redirect_uri: Option<String>,
    /// The rights fixed when the integration was registered.
    pub scopes: Vec<String>,
    /// The accounts that can consent.
    pub accounts: Vec<AmocrmAccount>,
    /// When a refresh token that was used stops working.
    pub refresh_mode: RefreshMode,
    /// The access token names its shard in `api_domain`, as those since 2024-08-21 do.
    pub api_domain: bool,
    /// Kommo: how far `server_time` runs ahead of the simulator's clock.
    pub server_time_skew: i64,
    /// A rotation class in place of its own rule.
    pub rotation: Option<RotationClass>,
    /// For how long after its first use a refresh token still works, in the classes with a grace.
    pub rotation_grace: u32,
}

impl Default for AmocrmSettings {
    fn default() -> Self {
        Self {
            port: 0,
            access_life: 86_400,
            refresh_life: 7_776_000,
            code_life: 1_200,
            client_id: "5130a1ce-51a7-4ed0-8bad-c0ffee000001".into(),
            simulated_client_secret: "simulated-integration-secret".into(),
            redirect_uri: None,
            scopes: texts(["crm", "notifications"]),
            accounts: vec![AmocrmAccount::default()],
            refresh_mode: RefreshMode::Strict,
            api_domain: true,
            server_time_skew: 0,
            rotation: None,
            rotation_grace: 60,
        }
    }
}

/// An account of simulated amoCRM or Kommo, with the user who consents in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AmocrmAccount {
    /// The account's number.
    pub id: u64,
    /// The account's name.
    pub name: String,
    /// The one label before `.amocrm.localhost` or `.kommo.localhost`.
    pub subdomain: String,
    /// The consenting user's number.
    pub user_id: u64,
    /// The user's login, for `exchange_api_key`.
    pub login: String,
    /// The user's API key, for `exchange_api_key`.
    pub simulated_api_key: String,
}

impl Default for AmocrmAccount {
    fn default() -> Self {
        Self {
            id: 20_000_001,
            name: "Demo account".into(),
            subdomain: "demo".into(),
            user_id: 20_000_101,
            login: "demo@example.com".into(),
            simulated_api_key: "simulated-api-key".into(),
        }
    }
}

/// Simulated Admitad.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmitadSettings {
    /// The loopback port; 0 takes a free one.
    pub port: u16,
    /// The life of an access token.
    pub access_life: u32,
    /// The life of a refresh token. No source says.
    pub refresh_life: u32,
    /// The life of a code. No source says.
    pub code_life: u32,
    /// The registered application.
    pub client_id: String,
    /// Its secret.
    pub simulated_client_secret: String,
    /// A redirect URI on the application's primary domain; only its domain is compared.
    pub redirect_uri: Option<String>,
    /// The scopes the application may ask for.
    pub scopes: Vec<String>,
    /// The accounts that can consent. The first owns the application: client credentials act for
    /// it.
    pub accounts: Vec<Account>,
    /// The answer to `/token` without the trailing slash.
    pub missing_slash: MissingSlash,
    /// The type of `expires_in`.
    pub expires_in: ExpiresIn,
    /// The most access tokens that may be alive at once. The real number is not known.
    pub token_cap: usize,
    /// The fate of the refresh token that was just used.
    pub old_refresh_token: OldRefreshToken,
    /// A rotation class in place of its own rule.
    pub rotation: Option<RotationClass>,
    /// For how long after its first use a refresh token still works, in the classes with a grace.
    pub rotation_grace: u32,
}

impl Default for AdmitadSettings {
    fn default() -> Self {
        Self {
            port: 0,
            access_life: 604_800,
            refresh_life: 31_536_000,
            code_life: 600,
            client_id: "simulated-admitad-client".into(),
            simulated_client_secret: "simulated-admitad-secret".into(),
            redirect_uri: None,
            scopes: texts(["private_data", "public_data", "websites", "advcampaigns"]),
            accounts: vec![
                Account { id: 30_000_001, name: "webmaster1".into() },
                Account { id: 30_000_002, name: "webmaster2".into() },
            ],
            missing_slash: MissingSlash::Redirect,
            expires_in: ExpiresIn::Number,
            token_cap: 1_000,
            old_refresh_token: OldRefreshToken::Dies,
            rotation: None,
            rotation_grace: 60,
        }
    }
}

/// Simulated Divar Kenar.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DivarSettings {
    /// The loopback port; 0 takes a free one.
    pub port: u16,
    /// The life of an access token.
    pub access_life: u32,
    /// The life of a refresh token; each rotation starts a full new life.
    pub refresh_life: u32,
    /// The life of a code: Hydra's default, Divar's own value is not known.
    pub code_life: u32,
    /// The application's slug.
    pub client_id: String,
    /// Its secret.
    pub simulated_client_secret: String,
    /// Its API key, which every resource call carries in `x-api-key`.
    pub simulated_api_key: String,
    /// The redirect URIs registered in the panel.
    pub redirect_uris: Vec<String>,
    /// The names of the scopes it may ask for, each alone or as `NAME.identifier`.
    pub scopes: Vec<String>,
    /// The users who can consent.
    pub users: Vec<DivarUser>,
    /// For how long after its first use a rotated refresh token still works; 0 for no grace.
    pub grace: u32,
    /// The fate of the old access token during the grace.
    pub old_access_token: OldAccessToken,
    /// The need of a refresh for `code` (the current access token) and `redirect_uri`.
    pub refresh_parameters: RefreshParameters,
    /// The revocation endpoint, `/oauth2/revoke`.
    pub revocation: RevocationEndpoint,
    /// The callback of a refusal.
    pub denial: Denial,
    /// The family of the token endpoint's errors.
    pub hydra: Hydra,
    /// A rotation class in place of its own rule.
    pub rotation: Option<RotationClass>,
    /// For how long after its first use a refresh token still works, in the classes with a grace.
    pub rotation_grace: u32,
}

impl Default for DivarSettings {
    fn default() -> Self {
        Self {
            port: 0,
            access_life: 3_600,
            refresh_life: 2_592_000,
            code_life: 600,
            client_id: "simulated-divar-app".into(),
            simulated_client_secret: "simulated-divar-secret".into(),
            simulated_api_key: "simulated-divar-api-key".into(),
            redirect_uris: Vec::new(),
            scopes: texts([
                "USER_ID",
                "USER_PHONE",
                "offline_access",
                "CONVERSATION_SEND_MESSAGE",
                "CHAT_MESSAGE_SEND",
            ]),
            users: vec![
                DivarUser { id: "simulated-user-1".into(), phone_number: "09000000001".into() },
                DivarUser { id: "simulated-user-2".into(), phone_number: "09000000002".into() },
            ],
            grace: 120,
            old_access_token: OldAccessToken::Dies,
            refresh_parameters: RefreshParameters::Required,
            revocation: RevocationEndpoint::Absent,
            denial: Denial::Error,
            hydra: Hydra::Current,
            rotation: None,
            rotation_grace: 60,
        }
    }
}

/// An account of simulated Avito or Admitad.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// The account's number.
    pub id: u64,
    /// The account's name.
    pub name: String,
}

/// A user of simulated Divar.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DivarUser {
    /// The user's id, as this application sees it.
    pub id: String,
    /// The user's phone number.
    pub phone_number: String,
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(String::from).to_vec()
}
