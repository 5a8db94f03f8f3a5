//! Flights: refreshes as tasks of their own, one for each connection at a time. Whoever wants a
//! connection refreshed starts its flight or joins it; the background's stand in a queue before
//! their provider, out of which a reader brings them forward.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::sync::{oneshot, watch};
use tracing::Instrument as _;

use crate::{
    broker::{
        Broker, BrokerError,
        limits::{
            gate::Shut,
            permits::{Permit, Priority},
        },
    },
    domain::{
        connection::{Connection, ConnectionId},
        slug::Slug,
    },
    provider::client::Client,
    store::Due,
};

/// Why a refresh is made. Of several reasons the last of this list counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RefreshReason {
    /// The background refresher found it due.
    Due,
    /// A reader needs it.
    Read,
    /// A reader reported that the API refused the token.
    Rejected,
    /// A connection without any token yet.
    Created,
    /// An operator asked for it.
    Operator,
}

impl fmt::Display for RefreshReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Due => "due",
            Self::Operator => "operator",
            Self::Read => "read",
            Self::Rejected => "rejected",
        })
    }
}

/// A running refresh, to be awaited by any number of callers: it resolves when readers have what it
/// brought, or with the reason why it brought nothing.
pub(crate) type Flight = Shared<BoxFuture<'static, Result<(), BrokerError>>>;

/// A flight on the board, and the best reason for it so far, which those who join it raise.
pub(crate) type Boarding = (Flight, watch::Sender<RefreshReason>);

/// A refresh that is wanted.
pub(crate) struct RefreshRequest {
    pub(crate) id: ConnectionId,
    pub(crate) client: Slug,
    /// The generation that somebody found wanting; none if the schedule decides.
    pub(crate) seen: Option<i64>,
    /// Why it is made, as far as is known by now.
    pub(crate) why: watch::Receiver<RefreshReason>,
    /// For the background: it waits for a place, the most urgent first.
    priority: Option<Priority>,
}

/// Takes the flight off the board however it ends, a panic included.
struct Landing {
    broker: Arc<Broker>,
    id: ConnectionId,
    callers: Mutex<Option<oneshot::Sender<Result<(), BrokerError>>>>,
}

impl Landing {
    /// Tells the callers how it went. Only the first word counts.
    fn tell(&self, result: Result<(), BrokerError>) {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(callers) = callers {
            // Nobody may be listening any more.
            let _ = callers.send(result);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.broker.flights.remove(&self.id);
    }
}

impl Broker {
    /// Starts the refresh of a connection for somebody who waits for it, or joins the one that runs.
    /// It goes on when its callers hang up, and shutdown waits for it. One that stands in the queue
    /// of the background is brought forward.
    ///
    /// `seen` is the generation that the caller found wanting: when a newer one is stored by now,
    /// nothing is sent.
    pub(crate) fn refresh(
        self: &Arc<Self>,
        connection: &Connection,
        seen: i64,
        why: RefreshReason,
    ) -> Flight {
        self.fly(connection.id, &connection.client, Some(seen), why, None)
    }

    fn fly(
        self: &Arc<Self>,
        id: ConnectionId,
        client: &Slug,
        seen: Option<i64>,
        why: RefreshReason,
        priority: Option<Priority>,
    ) -> Flight {
        let flying = self.flights.entry(id).or_insert_with(|| {
            let (raise, known) = watch::channel(why);
            let request = RefreshRequest { id, client: client.clone(), seen, why: known, priority };
            let span = tracing::info_span!("broker.refresh", connection.id = %id, %why);
            let (callers, told) = oneshot::channel();
            let callers = Mutex::new(Some(callers));
            let landing = Landing { broker: Arc::clone(self), id, callers };
            let run = async move {
                let served = || landing.tell(Ok(()));
                let result = Box::pin(landing.broker.refresh_once(request, served)).await;
                landing.tell(result);
            };
            self.tasks.spawn(run.instrument(span));
            let done = async move { told.await.unwrap_or(Err(BrokerError::Internal)) };
            (done.boxed().shared(), raise)
        });
        let (flight, raise) = flying.value();
        raise.send_if_modified(|known| {
            let better = why > *known;
            *known = why.max(*known);
            better
        });
        flight.clone()
    }

    /// Starts the refresh of up to `limit` connections that are due, the most urgent first, and
    /// leaves them to run: a slow provider holds up nobody else.
    ///
    /// # Errors
    ///
    /// When the store cannot say what is due. How each refresh went is recorded with its
    /// connection.
    pub async fn start_due(self: &Arc<Self>, limit: u32) -> Result<usize, BrokerError> {
        Ok(self.due_flights(limit).await?.len())
    }

    /// As [`Broker::start_due`], and waits for them: a step of the background, for tests.
    ///
    /// # Errors
    ///
    /// As [`Broker::start_due`].
    pub async fn refresh_due(self: &Arc<Self>, limit: u32) -> Result<usize, BrokerError> {
        let flights = self.due_flights(limit).await?;
        let count = flights.len();
        for flight in flights {
            // Recorded and logged where it happened.
            let _ = flight.await;
        }
        Ok(count)
    }

    async fn due_flights(self: &Arc<Self>, limit: u32) -> Result<Vec<Flight>, BrokerError> {
        let mut flights = Vec::new();
        // Each provider has its own `limit`: one with many due takes nothing from the others.
        for (provider, gate) in &self.gates {
            let clients = self.clients_of(provider).map(|client| &client.name);
            let clients: Vec<_> = clients.filter(|client| gate.is_open(client)).collect();
            if clients.is_empty() || self.closing.is_cancelled() {
                continue;
            }
            let due = self.store.due(clients, limit).await?;
            flights.extend(due.into_iter().map(|due| {
                let priority = Some(Priority::of(&due));
                let Due { id, client, .. } = due;
                self.fly(id, &client, None, RefreshReason::Due, priority)
            }));
        }
        Ok(flights)
    }

    /// Waits for the refresh's turn at its provider. Whoever waits for it in person stands in no
    /// queue.
    pub(crate) async fn turn(
        &self,
        client: &Client,
        request: &RefreshRequest,
    ) -> Result<Option<Permit>, Shut> {
        let gate = self.gate(client);
        let mut why = request.why.clone();
        let place = match request.priority {
            None => None,
            Some(priority) => tokio::select! {
                place = gate.place(priority) => Some(place),
                _ = why.wait_for(|why| *why > RefreshReason::Due) => None,
            },
        };
        let why = *why.borrow();
        gate.enter(&client.name, why).await?;
        Ok(place)
    }
}
