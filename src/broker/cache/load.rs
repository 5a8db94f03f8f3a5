//! From the store into memory: a record is opened, or it is known why it does not open.

use std::sync::Arc;

use super::{CachedConnection, CachedGrant, End};
use crate::{
    audit::{Actor, EventKind},
    broker::{Broker, BrokerError},
    domain::{
        connection::{ConnectionId, HeldGrant, Record, State},
        slug::Slug,
    },
    provider::request::{api_base_url, resource_headers},
    seal::{OpenError, Place, secret::Digest},
};

impl Broker {
    /// Takes a record as the store has it into memory, with its access token open. One that does
    /// not open is marked and never served. Where only its key is not known here, what memory holds
    /// goes on being served, and the key's id is given.
    pub(crate) async fn cache_record(&self, mut record: Record) -> Option<String> {
        let mut lacking = None;
        // What was deleted is not even opened.
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
                self.memory.grant_of(&record.connection)
            }
            Some(Err(error)) => {
                if !self.mark_unreadable(&mut record, &error).await {
                    // What has changed comes with the next look at the store.
                    return None;
                }
                None
            }
        };
        let generation = record.generation();
        self.memory.put(CachedConnection {
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
        let broken = self.record(EventKind::IntegrityError, &Actor::broker());
        self.note(&self.of(broken, &record.connection));
        true
    }

    fn open(&self, record: &Record, grant: &HeldGrant) -> Result<CachedGrant, OpenError> {
        let id = record.connection.id.to_string();
        let place = Place { record: &id, field: "access", generation: grant.generation };
        let access = self.keyring.open(place, &grant.access)?;
        if let Some(refresh) = &grant.refresh {
            // Not needed here, but a value that was tampered with is better known before it is used.
            self.keyring.open(Place { field: "refresh", ..place }, refresh)?;
        }
        let client = self.clients.get(&record.connection.client);
        let vars = &record.connection.vars;
        Ok(CachedGrant {
            generation: grant.generation,
            fingerprint: Digest::of(&access).fingerprint(),
            headers: client
                .and_then(|client| resource_headers(client, &access, vars).ok())
                .unwrap_or_default(),
            api_base_url: client.and_then(|client| api_base_url(client, vars).ok()),
            scopes: grant.scopes.clone(),
            received_at: grant.received_at,
            expires_at: grant.expires_at,
            end: End::of_stored(grant, self.clock.moment()),
            access,
        })
    }

    /// Reads a connection again after a change of our own.
    pub(crate) async fn refresh_cache(&self, id: ConnectionId) -> Result<Record, BrokerError> {
        let record = self.store.record_by_id(id).await?.ok_or(BrokerError::Revoked)?;
        self.cache_record(record.clone()).await;
        Ok(record)
    }

    /// The connection of that name, from memory, or from the store if another replica made it a
    /// moment ago.
    pub(crate) async fn live(&self, name: &str) -> Result<Arc<CachedConnection>, BrokerError> {
        if let Some(live) = self.memory.connection(name) {
            return Ok(live);
        }
        if name.parse::<Slug>().is_ok()
            && let Some(record) = self.store.record(name).await?
        {
            self.cache_record(record).await;
        }
        self.memory.connection(name).ok_or_else(|| BrokerError::no_connection(name))
    }
}
