//! Callers of the internal listener, as extractors.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{Extensions, HeaderMap, header, request::Parts},
};
use secrecy::SecretString;

use super::{AppState, Problem};
use crate::{
    audit::Actor,
    broker::{BrokerError, Caller},
    domain::{caller::Service, slug::Slug},
};

/// An operator's key was shown. Until an operator exists their routes answer 404.
#[derive(Debug)]
pub(crate) struct Operator {
    /// The operator.
    pub(crate) name: Slug,
    /// The same for the record: who, and from where.
    pub(crate) by: Actor,
}

/// The other end of the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) Option<IpAddr>);

/// A service's key was shown.
#[derive(Debug)]
pub(crate) struct ServiceCaller(pub(crate) Arc<Service>);

/// Either key was shown.
#[derive(Debug)]
pub(crate) struct AnyCaller(pub(crate) Caller);

impl FromRequestParts<AppState> for AnyCaller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let key = bearer(&parts.headers).ok_or(BrokerError::Unauthorized)?;
        Ok(Self(state.broker.authenticate(&key)?))
    }
}

impl FromRequestParts<AppState> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        if !state.broker.has_operators() {
            let advice = "there is no operator yet; run `token-broker operators create NAME`";
            return Err(BrokerError::NotFound(advice.to_owned()).into());
        }
        let AnyCaller(caller) = AnyCaller::from_request_parts(parts, state).await?;
        let by = Actor::new(caller.label(), peer(&parts.extensions));
        match caller {
            Caller::Operator(name) => Ok(Self { name, by }),
            Caller::Service(_) => Err(BrokerError::Forbidden(
                "this route is for operators; a service's key was shown".to_owned(),
            )
            .into()),
        }
    }
}

impl FromRequestParts<AppState> for ServiceCaller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let AnyCaller(caller) = AnyCaller::from_request_parts(parts, state).await?;
        match caller {
            Caller::Service(service) => Ok(Self(service)),
            Caller::Operator(_) => Err(BrokerError::Forbidden(
                "tokens are for services; an operator's key was shown".to_owned(),
            )
            .into()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(peer(&parts.extensions)))
    }
}

/// The address at the other end of a request's socket.
pub(crate) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip())
}

/// The key in `Authorization: Bearer KEY` (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| SecretString::from(key.trim()))
}
