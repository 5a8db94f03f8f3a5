//! Single-flight: one refresh of a connection at a time in this process. Whoever wants a connection
//! refreshed starts one or joins the one that runs. A refresh of the background waits for a permit of
//! its provider; a reader who joins it lets it go at once.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::watch;
use tracing::Instrument as _;

use super::Refresher;
use crate::{
    broker::{
        BrokerError, RefreshReason,
        clients::Clients,
        limits::{Limits, Priority},
        process::Process,
    },
    domain::{
        connection::{Connection, ConnectionId},
        slug::Slug,
    },
    store::{Due, Store},
};

/// A running refresh, as those see it who wait for it.
#[derive(Clone, Debug)]
struct Progress {
    /// The best reason for it so far.
    reason: RefreshReason,
    /// None until readers have what it brought, or it has failed.
    result: Option<Result<(), BrokerError>>,
}

/// A refresh that is wanted.
pub(super) struct RefreshRequest {
    pub(super) connection: ConnectionId,
    pub(super) client: Slug,
    /// The generation that somebody found wanting; none if the schedule decides.
    pub(super) stale_generation: Option<i64>,
    /// For the background: it waits for a permit.
    pub(super) priority: Option<Priority>,
    progress: Arc<watch::Sender<Progress>>,
}

impl RefreshRequest {
    /// The best reason for it so far.
    pub(super) fn reason(&self) -> RefreshReason {
        self.progress.borrow().reason
    }

    /// Returns once anybody but the schedule wants the refresh.
    pub(super) async fn brought_forward(&self) {
        let mut progress = self.progress.subscribe();
        // It cannot close: `self` holds a sender.
        let _ = progress.wait_for(|progress| progress.reason > RefreshReason::Due).await;
    }

    /// Tells everybody who waits how it went. Only the first result counts.
    pub(super) fn publish(&self, result: Result<(), BrokerError>) {
        self.progress.send_if_modified(|progress| {
            let first = progress.result.is_none();
            progress.result.get_or_insert(result);
            first
        });
    }
}

/// The refreshes that run in this process, by connection.
#[derive(Debug)]
pub(crate) struct SingleFlight {
    refresher: Arc<Refresher>,
    store: Store,
    clients: Arc<Clients>,
    limits: Arc<Limits>,
    process: Arc<Process>,
    in_flight: DashMap<ConnectionId, Arc<watch::Sender<Progress>>>,
}

/// Removes the entry of a refresh on drop, also on panic.
struct InFlightGuard {
    flights: Arc<SingleFlight>,
    id: ConnectionId,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.flights.in_flight.remove(&self.id);
    }
}

impl SingleFlight {
    pub(crate) fn new(
        refresher: Arc<Refresher>,
        store: Store,
        clients: Arc<Clients>,
        limits: Arc<Limits>,
        process: Arc<Process>,
    ) -> Self {
        Self { refresher, store, clients, limits, process, in_flight: DashMap::new() }
    }

    /// Starts the refresh of a connection for somebody who waits for it, or joins the one that runs.
    /// It goes on when its callers hang up, and shutdown waits for it.
    ///
    /// `stale_generation` is the generation that the caller found wanting: when a newer one is stored
    /// by now, nothing is sent. The future resolves when readers have what the refresh brought.
    pub(crate) fn refresh(
        self: &Arc<Self>,
        connection: &Connection,
        stale_generation: i64,
        reason: RefreshReason,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send + use<> {
        self.join_or_start(connection.id, &connection.client, Some(stale_generation), reason, None)
    }

    fn join_or_start(
        self: &Arc<Self>,
        id: ConnectionId,
        client: &Slug,
        stale_generation: Option<i64>,
        reason: RefreshReason,
        priority: Option<Priority>,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send + use<> {
        let running = self.in_flight.entry(id).or_insert_with(|| {
            let progress = Arc::new(watch::Sender::new(Progress { reason, result: None }));
            let request = RefreshRequest {
                connection: id,
                client: client.clone(),
                stale_generation,
                priority,
                progress: Arc::clone(&progress),
            };
            let guard = InFlightGuard { flights: Arc::clone(self), id };
            let span = tracing::info_span!("broker.refresh", connection.id = %id, %reason);
            let run = async move {
                let result = Box::pin(guard.flights.refresher.attempt(&request)).await;
                request.publish(result);
            };
            self.process.tasks.spawn(run.instrument(span));
            progress
        });
        running.send_if_modified(|progress| {
            let better = reason > progress.reason;
            progress.reason = reason.max(progress.reason);
            better
        });
        let mut progress = running.subscribe();
        drop(running);
        async move {
            // Closed without a result: the task panicked.
            let done = progress.wait_for(|progress| progress.result.is_some()).await;
            done.ok()
                .and_then(|progress| progress.result.clone())
                .unwrap_or(Err(BrokerError::Internal))
        }
    }

    /// Starts the refresh of up to `limit` connections that are due at each provider, the most urgent
    /// first. They run on whether they are waited for or not: a slow provider holds up nobody else.
    pub(crate) async fn start_due(
        self: &Arc<Self>,
        limit: u32,
    ) -> Result<Vec<impl Future<Output = Result<(), BrokerError>> + Send + use<>>, BrokerError>
    {
        let mut started = Vec::new();
        // Each provider has its own `limit`: one with many due takes nothing from the others.
        for (provider, gate) in self.limits.gates() {
            let clients = self.clients.at_provider(provider);
            let clients: Vec<_> = clients.filter(|client| gate.is_open(client)).collect();
            if clients.is_empty() || self.process.draining.is_cancelled() {
                continue;
            }
            let due = self.store.due(clients, limit).await?;
            started.extend(due.into_iter().map(|due| {
                let priority = Some(Priority::of(&due));
                let Due { id, client, .. } = due;
                self.join_or_start(id, &client, None, RefreshReason::Due, priority)
            }));
        }
        Ok(started)
    }
}
