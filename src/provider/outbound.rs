//! The only place that calls a provider: one request, bounded in time and size, never repeated
//! and never redirected.

use std::{
    error::Error,
    iter,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use parking_lot::Mutex;
use reqwest::{
    Certificate,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue},
    redirect, retry,
};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroize as _};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};

use super::{
    error::{ProviderError, Verdict},
    network::{Network, Resolver},
    profile::Profile,
    request::OutboundRequest,
    response::{Reply, read_retry_after},
};
use crate::{
    clock::{BootInstant, Clock},
    failpoint::{Failpoints, Point},
};

/// The largest body that is read, in bytes.
pub const MAX_BODY: usize = 128 * 1024;

/// The largest headers that are taken, in bytes, and how many.
const MAX_HEADER_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// How long an answer is still looked for when its time is over: it may have come while this process
/// stood still, and lies in the socket then.
const LAST_LOOK: Duration = Duration::from_secs(3);

/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Calls providers.
#[derive(Clone, Debug)]
pub struct Outbound {
    clock: Clock,
    failpoints: Failpoints,
    roots: TrustAnchors,
    public: reqwest::Client,
    loopback: reqwest::Client,
}

/// Whose word for a provider's certificate is taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrustAnchors {
    /// The list that came with this program, where the machine has none.
    BuiltIn,
    /// The machine's own.
    Platform,
}

/// The TLS library does not start.
#[derive(Debug, thiserror::Error)]
#[error("TLS does not start")]
pub struct TlsError(#[source] reqwest::Error);

impl Outbound {
    /// Prepares the connections; calls nobody.
    ///
    /// # Errors
    ///
    /// If TLS does not start.
    pub fn new(clock: Clock, failpoints: Failpoints) -> Result<Self, TlsError> {
        let (roots, public) = match client(&Network::Public, TrustAnchors::Platform) {
            Ok(client) => (TrustAnchors::Platform, client),
            Err(_) => (
                TrustAnchors::BuiltIn,
                client(&Network::Public, TrustAnchors::BuiltIn).map_err(TlsError)?,
            ),
        };
        let loopback = client(&Network::Loopback, roots).map_err(TlsError)?;
        Ok(Self { clock, failpoints, roots, public, loopback })
    }

    /// Whose word for certificates is taken.
    #[must_use]
    pub fn roots(&self) -> TrustAnchors {
        self.roots
    }

    /// Sends a request once and reads the answer, whatever its status. A request with a body
    /// leaves before `send_before` or not at all, even if this process is stopped on the way to
    /// sending it.
    ///
    /// # Errors
    ///
    /// [`Verdict::NotSent`] or [`Verdict::TooLate`] if it never reached the provider,
    /// [`Verdict::Ambiguous`] if nobody can say; [`Verdict::Misconfigured`] if it may not be sent at
    /// all.
    pub async fn send(
        &self,
        profile: &Profile,
        request: OutboundRequest,
        send_before: Option<BootInstant>,
    ) -> Result<Reply, ProviderError> {
        profile.network.check(&request.url).map_err(|why| {
            let message = format!("Nothing was sent: {why}.");
            ProviderError::new(Verdict::Misconfigured, None, "outside_network", message)
        })?;
        let client = match &profile.network {
            Network::Public => self.public.clone(),
            Network::Loopback => self.loopback.clone(),
            // Rare, so it need not be kept.
            private @ Network::Private { .. } => {
                client(private, self.roots).map_err(|_| not_sent("tls", "TLS does not start."))?
            }
        };
        let guard = Guard { clock: self.clock.clone(), send_before };
        guard.check().map_err(|_| send_window_over())?;
        let mut patience = Patience::of(profile.token.timeout);
        let mut builder = client.request(request.method, request.url);
        for (name, value) in request.headers {
            builder = builder.header(name, sensitive(&value)?);
        }
        let (body_is_gone, written) = oneshot::channel();
        if let Some((content_type, body)) = request.body.encode() {
            let content = Some(Bytes::from(expose(&body).to_owned()));
            let failpoints = self.failpoints.clone();
            let connected = async move { failpoints.reach(Point::Connected).await };
            let connected = Mutex::new(connected.boxed());
            let body = Guarded { connected, content, guard, _gone: body_is_gone };
            let body = reqwest::Body::wrap(body);
            builder = builder.header(CONTENT_TYPE, content_type).body(body);
        }
        let answer = patience.wait(async {
            let mut answer = pin!(builder.send());
            let early = tokio::select! {
                biased;
                _ = written => None,
                response = &mut answer => Some(response),
            };
            if let Some(response) = early {
                return response;
            }
            // Whoever is held here does not look at the answer, which may be there already.
            self.failpoints.reach(Point::Written).await;
            answer.await
        });
        let response = answer.await.ok_or_else(timed_out)?.map_err(|error| failure(&error))?;
        self.failpoints.reach(Point::Answered).await;
        self.read(response, patience).await
    }

    async fn read(
        &self,
        mut response: reqwest::Response,
        mut patience: Patience,
    ) -> Result<Reply, ProviderError> {
        let status = response.status().as_u16();
        let ambiguous =
            |code, message: &str| ProviderError::new(Verdict::Ambiguous, status, code, message);
        let headers = response.headers();
        let size: usize =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > MAX_HEADER_BYTES {
            return Err(ambiguous("answer_too_large", "The provider's answer is too large."));
        }
        if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            let message = "The provider's answer is compressed, although we refuse that.";
            return Err(ambiguous("compressed_answer", message));
        }
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let retry_after =
            text("retry-after").and_then(|text| read_retry_after(text, self.clock.now()));
        let mut body = Vec::with_capacity(MAX_BODY);
        let outcome = loop {
            match patience.wait(response.chunk()).await.ok_or_else(timed_out) {
                Err(late) => break Err(late),
                Ok(Err(error)) => break Err(failure(&error)),
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() <= MAX_BODY => {
                    body.extend_from_slice(&chunk);
                    self.failpoints.reach(Point::PartlyRead).await;
                }
                Ok(Ok(Some(chunk))) => {
                    // What fits may hold a refresh token.
                    body.extend_from_slice(&chunk[..MAX_BODY - body.len()]);
                    break Err(ambiguous(
                        "answer_too_large",
                        "The provider's answer is too large.",
                    ));
                }
                Ok(Ok(None)) => break Ok(()),
            }
        };
        match outcome {
            Ok(()) => Ok(Reply { status, retry_after, body: body.into() }),
            Err(mut error) => {
                error.status = Some(status);
                error.salvaged_refresh = super::salvage::refresh_token(&body);
                body.zeroize();
                Err(error)
            }
        }
    }
}

/// How long an exchange may take in all.
struct Patience {
    over: Pin<Box<Sleep>>,
    looked: bool,
}

impl Patience {
    fn of(time: Duration) -> Self {
        Self { over: Box::pin(sleep(time)), looked: false }
    }

    /// Waits for a part of the exchange; none when its time is over and a last look found nothing.
    async fn wait<T>(&mut self, part: impl Future<Output = T>) -> Option<T> {
        let mut part = pin!(part);
        loop {
            tokio::select! {
                biased;
                done = &mut part => return Some(done),
                () = &mut self.over => {}
            }
            if self.looked {
                return None;
            }
            *self = Self { looked: true, ..Self::of(LAST_LOOK) };
        }
    }
}

/// The last moment at which a request may leave.
struct Guard {
    clock: Clock,
    send_before: Option<BootInstant>,
}

/// That moment has passed.
#[derive(Debug, thiserror::Error)]
#[error("the time to send it is over")]
struct TooLate;

impl Guard {
    fn check(&self) -> Result<(), TooLate> {
        match self.send_before {
            Some(end) if self.clock.since_boot() >= end => Err(TooLate),
            _ => Ok(()),
        }
    }
}

/// What a request carries, to be had in one piece while the guard lets it pass.
///
/// It is asked for once the connection stands. The head waits for it, to be written with it, so
/// that nothing at all reaches the provider when it is refused.
struct Guarded {
    /// Ready at once but in tests, which hold a request here. Never locked: a body must be `Sync`.
    connected: Mutex<BoxFuture<'static, ()>>,
    content: Option<Bytes>,
    guard: Guard,
    /// Dropped with the rest: that tells that the request is written.
    _gone: oneshot::Sender<()>,
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        if self.content.is_some() {
            let connected = self.connected.get_mut();
            ready!(connected.poll_unpin(context));
        }
        let content = self.content.take();
        Poll::Ready(content.map(|content| self.guard.check().map(|()| Frame::data(content))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.as_ref().map_or(0, |content| content.len() as u64))
    }
}

/// A client for one network.
#[expect(clippy::disallowed_methods, reason = "the only client for calls to providers")]
fn client(network: &Network, roots: TrustAnchors) -> Result<reqwest::Client, reqwest::Error> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("token-broker/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT)
        .dns_resolver(Resolver(Arc::new(network.clone())))
        .https_only(*network != Network::Loopback)
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .no_proxy()
        // A connection that was used before may close under the next request, which would then
        // have been sent or not: every request has its own.
        .pool_max_idle_per_host(0)
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(retry::never());
    if roots == TrustAnchors::BuiltIn {
        let certificates = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
        let certificates = certificates.iter().map(|der| Certificate::from_der(der));
        builder = builder.tls_certs_only(certificates.collect::<Result<Vec<_>, _>>()?);
    }
    builder.build()
}

/// A header's value that the HTTP library keeps out of its own debug output.
fn sensitive(value: &SecretString) -> Result<HeaderValue, ProviderError> {
    let mut value = HeaderValue::from_str(expose(value)).map_err(|_| {
        let message = "A secret of this client cannot be sent in a header.";
        ProviderError::new(Verdict::Misconfigured, None, "unusable_header", message)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn not_sent(code: &str, message: &str) -> ProviderError {
    ProviderError::new(Verdict::NotSent, None, code, message)
}

fn timed_out() -> ProviderError {
    let message = "The provider did not answer in time.";
    ProviderError::new(Verdict::Ambiguous, None, "timeout", message)
}

fn send_window_over() -> ProviderError {
    let message = "The request was held up for too long to be safe to send.";
    ProviderError::new(Verdict::TooLate, None, "send_window_over", message)
}

/// What a failed exchange means: before the connection stands nothing was sent, after it all may
/// have been.
fn failure(error: &reqwest::Error) -> ProviderError {
    let first: &(dyn Error + 'static) = error;
    let mut causes = iter::successors(Some(first), |&cause| cause.source());
    if causes.any(<dyn Error>::is::<TooLate>) {
        send_window_over()
    } else if error.is_connect() {
        let (code, message) = if error.is_timeout() {
            ("connect_timeout", "The provider could not be reached in time.")
        } else {
            ("connect_failed", "The provider could not be reached.")
        };
        not_sent(code, message)
    } else if error.is_builder() {
        not_sent("not_sent", "The request could not be sent.")
    } else {
        let message = "The connection to the provider broke.";
        ProviderError::new(Verdict::Ambiguous, None, "connection_broken", message)
    }
}

#[expect(clippy::disallowed_methods, reason = "the request leaves for the provider here")]
fn expose(secret: &SecretString) -> &str {
    secret.expose_secret()
}
