//! Providers: what is known of them, how they are asked, and how their answers are read.

pub mod amocrm;
mod catalogue;
mod check;
mod error;
pub mod network;
mod outbound;
mod profile;
pub mod request;
mod response;
mod salvage;
mod template;
mod vars;

pub use self::{
    catalogue::{Catalogue, ProfileError},
    error::{ProviderError, Verdict},
    network::Network,
    outbound::{MAX_BODY, Outbound, Roots, TlsError},
    profile::{
        AccountCall, Authorize, BodyFormat, ClientAuth, ErrorRule, GrantRequest, Grants,
        KeyExchangeEndpoint, Profile, Resource, Rotation, RuleVerdict, Scalar, Scope, Setting,
        StandardParam, TokenEndpoint, Tokens, Var,
    },
    request::{Authorization, Body, Held, OutboundRequest, RequestError},
    response::{Grant, MAX_TOKEN, Reply, read_account, read_grant, read_retry_after},
    template::{RenderUrlError, Template, TemplateError, Unset, UrlTemplate},
    vars::VarError,
};

#[cfg(test)]
mod test_support;
