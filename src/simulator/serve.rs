//! One loopback listener per provider, and the hosts that the provider spreads over.

use std::{convert::Infallible, error::Error as _, io, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header, uri::Authority},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// The routers of one listener, by host name.
#[derive(Debug)]
pub(super) struct Hosts {
    /// `localhost`: the site for browsers.
    pub site: Router,
    /// The API, called by the broker and the services.
    pub api: Router,
    /// The hosts of `api`.
    pub api_host: ApiHost,
    /// `/_simulator/`, on every host.
    pub control: Router,
    /// Every other host.
    pub elsewhere: Router,
}

/// The host names of an API.
#[derive(Clone, Copy, Debug)]
pub(super) enum ApiHost {
    /// `127.0.0.1`.
    Loopback,
    /// One label under this suffix, which begins with a dot.
    Under(&'static str),
}

impl ApiHost {
    fn covers(self, host: &str) -> bool {
        match self {
            Self::Loopback => host == "127.0.0.1",
            Self::Under(suffix) => host
                .strip_suffix(suffix)
                .is_some_and(|label| !label.is_empty() && !label.contains('.')),
        }
    }
}

impl Hosts {
    fn router<B>(&self, request: &Request<B>) -> &Router {
        if request.uri().path().starts_with("/_simulator/") {
            return &self.control;
        }
        match host(request) {
            Some(host) if host == "localhost" => &self.site,
            Some(host) if self.api_host.covers(&host) => &self.api,
            _ => &self.elsewhere,
        }
    }
}

/// The host of a request in lower case, without its port.
fn host<B>(request: &Request<B>) -> Option<String> {
    let authority: Authority = match request.headers().get(header::HOST) {
        Some(host) => host.to_str().ok()?.parse().ok()?,
        None => request.uri().authority()?.clone(),
    };
    Some(authority.host().to_ascii_lowercase())
}

/// An answer that ends the connection: without a byte, or within a body.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum HangUp {
    /// In order, as at the end of any connection.
    #[error("the simulated provider closed the connection")]
    Close,
    /// With a TCP RST.
    #[error("the simulated provider reset the connection")]
    Reset,
}

impl IntoResponse for HangUp {
    fn into_response(self) -> Response {
        let mut response = StatusCode::NO_CONTENT.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Accepts connections until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    hosts: Arc<Hosts>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let connection = serve_connection(stream, Arc::clone(&hosts));
                let stop = stop.clone();
                tasks.spawn(async move { stop.run_until_cancelled(connection).await });
            }
            // Out of descriptors, or a peer already gone: give others a turn and go on.
            Err(error) => {
                tracing::debug!(%error, "a simulator cannot accept a connection");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, hosts: Arc<Hosts>) {
    let service = service_fn(|request: Request<Incoming>| {
        let router = hosts.router(&request).clone();
        async move {
            let answer = router.oneshot(request.map(Body::new)).await;
            let answer = answer.unwrap_or_else(|never: Infallible| match never {});
            match answer.extensions().get::<HangUp>() {
                Some(&hang_up) => Err(hang_up),
                None => Ok(answer),
            }
        }
    });
    // A client that hangs up first ends this future, and with it whatever still waits to answer.
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = (&mut connection).await {
        tracing::debug!(%error, "a connection to a simulator ended early");
        if error.source().and_then(|source| source.downcast_ref()) == Some(&HangUp::Reset) {
            reset(&connection.into_parts().io.into_inner());
        }
    }
}

/// Makes the close that follows an RST.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::warn!(%error, "a simulator cannot reset a connection");
    }
}

/// Binds a loopback port; 0 takes a free one.
pub(super) async fn bind(port: u16) -> io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}
