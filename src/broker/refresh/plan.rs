//! The plan of a refresh: what to do with a connection, as it is now. Pure.

use jiff::Timestamp;

use crate::{
    broker::RefreshReason,
    domain::{broker_code, connection::GrantType, record::Record},
    provider::Profile,
};

/// The number of attempts that may end without a word before the connection is left alone for a
/// while: it may be the one that kills the processes that try.
const MAX_CRASHES: u32 = 3;

/// The facts that a plan rests on, beside the record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) now: Timestamp,
    pub(crate) reason: RefreshReason,
    /// The generation that somebody found wanting; none if the schedule decides.
    pub(crate) stale_generation: Option<i64>,
    /// The newest generation of the connection that this process has seen.
    pub(crate) cached_generation: Option<i64>,
}

/// The credential that a refresh presents to the token endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Present {
    /// The refresh token that the connection holds.
    RefreshToken,
    /// The client's own credentials (RFC 6749 section 4.4).
    ClientCredentials,
}

/// The next step of a refresh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Plan {
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
pub(crate) enum NoRefreshToken {
    /// There is no refresh token.
    Missing,
    /// The refresh token was spent, or presenting it again might kill what lives.
    Spent,
}

impl NoRefreshToken {
    /// The code in the API, in records and in the store.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Missing => broker_code::NO_REFRESH_TOKEN,
            Self::Spent => broker_code::LOST_IN_ROTATION,
        }
    }

    /// The sentence for a person.
    pub(crate) fn sentence(self) -> &'static str {
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
pub(crate) fn plan(record: &Record, profile: &Profile, facts: &Facts) -> Plan {
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
pub(super) fn without_refresh_token(record: &Record, why: NoRefreshToken) -> Plan {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        domain::{
            connection::{Connection, ConnectionId, State, Vars},
            grant::{GrantSlot, SealedGrant},
        },
        provider::Catalogue,
        seal::Sealed,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn profile() -> Profile {
        Catalogue::load(None, &BTreeMap::new()).unwrap().get("avito").unwrap().as_ref().clone()
    }

    /// A connection that holds generation 7, whose token lives until 200 and is due at 100.
    fn record(profile: &Profile) -> Record {
        Record {
            connection: Connection {
                id: ConnectionId::new(),
                name: "c".parse().unwrap(),
                client: "c".parse().unwrap(),
                grant_type: GrantType::AuthorizationCode,
                scopes: Vec::new(),
                state: State::Active,
                reason: None,
                account: None,
                expected_account: None,
                vars: Vars::new(),
                created_at: at(0),
                refresh_at: Some(at(100)),
                failures: 0,
                last_error: None,
            },
            grant: Some(SealedGrant {
                slot: GrantSlot::Live { generation: 7 },
                access: Sealed::from_stored(String::new()),
                refresh: Some(Sealed::from_stored(String::new())),
                scopes: Vec::new(),
                received_at: at(0),
                expires_at: at(200),
                origin: None,
            }),
            pending: None,
            token_url: Some(profile.token.url.as_str().to_owned()),
            open_attempts: 0,
            crashes: 0,
            claimed_at: None,
            changed_at: at(0),
        }
    }

    fn due(now: i64) -> Facts {
        let reason = RefreshReason::Due;
        Facts { now: at(now), reason, stale_generation: None, cached_generation: Some(7) }
    }

    #[test]
    fn only_what_is_still_needed_is_done() {
        let profile = profile();
        let (record, send) = (record(&profile), Plan::Send(Present::RefreshToken));
        assert_eq!(plan(&record, &profile, &due(99)), Plan::UpToDate, "it is not due yet");
        assert_eq!(plan(&record, &profile, &due(100)), send);
        let claimed = Record { claimed_at: Some(at(1)), ..record.clone() };
        assert_eq!(plan(&claimed, &profile, &due(99)), send, "a claim that ran out is due");
        let wanted = |stale| Facts { stale_generation: Some(stale), ..due(0) };
        assert_eq!(plan(&record, &profile, &wanted(7)), send, "whatever the schedule says");
        assert_eq!(plan(&record, &profile, &wanted(6)), Plan::UpToDate, "somebody was quicker");
        let mut quarantined = record;
        quarantined.connection.state = State::Quarantined;
        assert_eq!(plan(&quarantined, &profile, &due(100)), Plan::UpToDate);
    }

    #[test]
    fn nothing_is_presented_on_doubtful_ground() {
        let profile = profile();
        let record = record(&profile);
        let newer = Facts { cached_generation: Some(8), ..due(100) };
        assert_eq!(plan(&record, &profile, &newer), Plan::RolledBack);
        let operator = |facts: Facts| Facts { reason: RefreshReason::Operator, ..facts };
        assert_eq!(plan(&record, &profile, &operator(newer)), Plan::RolledBack, "for nobody");

        let moved = Record { token_url: Some("https://old.example/".into()), ..record.clone() };
        assert_eq!(plan(&moved, &profile, &due(100)), Plan::EndpointChanged);
        let send = Plan::Send(Present::RefreshToken);
        assert_eq!(plan(&moved, &profile, &operator(due(100))), send, "who asks accepts it");

        let crashed = Record { claimed_at: Some(at(1)), crashes: 2, ..record };
        assert_eq!(plan(&crashed, &profile, &due(100)), Plan::CrashLoop);
        assert_eq!(plan(&crashed, &profile, &operator(due(100))), send);
        let an_hour_later = Record { claimed_at: None, ..crashed };
        assert_eq!(plan(&an_hour_later, &profile, &due(100)), send);
    }

    #[test]
    fn without_a_refresh_token_only_a_client_that_asks_for_itself_goes_on() {
        let profile = profile();
        let mut record = record(&profile);
        record.grant.as_mut().unwrap().refresh = None;
        let missing = Plan::GiveUp(NoRefreshToken::Missing);
        assert_eq!(plan(&record, &profile, &due(100)), missing);
        record.connection.grant_type = GrantType::ClientCredentials;
        assert_eq!(plan(&record, &profile, &due(100)), Plan::Send(Present::ClientCredentials));
        record.grant = None;
        let none = Facts { cached_generation: None, ..due(100) };
        assert_eq!(plan(&record, &profile, &none), Plan::Send(Present::ClientCredentials));
    }

    #[test]
    fn a_token_that_may_be_spent_is_presented_as_its_rotation_allows() {
        use crate::provider::Rotation;
        let mut profile = profile();
        let open = Record { open_attempts: 1, ..record(&profile) };
        for rotation in
            [Rotation::None, Rotation::Grace, Rotation::SingleUse, Rotation::SingleUseFamily]
        {
            profile.tokens.rotation = rotation;
            for now in [100, 300] {
                let expected = if rotation.may_present(1, now < 200) {
                    Plan::Send(Present::RefreshToken)
                } else {
                    Plan::GiveUp(NoRefreshToken::Spent)
                };
                assert_eq!(plan(&open, &profile, &due(now)), expected, "{rotation:?} at {now}");
            }
        }
        profile.tokens.rotation = Rotation::SingleUseFamily;
        assert_eq!(plan(&open, &profile, &due(100)), Plan::GiveUp(NoRefreshToken::Spent));
    }
}
