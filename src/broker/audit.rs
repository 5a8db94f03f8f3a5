//! What the broker puts on record, and the way of the records into the store.

use std::{
    collections::HashMap,
    fmt::Write as _,
    hash::Hash,
    io,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::{Broker, BrokerError};
use crate::{
    audit::{self, Actor, AuditEvent, BATCH, EventKind, FileHealth, StoredEvent},
    clock::BootInstant,
    domain::connection::Connection,
    seal::secret::Digest,
    store::StoreError,
};

/// How many refusals of people we know nothing of are recorded in a minute; more are counted only.
/// Anybody can cause them.
const MAX_ANONYMOUS_REFUSALS: u32 = 60;

/// How many refusals are recorded in a minute of one connection: whoever has ever seen a link or a
/// callback of it can cause them.
const MAX_REFUSALS_OF_CONNECTION: u32 = 10;

/// How long the end waits for the database to take the last records. The next start ships the rest.
const LAST_SHIPPING: Duration = Duration::from_secs(5);

/// Counts by the minute what people can cause as often as they like.
#[derive(Debug)]
pub(crate) struct PerMinuteLimiter<K>(Mutex<Minute<K>>);

#[derive(Debug)]
struct Minute<K> {
    began: BootInstant,
    admitted: HashMap<K, u32>,
    left_out: u32,
}

impl<K: Eq + Hash> PerMinuteLimiter<K> {
    pub(crate) fn new(now: BootInstant) -> Self {
        Self(Mutex::new(Minute { began: now, admitted: HashMap::new(), left_out: 0 }))
    }

    /// Whether there is room for one more in this minute, of `most`; and, when a minute is over, for
    /// how many there was none.
    pub(crate) fn admits(&self, now: BootInstant, what: K, most: u32) -> (bool, u32) {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if now.since(minute.began) >= Duration::from_mins(1) {
            left_out = minute.left_out;
            *minute = Minute { began: now, admitted: HashMap::new(), left_out: 0 };
        }
        let admitted = minute.admitted.entry(what).or_default();
        let room = *admitted < most;
        *admitted += u32::from(room);
        minute.left_out = minute.left_out.saturating_add(u32::from(!room));
        (room, left_out)
    }
}

/// Why audit records were not shipped. They stay where they are.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The files cannot be read, or the cursor not be written.
    #[error("the audit files: {0}")]
    Files(#[from] io::Error),
    /// The database does not take them.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Broker {
    /// A record of what happens now.
    pub(crate) fn record(&self, kind: EventKind, by: &Actor) -> AuditEvent {
        AuditEvent::new(kind, by, self.clock.now())
    }

    /// The record, about this connection.
    pub(crate) fn of(&self, record: AuditEvent, connection: &Connection) -> AuditEvent {
        let record = record.about(connection.id, &connection.name);
        match self.clients.get(&connection.client) {
            Some(client) => record.at_provider(client.profile.name.as_str()),
            None => record,
        }
    }

    /// Hands in a record of what has happened: nothing waits for it.
    pub(crate) fn note(&self, record: &AuditEvent) {
        self.trail.emit(record);
    }

    /// Hands in a record about a connection, with a few words.
    pub(crate) fn note_of(
        &self,
        kind: EventKind,
        by: &Actor,
        connection: &Connection,
        detail: &str,
    ) {
        let record = self.of(self.record(kind, by), connection);
        self.note(&if detail.is_empty() { record } else { record.with_detail(detail) });
    }

    /// Hands in the refusal of somebody of whom nothing is known but the socket.
    pub(crate) fn record_anonymous_refusal(&self, by: &Actor, why: &str) {
        self.record_refusal(by, None, why);
    }

    /// Hands in the refusal of somebody of whom nothing is known but the socket, and perhaps the
    /// connection that they have seen a link or a callback of.
    pub(crate) fn record_refusal(&self, by: &Actor, connection: Option<&Connection>, why: &str) {
        let of = connection.map(|connection| connection.id);
        let most = if of.is_some() { MAX_REFUSALS_OF_CONNECTION } else { MAX_ANONYMOUS_REFUSALS };
        let (admitted, left_out) = self.refused.admits(self.clock.since_boot(), of, most);
        if left_out > 0 {
            tracing::warn!(left_out, "more refusals in a minute than are recorded");
        }
        if admitted {
            let record = self.record(EventKind::ConsentRefused, by).with_detail(why);
            self.note(&match connection {
                Some(connection) => self.of(record, connection),
                None => record,
            });
        }
    }

    /// Waits until the audit file has accepted a record.
    pub(crate) async fn accept(&self, record: &AuditEvent) -> Result<(), BrokerError> {
        self.trail.append(record).await.map_err(|_| BrokerError::Unaudited)
    }

    /// How the audit file is, and how many of its records are not in the store yet.
    pub(crate) fn audit_condition(&self) -> (FileHealth, u64) {
        (self.trail.health(), self.trail.unshipped())
    }

    /// Records the start, and whether the clients and the addresses of their providers are those of
    /// this replica's start before.
    pub async fn note_start(&self) {
        let mut text = String::new();
        for client in self.clients.values() {
            let profile = &client.profile;
            let authorize = profile.authorize.as_ref().map_or("", |there| there.url.as_str());
            let (token, resource) =
                (profile.token.url.as_str(), profile.resource.base_url.as_str());
            let (name, provider) = (&client.name, &profile.name);
            writeln!(text, "{name} {provider} {authorize} {token} {resource}")
                .expect("a text takes all that is written to it");
        }
        let fingerprint = Digest::of_bytes(text.as_bytes()).fingerprint();
        let (trail, now) = (Arc::clone(&self.trail), fingerprint.clone());
        let changed = spawn_blocking(move || trail.note_change("configuration", &now)).await;
        let detail = match changed {
            Ok(Ok(None)) => "first",
            Ok(Ok(Some(true))) => "changed",
            Ok(Ok(Some(false))) => "unchanged",
            _ => "unknown",
        };
        let record = self.record(EventKind::Configuration, &Actor::broker()).with_detail(detail);
        self.note(&AuditEvent { fingerprint: Some(fingerprint), ..record });
    }

    /// Ships what lies in the audit files to the store. Returns how many records it were.
    ///
    /// # Errors
    ///
    /// When the files or the store fail: the rest stays in the files. That is logged when it begins.
    pub async fn ship_events(&self) -> Result<usize, ShipError> {
        let mut shipped = 0;
        loop {
            let take = async |records: &[AuditEvent]| Ok(self.store.insert_events(records).await?);
            match audit::ship(&self.trail, take).await {
                Ok(count) => {
                    shipped += count;
                    if count < BATCH {
                        break;
                    }
                }
                Err(error) => {
                    if !self.held_up.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "audit records are kept here until they can be shipped");
                    }
                    return Err(error);
                }
            }
        }
        if self.held_up.swap(false, Ordering::Relaxed) {
            tracing::info!(shipped, "audit records are shipped again");
        }
        Ok(shipped)
    }

    /// The events after a place, in their order, `limit` at the most.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn events(&self, after: i64, limit: u32) -> Result<Vec<StoredEvent>, BrokerError> {
        Ok(self.store.events(after, limit).await?)
    }

    /// Forgets events that are older than they have to be kept.
    pub(crate) async fn purge_events(&self) -> Result<u64, StoreError> {
        self.store.purge_events(self.keep_events).await
    }

    /// Brings the last records to the disk, and to the store if that takes them at once.
    pub async fn close_trail(&self) {
        let trail = Arc::clone(&self.trail);
        let _ = spawn_blocking(move || trail.close()).await;
        let _ = timeout(LAST_SHIPPING, self.ship_events()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_anybody_can_cause_is_recorded_sixty_times_a_minute() {
        let clock = Clock::system();
        let flood = PerMinuteLimiter::new(clock.since_boot());
        let admits = |what| flood.admits(clock.since_boot(), what, MAX_ANONYMOUS_REFUSALS);
        assert_eq!((0..100).filter(|_| admits('a').0).count(), 60);
        assert_eq!(admits('b'), (true, 0), "each for itself");
        clock.advance(Duration::from_mins(1));
        assert_eq!(admits('a'), (true, 40), "the rest was counted");
        assert_eq!(admits('a'), (true, 0));
    }
}
