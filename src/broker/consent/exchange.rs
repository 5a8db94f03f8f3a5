//! The exchange of a code: once, never again, and what becomes of the grant that it brings.
//!
//! Where an answer was unusable but for a refresh token, that token is presented once: beside the
//! [refresh](crate::broker::refresh), the only place that does so.

use std::sync::Arc;

use secrecy::SecretString;

use crate::{
    broker::{
        BrokerError,
        cache::Cache,
        provider_calls::ProviderCalls,
        recovery::Recovery,
        refresh::{commit::Committer, schedule::due_at},
        vault::Vault,
    },
    clock::Clock,
    domain::{
        connection::{Account, Connection, State, Vars},
        consent::{Ending, Outcome, extra_scopes, missing_scopes},
        grant::{GrantSlot, OpenGrant, PendingGrant},
        record::Record,
    },
    provider::{CurrentTokens, Grant, ProviderError, Verdict, client::Client, request},
    store::{self, Store, retry::retry_forever},
};

/// Exchanges codes, and stores what they bring.
#[derive(Debug)]
pub(crate) struct CodeExchange {
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) calls: Arc<ProviderCalls>,
    pub(crate) committer: Arc<Committer>,
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) clock: Clock,
}

impl CodeExchange {
    /// Exchanges a code, finds out whose account it is, and stores the grant: live when the
    /// account is the one that was meant, waiting for confirmation otherwise.
    pub(crate) async fn run(
        &self,
        client: &Client,
        record: Record,
        exchange: Exchange<'_>,
    ) -> Result<Ending, BrokerError> {
        let request = request::code_exchange(
            client,
            &exchange.code,
            exchange.verifier.as_ref(),
            exchange.redirect_uri,
            &exchange.vars,
        )
        .map_err(|error| BrokerError::Misconfigured(error.to_string()))?;
        let sent_at = self.clock.now();
        let connection = &record.connection;
        let mut reply = self.calls.token(client, request, None).await;
        if let Err(error) = &reply {
            log_exchange_failure(connection, error);
        }
        if let Err(ProviderError { salvaged_refresh: Some(refresh), .. }) = &reply {
            // The code is spent, and the refresh token is all that came of it: it brings the rest.
            let held = CurrentTokens { refresh, access: &SecretString::default() };
            let request = request::refresh(client, held, exchange.redirect_uri, &exchange.vars)
                .map_err(|error| BrokerError::Misconfigured(error.to_string()))?;
            reply = self.calls.token(client, request, None).await.map(|grant| Grant {
                refresh: grant.refresh.or_else(|| Some(refresh.clone())),
                ..grant
            });
        }
        let grant = match reply {
            Ok(grant) => grant,
            Err(ProviderError { verdict: Verdict::Ambiguous, .. }) => {
                return Ok(Outcome::Ambiguous.into());
            }
            Err(_) => return Ok(Outcome::Failed.into()),
        };
        let account = self.calls.account(client, &grant.access, &exchange.vars).await;
        let account = account.unwrap_or_else(|error| {
            tracing::warn!(connection.name = %connection.name, "account unknown: {}", error.message);
            None
        });
        let received = OpenGrant {
            access: grant.access,
            refresh: grant.refresh,
            scopes: grant.scopes.unwrap_or_else(|| exchange.scopes.to_vec()),
            received_at: sent_at,
            expires_at: sent_at + grant.expires_in,
            origin: None,
        };
        self.store_consented(client, record, &received, account, exchange).await
    }

    /// Stores a grant that a consent brought, as its account is judged against the connection as it is
    /// at that moment: whatever was stored for it meanwhile counts.
    async fn store_consented(
        &self,
        client: &Client,
        mut record: Record,
        received: &OpenGrant,
        account: Option<Account>,
        exchange: Exchange<'_>,
    ) -> Result<Ending, BrokerError> {
        let id = record.connection.id;
        let missing = missing_scopes(exchange.scopes, &received.scopes);
        if !missing.is_empty() {
            tracing::warn!(
                connection.name = %record.connection.name, ?missing,
                "not every scope was granted; the grant waits to be confirmed"
            );
        }
        let extra = extra_scopes(exchange.scopes, &received.scopes);
        if !extra.is_empty() {
            let name = &record.connection.name;
            tracing::warn!(connection.name = %name, ?extra, "more scopes were granted than asked for");
        }
        let ending = Ending {
            outcome: Outcome::Connected,
            account: account.as_ref().map(|account| account.id.clone()),
            remark: (!extra.is_empty()).then(|| format!("not asked for: {}", extra.join(" "))),
        };
        loop {
            let verified = match judge_account(&record.connection, account.as_ref(), &exchange) {
                // A grant without all its scopes, or of a deleted connection, waits for a person.
                Verified::Meant if !missing.is_empty() || record.connection.state.is_deleted() => {
                    Verified::Unknown
                }
                verified => verified,
            };
            match verified {
                Verified::Refused => {
                    let name = &record.connection.name;
                    tracing::warn!(connection.name = %name, "another account consented");
                    return Ok(Outcome::WrongAccount.into());
                }
                Verified::Unknown => {
                    let pending = PendingGrant {
                        grant: self.vault.seal(id, GrantSlot::Pending, received),
                        account,
                        vars: exchange.vars,
                        token_url: Some(client.profile.token.url.as_str().to_owned()),
                    };
                    if !retry_forever(|| self.store.durable().put_pending(id, &pending)).await {
                        return Err(BrokerError::Revoked);
                    }
                    self.cache.reload(id).await?;
                    return Ok(Ending { outcome: Outcome::PendingConfirm, ..ending });
                }
                Verified::Meant => {}
            }
            let account = account.as_ref();
            match self.commit_consented(client, &record, received, account, &exchange).await? {
                None => break,
                Some(newest) => record = newest,
            }
        }
        self.recovery.raise_watermark();
        self.cache.reload(id).await?;
        tracing::info!(connection.name = %record.connection.name, "consent stored");
        Ok(ending)
    }

    /// Makes a grant live if the connection is still as it was judged; otherwise returns it as it is
    /// now, to be judged anew.
    async fn commit_consented(
        &self,
        client: &Client,
        judged: &Record,
        received: &OpenGrant,
        account: Option<&Account>,
        exchange: &Exchange<'_>,
    ) -> Result<Option<Record>, BrokerError> {
        let connection = &judged.connection;
        let generation = judged.generation() + 1;
        let next = self.committer.seal_live(connection.id, generation, received);
        let commit = store::Commit {
            connection: connection.id,
            grant: &next,
            source: store::Source::Consent { judged: connection },
            refresh_at: due_at(client, connection, &next),
            account,
            vars: Some(&exchange.vars),
            scopes: Some(exchange.scopes),
            token_url: Some(client.profile.token.url.as_str()),
            refresh_hash: received.refresh_hash(),
        };
        if retry_forever(|| self.store.durable().commit_grant(&commit)).await {
            return Ok(None);
        }
        let newest = retry_forever(|| self.store.record_by_id(connection.id)).await;
        let newest = newest.ok_or(BrokerError::Revoked)?;
        if newest.connection.state == State::Revoked {
            return Err(BrokerError::Revoked);
        }
        let ours = newest.grant.as_ref().is_some_and(|held| held.access == next.access);
        let spent = match commit.refresh_hash {
            Some(hash) => retry_forever(|| self.store.is_spent(&hash)).await,
            None => false,
        };
        // Ours was stored, and the answer was lost; or it was refreshed since. Otherwise another grant
        // came first.
        Ok(if ours || spent { None } else { Some(newest) })
    }
}

/// A code with all that its exchange needs.
pub(crate) struct Exchange<'a> {
    pub(crate) code: SecretString,
    pub(crate) verifier: Option<SecretString>,
    pub(crate) redirect_uri: &'a str,
    pub(crate) vars: Vars,
    pub(crate) scopes: &'a [String],
    pub(crate) expected_account: Option<&'a str>,
    pub(crate) own_browser: bool,
}

/// The verdict on the account that consented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verified {
    Meant,
    Refused,
    Unknown,
}

fn judge_account(
    connection: &Connection,
    account: Option<&Account>,
    exchange: &Exchange<'_>,
) -> Verified {
    let pinned = connection.account.as_ref();
    let same = match (pinned, account) {
        (Some(pinned), Some(account)) => Some(pinned.id == account.id),
        (Some(_), None) => Some(false),
        (None, _) => None,
    };
    match (exchange.expected_account, account) {
        (Some(expected), Some(account)) if !account.answers_to(expected) => Verified::Refused,
        // A connection never changes hands without a person saying so.
        _ if same == Some(false) => Verified::Unknown,
        (Some(_), Some(_)) => Verified::Meant,
        (None, _) if same == Some(true) || exchange.own_browser => Verified::Meant,
        _ => Verified::Unknown,
    }
}

fn log_exchange_failure(connection: &Connection, error: &ProviderError) {
    tracing::warn!(
        connection.name = %connection.name, verdict = ?error.verdict, status = error.status,
        code = error.code, "the code was not exchanged: {}", error.message
    );
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::domain::connection::{ConnectionId, GrantType};

    fn account(id: &str) -> Account {
        Account { id: id.to_owned(), name: None, aliases: vec![format!("sub-{id}")] }
    }

    fn connection(pinned: Option<&str>) -> Connection {
        Connection {
            id: ConnectionId::new(),
            name: "c".parse().unwrap(),
            client: "c".parse().unwrap(),
            grant_type: GrantType::AuthorizationCode,
            scopes: Vec::new(),
            state: State::Active,
            reason: None,
            account: pinned.map(account),
            expected_account: None,
            vars: Vars::new(),
            created_at: Timestamp::UNIX_EPOCH,
            refresh_at: None,
            failures: 0,
            last_error: None,
        }
    }

    fn judge(
        pinned: Option<&str>,
        expected: Option<&str>,
        own_browser: bool,
        who: Option<&str>,
    ) -> Verified {
        let exchange = Exchange {
            code: SecretString::from(""),
            verifier: None,
            redirect_uri: "",
            vars: Vars::new(),
            scopes: &[],
            expected_account: expected,
            own_browser,
        };
        judge_account(&connection(pinned), who.map(account).as_ref(), &exchange)
    }

    #[test]
    fn an_account_is_meant_when_expected_own_or_the_same_as_before() {
        assert_eq!(judge(None, Some("1"), false, Some("1")), Verified::Meant);
        assert_eq!(judge(None, Some("sub-1"), false, Some("1")), Verified::Meant);
        assert_eq!(judge(None, None, true, Some("1")), Verified::Meant);
        assert_eq!(judge(Some("1"), None, false, Some("1")), Verified::Meant);
    }

    #[test]
    fn any_other_account_waits_or_is_refused() {
        assert_eq!(judge(None, None, false, Some("1")), Verified::Unknown);
        assert_eq!(judge(None, Some("1"), false, None), Verified::Unknown);
        assert_eq!(judge(None, Some("1"), false, Some("2")), Verified::Refused);
        assert_eq!(judge(None, Some("1"), true, Some("2")), Verified::Refused);
    }

    #[test]
    fn a_connection_never_changes_hands_silently() {
        assert_eq!(judge(Some("1"), None, false, Some("2")), Verified::Unknown);
        assert_eq!(judge(Some("1"), None, true, Some("2")), Verified::Unknown);
        assert_eq!(judge(Some("1"), Some("2"), false, Some("2")), Verified::Unknown);
        assert_eq!(judge(Some("1"), None, true, None), Verified::Unknown);
    }
}
