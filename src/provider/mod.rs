//! Providers: profiles, requests made from them, answers, and the HTTP client for both.
//!
//! A provider is data: one TOML file, a [`Profile`]. [`request`] makes requests from it and
//! [`read_grant`] reads the answers, both without a socket; [`Outbound`] sends. Rules that data
//! cannot express are in a file of the provider's name, such as [`amocrm`].
//!
//! May use: `domain`, the clock and the failpoints; never `store`. Used by `broker`, by `config`,
//! which checks clients against profiles, and by the commands.
//!
//! # How to add a provider
//!
//! Put a file into the folder of providers; its name is the provider's. A profile says only what
//! differs from RFC 6749, so a provider that keeps to it needs little:
//!
//! ```
//! # let toml = r#"
//! title = "Example"
//!
//! [authorize]                               # only where a person consents
//! url = "https://id.example.com/authorize"  # PKCE is used unless pkce = false
//!
//! [token]
//! url = "https://id.example.com/token"
//!
//! [grants.authorization_code]               # what is not listed is not offered
//! client_auth = "basic"                     # or "body"
//! [grants.refresh_token]
//! client_auth = "basic"
//!
//! [account]                                 # who consented: JSON pointers into the answer
//! url = "https://api.example.com/me"
//! id = "/user/id"
//!
//! [resource]                                # told to the services
//! base_url = "https://api.example.com"
//! # "#;
//! # let overlays = [("example".parse()?, toml.parse()?)].into();
//! # token_broker::provider::Catalogue::load(None, &overlays)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The rest, each with its default:
//!
//! | setting | meaning |
//! |---|---|
//! | `network` | `"public"`: https on port 443 of public addresses; `"loopback"`: this machine; a table `[network.private]` with `hosts` and `networks`: https there |
//! | `vars.<name>` | a value that differs between accounts, for `{name}` in a URL: `suffixes` (one DNS label under one of these) or `allow` (a list), and `from_callback`, the parameter that brings it, unless an operator gives it |
//! | `scope` | `separator` (a space); `always`: scopes that every request asks for |
//! | `authorize`, `grants.*` | `omit`: standard parameters that are not sent; `params`: others that are |
//! | `token` | `body`: `"form"` or `"json"`; `timeout` (`"40s"`) |
//! | `revocation` | where tokens are revoked (RFC 7009) when a connection is deleted: `url`, `client_auth`, and `token`: `"refresh"` (the default) or `"access"`. Without it a person is told to remove the application |
//! | `tokens` | `access_life` (`"10m"`) where the answer does not say; `max_access_life` (`"90d"`); `refresh_idle_life`; `rotation`: `"single_use"`, `"single_use_family"`, `"grace"` with `grace`, or `"none"` |
//! | `pace` | for each replica: `per_second` (5) token requests, `burst` (10) of them at once after a pause, `in_flight` (8) background refreshes at a time |
//! | `[[errors]]` | what a refusal means: `status`, `match` (JSON pointer to value) and `absent` (JSON pointers) must all fit; `verdict`: `"refused"` with a `reason`, `"misconfigured"`, `"busy"` or `"retry"`. The first that fits decides, then RFC 6749 section 5.2 |
//! | `account` | `name`, `aliases`: more JSON pointers; `headers`, if not those of `resource` |
//! | `resource` | `headers` (`Authorization = "Bearer {access_token}"`) |
//! | `client.<name>` | a secret that every client needs; `about` says what it is |
//!
//! `{name}` may be a var or a client's setting, `client_id`, `redirect_uri`, and in headers and a
//! refresh `access_token`. The same settings under `[providers.profiles.<name>]` of the configuration are
//! laid over a profile: tables are merged, anything else is replaced.
pub mod amocrm;
mod catalogue;
mod check;
pub mod client;
mod error;
mod network;
mod outbound;
mod profile;
mod reply;
pub mod request;
mod response;
mod revocation;
mod salvage;
mod template;
mod vars;

pub use self::{
    catalogue::{Catalogue, ProfileError},
    error::{ErrorCode, ProviderError, Verdict},
    network::{Network, NotASubnet, OutOfBounds, Subnet},
    outbound::{MAX_BODY, Outbound, TlsError, TrustAnchors},
    profile::{
        AccountCall, Authorize, BodyFormat, ClientAuth, ErrorRule, GrantRequest, Grants,
        KeyExchangeEndpoint, Pace, Profile, Resource, Revocation, RevokedToken, Rotation,
        RuleVerdict, Scalar, Scope, Setting, StandardParam, TokenEndpoint, Tokens, Var,
    },
    reply::{MAX_TOKEN, Reply},
    request::{Authorization, Body, CurrentTokens, OutboundRequest, RequestError},
    response::{Grant, read_account, read_grant, read_retry_after},
    revocation::read_revocation,
    template::{RenderUrlError, Template, TemplateError, Unset, UrlTemplate},
    vars::VarError,
};

#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
