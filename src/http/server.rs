//! The accept loop: `axum::serve` has neither a header timeout, nor a connection cap, nor a
//! deadline for the last connections at shutdown.
//!
//! HTTP/1.1 only: services and proxies speak it, and a connection whose protocol is still to be
//! found out has no timeout.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::connect_info::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Layer as _, util::MapRequestLayer};

use super::deadline::{WriteDeadline, body_deadline};

/// The largest request head: 16 KiB of headers besides an 8 KiB URL.
const MAX_HEAD: usize = 24 * 1024;

/// The limits of one listener's clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time to send a request head, from the start of the connection or the end of the request
    /// before: an idle connection ends with it.
    pub head: Duration,
    /// Time to send a request body, from when it is first read.
    pub body: Duration,
    /// Time to receive an answer, from the first write that has to wait.
    pub write: Duration,
    /// Connections that are served at once; more wait in the kernel's queue.
    pub connections: usize,
    /// Grace for open requests at shutdown.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(5),
            body: Duration::from_secs(10),
            write: Duration::from_secs(10),
            connections: 4_096,
            grace: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The default within what the system allows this process: each of the two listeners has three
    /// eighths of its descriptors at the most. One that is flooded leaves the other its share, and a
    /// quarter is left for the database, the providers and files.
    pub fn within_system() -> Self {
        let limits = Self::default();
        let descriptors = raise_descriptors().unwrap_or(u64::MAX);
        let share = usize::try_from(descriptors / 8 * 3).unwrap_or(usize::MAX);
        Self { connections: limits.connections.min(share.max(1)), ..limits }
    }
}

/// Raises the soft limit of file descriptors to the hard one; gives what then holds, or none where
/// there is no limit.
fn raise_descriptors() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            current
        }
    }
}

/// Serves `router` on `listener` until `shutdown`, then lets open requests finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    limits: Limits,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(MAX_HEAD);
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: give connections time to end.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let stream = WriteDeadline::new(stream, limits.write);
        let service = MapRequestLayer::new(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer));
            request.map(|body| body_deadline(body, limits.body))
        })
        .layer(router.clone());
        let connection =
            builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            // The end of a connection is not logged; requests log for themselves.
            let _ = connection.await;
            drop(slot);
        });
    }
    drop(listener);
    if timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("clients were still connected at the end of the grace period");
    }
}
