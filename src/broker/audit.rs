//! The audit log: events about use cases, and their way from the audit files into the store.

use std::{
    fmt::Write as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use super::{BrokerError, clients::Clients, limits::per_minute::PerMinuteLimiter};
use crate::{
    audit::{self, Actor, AuditEvent, BATCH, EventKind, FileHealth, StoredEvent, Trail},
    clock::Clock,
    domain::{
        connection::{Connection, ConnectionId},
        consent::{Ending, Outcome},
    },
    seal::secret::Digest,
    store::{Store, StoreError},
};

/// Refusals of unknown people that are recorded in a minute; more are counted only.
/// Anybody can cause them.
const MAX_ANONYMOUS_REFUSALS: u32 = 60;

/// Refusals of one connection that are recorded in a minute: whoever has ever seen a link or a
/// callback of it can cause them.
const MAX_REFUSALS_OF_CONNECTION: u32 = 10;

/// The time that shutdown waits for the database to take the last records. The next start ships the
/// rest.
const LAST_SHIPPING: Duration = Duration::from_secs(5);

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

/// The audit log: what the broker puts on record, in a file first and then in the store.
#[derive(Debug)]
pub(crate) struct AuditLog {
    trail: Arc<Trail>,
    store: Store,
    clients: Arc<Clients>,
    clock: Clock,
    /// The time that the store keeps records.
    retention: Duration,
    /// The refusals recorded in this minute: of strangers, and of each connection.
    refusals: PerMinuteLimiter<Option<ConnectionId>>,
    /// The last attempt to ship records failed.
    shipping_failed: AtomicBool,
}

impl AuditLog {
    pub(crate) fn new(
        trail: Trail,
        store: Store,
        clients: Arc<Clients>,
        clock: Clock,
        retention: Duration,
    ) -> Self {
        Self {
            trail: Arc::new(trail),
            store,
            clients,
            retention,
            refusals: PerMinuteLimiter::new(clock.since_boot()),
            clock,
            shipping_failed: AtomicBool::new(false),
        }
    }

    /// A record of what happens now.
    pub(crate) fn event(&self, kind: EventKind, by: &Actor) -> AuditEvent {
        AuditEvent::new(kind, by, self.clock.now())
    }

    /// The record, about this connection.
    pub(crate) fn about_connection(
        &self,
        record: AuditEvent,
        connection: &Connection,
    ) -> AuditEvent {
        let record = record.about(connection.id, &connection.name);
        match self.clients.get(&connection.client) {
            Some(client) => record.at_provider(client.profile.name.as_str()),
            None => record,
        }
    }

    /// Hands in a record of what has happened: nothing waits for it.
    pub(crate) fn emit(&self, record: &AuditEvent) {
        self.trail.emit(record);
    }

    /// Hands in a record about a connection, with a few words.
    pub(crate) fn emit_for(
        &self,
        kind: EventKind,
        by: &Actor,
        connection: &Connection,
        detail: &str,
    ) {
        let record = self.about_connection(self.event(kind, by), connection);
        self.emit(&if detail.is_empty() { record } else { record.with_detail(detail) });
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
        let (admitted, left_out) = self.refusals.admits(self.clock.since_boot(), of, most);
        if left_out > 0 {
            tracing::warn!(left_out, "more refusals in a minute than are recorded");
        }
        if admitted {
            let record = self.event(EventKind::ConsentRefused, by).with_detail(why);
            self.emit(&match connection {
                Some(connection) => self.about_connection(record, connection),
                None => record,
            });
        }
    }

    /// Records how an attempt at a consent ended.
    pub(crate) fn record_ending(
        &self,
        by: &Actor,
        connection: &Connection,
        grant: Option<(String, i64)>,
        ending: Result<&Ending, &BrokerError>,
    ) {
        let refused = match ending {
            Err(BrokerError::Frozen(_)) => Some("frozen"),
            Err(BrokerError::Conflict(_)) => Some("quarantined"),
            Err(BrokerError::Revoked) => Some("deleted"),
            Err(BrokerError::Gone(_)) => Some("link ended"),
            Err(BrokerError::Invalid(why)) => Some(why.as_str()),
            _ => None,
        };
        let kind = match ending.map(|ending| ending.outcome) {
            Ok(Outcome::Connected | Outcome::PendingConfirm) => EventKind::ConsentFinished,
            Ok(Outcome::Denied) => EventKind::ConsentDenied,
            Ok(Outcome::WrongAccount) => EventKind::AccountMismatch,
            Err(_) if refused.is_some() => EventKind::ConsentRefused,
            Ok(Outcome::Ambiguous | Outcome::Failed) | Err(_) => EventKind::ConsentFailed,
        };
        let detail = match ending {
            Ok(Ending { outcome, remark: Some(remark), .. }) => format!("{outcome}, {remark}"),
            Ok(Ending { outcome, .. }) => outcome.to_string(),
            Err(_) => refused.unwrap_or("internal").to_owned(),
        };
        let record = self.about_connection(self.event(kind, by), connection).with_detail(&detail);
        self.emit(&match grant {
            Some((fingerprint, generation))
                if ending.is_ok_and(|ending| ending.outcome == Outcome::Connected) =>
            {
                record.with_grant(fingerprint, generation)
            }
            _ => record,
        });
    }

    /// Waits until the audit file has accepted a record.
    pub(crate) async fn write_durable(&self, record: &AuditEvent) -> Result<(), BrokerError> {
        self.trail.append(record).await.map_err(|_| BrokerError::Unaudited)
    }

    /// The health of the audit file, and the number of its records that are not in the store yet.
    pub(crate) fn condition(&self) -> (FileHealth, u64) {
        (self.trail.health(), self.trail.unshipped())
    }

    /// Records the start, and whether the clients and the addresses of their providers are those of
    /// this replica's start before.
    pub(crate) async fn record_start(&self) {
        let mut text = String::new();
        for client in self.clients.iter() {
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
        let record = self.event(EventKind::Configuration, &Actor::broker()).with_detail(detail);
        self.emit(&AuditEvent { fingerprint: Some(fingerprint), ..record });
    }

    /// Ships what lies in the audit files to the store. Returns how many records it were.
    pub(crate) async fn ship(&self) -> Result<usize, ShipError> {
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
                    if !self.shipping_failed.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "audit records are kept here until they can be shipped");
                    }
                    return Err(error);
                }
            }
        }
        if self.shipping_failed.swap(false, Ordering::Relaxed) {
            tracing::info!(shipped, "audit records are shipped again");
        }
        Ok(shipped)
    }

    /// The events after a place, in their order, `limit` at the most.
    pub(crate) async fn events(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, BrokerError> {
        Ok(self.store.events(after, limit).await?)
    }

    /// Forgets events that are older than they have to be kept.
    pub(crate) async fn purge(&self) -> Result<u64, StoreError> {
        self.store.purge_events(self.retention).await
    }

    /// Brings the last records to the disk, and to the store if that takes them at once.
    pub(crate) async fn close(&self) {
        let trail = Arc::clone(&self.trail);
        let _ = spawn_blocking(move || trail.close()).await;
        let _ = timeout(LAST_SHIPPING, self.ship()).await;
    }
}
