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
//! [The profile format](crate::guide::profiles) has every field, with its default and what it is for.

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
