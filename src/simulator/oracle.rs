//! The oracle: a simulated provider's knowledge, which a real one would never tell.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::seal::secret::Digest;

/// A code, an access token or a refresh token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An authorization code.
    Code,
    /// An access token.
    Access,
    /// A refresh token.
    Refresh,
}

/// Why a code or token no longer works.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Its life is over.
    Expired,
    /// A code that was redeemed.
    Redeemed,
    /// A newer pair took its place.
    Rotated,
    /// The code behind it was presented a second time.
    CodeReused,
    /// A refresh token of its chain was presented after its end.
    RefreshReused,
    /// The client asked for its end (RFC 7009).
    Revoked,
}

/// The endpoint that a request arrived at.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// The account call, a protected resource.
    Account,
    /// The consent page.
    Authorize,
    /// A press of Allow or Deny.
    Decision,
    /// Anything that was sent to a host which is none of the provider's.
    Elsewhere,
    /// amoCRM's `exchange_api_key`.
    ExchangeApiKey,
    /// The revocation endpoint.
    Revocation,
    /// The token endpoint.
    Token,
}

/// A view of everything issued and presented, at one instant of the simulator's clock.
#[derive(Clone, Debug, Serialize)]
pub struct Oracle {
    /// The simulator's clock.
    pub now: Timestamp,
    /// Requests that arrived, by endpoint.
    pub requests: BTreeMap<Endpoint, u64>,
    /// Codes and tokens that arrived but were never issued here, by endpoint.
    pub unknown: BTreeMap<Endpoint, u64>,
    /// Every code and token ever issued, in order of issue.
    pub known: Vec<Known>,
}

impl Oracle {
    /// The entry of a code or token.
    pub fn of(&self, text: &str) -> Option<&Known> {
        let fingerprint = Digest::of_bytes(text.as_bytes()).fingerprint();
        self.known.iter().find(|known| known.fingerprint == fingerprint)
    }

    /// The refresh tokens that work now, by chain: a client that has one of them needs no person.
    ///
    /// Every chain is there that was ever given a refresh token; nothing can save one without any.
    pub fn live_refresh_tokens(&self) -> BTreeMap<usize, Vec<&Known>> {
        let mut chains = BTreeMap::<_, Vec<_>>::new();
        for token in self.refresh_tokens() {
            chains.entry(token.chain).or_default().extend(token.alive.then_some(token));
        }
        chains
    }

    /// The arrivals of the refresh token that arrived most often, whatever was answered.
    pub fn most_presentations(&self) -> u64 {
        self.refresh_tokens().map(|token| token.presented.values().sum()).max().unwrap_or(0)
    }

    fn refresh_tokens(&self) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(|known| known.kind == Kind::Refresh)
    }
}

/// A code or token that was issued.
#[derive(Clone, Debug, Serialize)]
pub struct Known {
    /// Its number in order of issue, from 1.
    pub id: usize,
    /// The first 16 hexadecimal digits of its SHA-256 digest.
    pub fingerprint: String,
    /// The kind.
    pub kind: Kind,
    /// The authorisation it came from, from 1: a consent or one client-credentials request.
    pub chain: usize,
    /// The number of its pair within the chain, from 1; a code has 0.
    pub generation: u32,
    /// The account that it acts for.
    pub account: String,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends or ended.
    pub ends_at: Timestamp,
    /// True while it works.
    pub alive: bool,
    /// Why it no longer works.
    pub ended: Option<End>,
    /// Arrivals by endpoint, whatever was answered.
    pub presented: BTreeMap<Endpoint, u64>,
}
