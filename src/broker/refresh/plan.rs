//! The plan of a refresh: what to do with a connection, as it is now. Pure.

use jiff::Timestamp;

use crate::{
    broker::RefreshReason,
    domain::{
        broker_code,
        connection::{GrantType, Record},
    },
    provider::Profile,
};

/// The number of attempts that may end without a word before the connection is left alone for a
/// while: it may be the one that kills the processes that try.
const MAX_CRASHES: u32 = 3;

/// The facts that a plan rests on, beside the record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) now: Timestamp,
    pub(super) reason: RefreshReason,
    /// The generation that somebody found wanting; none if the schedule decides.
    pub(super) stale_generation: Option<i64>,
    /// The newest generation of the connection that this process has seen.
    pub(super) cached_generation: Option<i64>,
}

/// What a refresh presents to the token endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Present {
    /// The refresh token that the connection holds.
    RefreshToken,
    /// The client's own credentials (RFC 6749 section 4.4).
    ClientCredentials,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Plan {
    /// Nothing: the refresh is not needed any more.
    UpToDate,
    /// The row lacks a grant that this process has had: somebody put an older one back, and its
    /// refresh token is spent.
    RolledBack,
    /// The tokens were issued at another token endpoint than the profile has now. They are sent to no
    /// other until an operator asks for it.
    EndpointChanged,
    /// The last attempts all ended without a word.
    CrashLoop,
    /// There is nothing that may be presented.
    GiveUp(NoRefreshToken),
    /// Send a request.
    Send(Present),
}

/// Why nothing may be presented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoRefreshToken {
    /// There is no refresh token.
    Missing,
    /// The refresh token was spent, or presenting it again might kill what lives.
    Spent,
}

impl NoRefreshToken {
    /// The code in the API, in records and in the store.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Missing => broker_code::NO_REFRESH_TOKEN,
            Self::Spent => broker_code::LOST_IN_ROTATION,
        }
    }

    /// The sentence for a person.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Missing => "There is no refresh token: the access token lives to its end.",
            Self::Spent => {
                "The refresh token may be spent: it is not presented again, and the access token \
                 lives to its end."
            }
        }
    }
}

/// Decides what a refresh of this connection does. A refresh token that the plan presents may still
/// turn out to be spent: that is in the store.
pub(super) fn plan(record: &Record, profile: &Profile, facts: &Facts) -> Plan {
    if !is_wanted(record, facts) {
        return Plan::UpToDate;
    }
    if facts.cached_generation.is_some_and(|cached| cached > record.generation()) {
        return Plan::RolledBack;
    }
    let by_operator = facts.reason == RefreshReason::Operator;
    let issued_at = record.token_url.as_deref().filter(|_| record.grant.is_some());
    if !by_operator && issued_at.is_some_and(|url| url != profile.token.url.as_str()) {
        return Plan::EndpointChanged;
    }
    // The claim that ran out is one of the crashes; without one it is the next try, an hour later.
    if !by_operator && record.claimed_at.is_some() && record.crashes + 1 >= MAX_CRASHES {
        return Plan::CrashLoop;
    }
    let held = record.grant.as_ref().filter(|_| profile.grants.refresh_token.is_some());
    match held.filter(|grant| grant.refresh.is_some()) {
        None => without_refresh_token(record, NoRefreshToken::Missing),
        Some(grant) => {
            let lives = grant.expires_at > facts.now;
            if profile.tokens.rotation.may_present(record.open_attempts, lives) {
                Plan::Send(Present::RefreshToken)
            } else {
                without_refresh_token(record, NoRefreshToken::Spent)
            }
        }
    }
}

/// The plan where no refresh token may be presented: a client that asks for itself needs none.
fn without_refresh_token(record: &Record, why: NoRefreshToken) -> Plan {
    match record.connection.grant_type {
        GrantType::ClientCredentials => Plan::Send(Present::ClientCredentials),
        GrantType::AuthorizationCode => Plan::GiveUp(why),
    }
}

fn is_wanted(record: &Record, facts: &Facts) -> bool {
    let connection = &record.connection;
    let stale = match facts.stale_generation {
        Some(stale) => record.generation() <= stale,
        // A claim that ran out is due whatever the schedule says.
        None => {
            record.claimed_at.is_some() || connection.refresh_at.is_some_and(|at| at <= facts.now)
        }
    };
    stale && connection.state.refreshes()
}
