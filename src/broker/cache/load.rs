//! From the store into the cache: a record is opened, or it is known why it does not open.

use std::sync::{Arc, atomic::Ordering};

use jiff::Timestamp;

use super::{Cache, CachedConnection, CachedGrant, TokenEnd};
use crate::{
    audit::{Actor, EventKind},
    broker::BrokerError,
    domain::{
        connection::{ConnectionId, State},
        grant::{OpenGrant, SealedGrant},
        record::Record,
        slug::Slug,
    },
    provider::request::{api_base_url, resource_headers},
    seal::{OpenError, secret::Digest},
    store::StoreError,
};

impl Cache {
    /// Takes a record as the store has it into memory, with its access token open. One that does
    /// not open is marked and never served. Where only its key is not known here, what memory holds
    /// goes on being served, and the key's id is given.
    pub(crate) async fn insert(&self, mut record: Record) -> Option<String> {
        let mut lacking = None;
        // A deleted connection is not even opened.
        let deleted = record.connection.state.is_deleted();
        let held = record.grant.as_ref().filter(|_| !deleted);
        let grant = match held.map(|grant| self.open(&record, grant)) {
            None => None,
            Some(Ok(grant)) => Some(grant),
            Some(Err(OpenError::UnknownKey(key))) => {
                tracing::error!(
                    connection.id = %record.connection.id, key,
                    "a stored token is sealed with a key that the key file lacks: put the key into \
                     it; until then only what memory holds is served"
                );
                lacking = Some(key);
                self.grant_of(&record.connection)
            }
            Some(Err(error)) => {
                if !self.mark_unreadable(&mut record, &error).await {
                    // The change comes with the next look at the store.
                    return None;
                }
                None
            }
        };
        let generation = record.generation();
        self.insert_if_newer(CachedConnection {
            generation,
            connection: record.connection,
            grant,
            pending_account: record.pending.and_then(|pending| pending.account),
            changed_at: record.changed_at,
        });
        lacking
    }

    /// Marks a record that does not open. False when the store has something else in its place by
    /// now, of which this is no sign.
    async fn mark_unreadable(&self, record: &mut Record, error: &OpenError) -> bool {
        if record.connection.state == State::IntegrityError {
            return true;
        }
        let id = record.connection.id;
        match self.store.mark_unreadable(id, record.generation()).await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "state not stored");
            }
        }
        record.connection.state = State::IntegrityError;
        tracing::error!(
            connection.id = %id, %error,
            "a stored token does not open; nothing is served until a new consent or a deletion"
        );
        self.audit.emit_for(EventKind::IntegrityError, &Actor::broker(), &record.connection, "");
        true
    }

    fn open(&self, record: &Record, grant: &SealedGrant) -> Result<CachedGrant, OpenError> {
        // The refresh token is not needed here, but one that was tampered with is better known before
        // it is used.
        let OpenGrant { access, .. } = self.vault.open(record.connection.id, grant)?;
        let client = self.clients.get(&record.connection.client);
        let vars = &record.connection.vars;
        Ok(CachedGrant {
            generation: grant.generation(),
            fingerprint: Digest::of(&access).fingerprint(),
            headers: client
                .and_then(|client| resource_headers(client, &access, vars).ok())
                .unwrap_or_default(),
            api_base_url: client.and_then(|client| api_base_url(client, vars).ok()),
            scopes: grant.scopes.clone(),
            received_at: grant.received_at,
            expires_at: grant.expires_at,
            end: TokenEnd::of_stored(grant, self.process.clock.moment()),
            access,
        })
    }

    /// Brings the cache up to date with the store: what other replicas and commands have changed.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        let mark = self.changes_mark.load(Ordering::Relaxed);
        let mark = Timestamp::from_millisecond(mark).unwrap_or(Timestamp::UNIX_EPOCH);
        let changes = self.store.changed_since(mark).await?;
        let mut missing_key = None;
        for record in changes.records {
            missing_key = self.insert(record).await.or(missing_key);
        }
        for (id, name) in changes.deleted {
            self.remove(name.as_str(), id);
        }
        if missing_key.is_none() {
            self.changes_mark.store(changes.mark.as_millisecond(), Ordering::Relaxed);
        }
        // Otherwise all of it is read again the next time, when the key may be there.
        *self.missing_key.lock() = missing_key;
        Ok(())
    }

    /// Takes everything from the store again: what is held may be ahead of it.
    pub(crate) async fn rebuild(&self) -> Result<(), StoreError> {
        let all = self.store.changed_since(Timestamp::UNIX_EPOCH).await?;
        self.clear();
        for record in all.records {
            self.insert(record).await;
        }
        Ok(())
    }

    /// Reads a connection again after a change of our own.
    pub(crate) async fn reload(&self, id: ConnectionId) -> Result<Record, BrokerError> {
        let record = self.store.record_by_id(id).await?.ok_or(BrokerError::Revoked)?;
        self.insert(record.clone()).await;
        Ok(record)
    }

    /// The connection of that name, from memory, or from the store if another replica made it a
    /// moment ago.
    pub(crate) async fn cached_or_load(
        &self,
        name: &str,
    ) -> Result<Arc<CachedConnection>, BrokerError> {
        if let Some(live) = self.connection(name) {
            return Ok(live);
        }
        if name.parse::<Slug>().is_ok()
            && let Some(record) = self.store.record(name).await?
        {
            self.insert(record).await;
        }
        self.connection(name).ok_or_else(|| BrokerError::no_connection(name))
    }
}
