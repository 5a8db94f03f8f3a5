//! The HTTP client for providers, the only way in which the broker sends to one: one request, bounded in
//! time and size, never repeated and never redirected.

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
    error::{ErrorCode, ProviderError, Verdict},
    network::{Network, Resolver},
    profile::Profile,
    reply::Reply,
    request::OutboundRequest,
    response::read_retry_after,
};
use crate::{
    clock::{BootInstant, Clock},
    failpoint::{Failpoints, Point},
};

/// The largest body that is read, in bytes.
pub const MAX_BODY: usize = 128 * 1024;

/// Limits for response headers: bytes in all, and their number.
const MAX_HEADER_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// Extra time for one last poll after the deadline: an answer that came while this process was
/// stopped already lies in the socket.
const FINAL_POLL: Duration = Duration::from_secs(3);

/// Limit for connecting, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const TOO_LARGE: &str = "The provider's answer is too large.";

/// Calls providers.
#[derive(Clone, Debug)]
pub struct Outbound {
    clock: Clock,
    failpoints: Failpoints,
    trust_anchors: TrustAnchors,
    public: reqwest::Client,
    loopback: reqwest::Client,
}

/// The certificate authorities that are trusted for providers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrustAnchors {
    /// The list in this program, where the machine has none.
    BuiltIn,
    /// The machine's own.
    Platform,
}

/// The TLS library does not start.
#[derive(Debug, thiserror::Error)]
#[error("TLS does not start")]
pub struct TlsError(#[source] reqwest::Error);

impl Outbound {
    /// Prepares the HTTP clients; opens no connection.
    pub fn new(clock: Clock, failpoints: Failpoints) -> Result<Self, TlsError> {
        let (trust_anchors, public) = match client(&Network::Public, TrustAnchors::Platform) {
            Ok(client) => (TrustAnchors::Platform, client),
            Err(_) => (
                TrustAnchors::BuiltIn,
                client(&Network::Public, TrustAnchors::BuiltIn).map_err(TlsError)?,
            ),
        };
        let loopback = client(&Network::Loopback, trust_anchors).map_err(TlsError)?;
        Ok(Self { clock, failpoints, trust_anchors, public, loopback })
    }

    /// The certificate authorities in use.
    pub fn trust_anchors(&self) -> TrustAnchors {
        self.trust_anchors
    }

    /// Sends a request once and reads the answer, whatever its status. A request with a body leaves
    /// before `send_before` or not at all, even if the process is stopped in between.
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
            ProviderError::new(Verdict::Misconfigured, None, ErrorCode::OutsideNetwork, message)
        })?;
        let client = match &profile.network {
            Network::Public => self.public.clone(),
            Network::Loopback => self.loopback.clone(),
            // Rare, so its client is not kept.
            private @ Network::Private { .. } => client(private, self.trust_anchors)
                .map_err(|_| not_sent(ErrorCode::Tls, "TLS does not start."))?,
        };
        let window = SendWindow { clock: self.clock.clone(), send_before };
        window.ensure_open().map_err(|_| send_window_over())?;
        let mut deadline = Deadline::after(profile.token.timeout);
        let mut builder = client.request(request.method, request.url);
        for (name, value) in request.headers {
            builder = builder.header(name, sensitive(&value)?);
        }
        let (written_signal, written) = oneshot::channel();
        if let Some((content_type, body)) = request.body.encode() {
            let content = Some(Bytes::from(expose(&body).to_owned()));
            let failpoints = self.failpoints.clone();
            let connected = async move { failpoints.reach(Point::Connected).await };
            let connected = Mutex::new(connected.boxed());
            let body = GuardedBody { connected, content, window, _written_signal: written_signal };
            builder = builder.header(CONTENT_TYPE, content_type).body(reqwest::Body::wrap(body));
        }
        let exchange = async {
            let mut answer = pin!(builder.send());
            tokio::select! {
                biased;
                _ = written => {}
                response = &mut answer => return response,
            }
            // A test that holds the refresh here keeps it from reading the answer.
            self.failpoints.reach(Point::Written).await;
            answer.await
        };
        let response = deadline.bound(exchange).await.ok_or_else(timed_out)?;
        let response = response.map_err(|error| failure(&error))?;
        self.failpoints.reach(Point::Answered).await;
        self.read(response, deadline).await
    }

    async fn read(
        &self,
        mut response: reqwest::Response,
        mut deadline: Deadline,
    ) -> Result<Reply, ProviderError> {
        let status = response.status().as_u16();
        let ambiguous = |code: ErrorCode, message| {
            ProviderError::new(Verdict::Ambiguous, status, code, message)
        };
        let headers = response.headers();
        let size: usize =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > MAX_HEADER_BYTES {
            return Err(ambiguous(ErrorCode::AnswerTooLarge, TOO_LARGE));
        }
        if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            let message = "The provider's answer is compressed, although we refuse that.";
            return Err(ambiguous(ErrorCode::CompressedAnswer, message));
        }
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let retry_after =
            text("retry-after").and_then(|text| read_retry_after(text, self.clock.now()));
        let mut body = Vec::with_capacity(MAX_BODY);
        let outcome = loop {
            match deadline.bound(response.chunk()).await.ok_or_else(timed_out) {
                Err(late) => break Err(late),
                Ok(Err(error)) => break Err(failure(&error)),
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() <= MAX_BODY => {
                    body.extend_from_slice(&chunk);
                    self.failpoints.reach(Point::PartlyRead).await;
                }
                Ok(Ok(Some(chunk))) => {
                    // The part that fits may hold a refresh token.
                    body.extend_from_slice(&chunk[..MAX_BODY - body.len()]);
                    break Err(ambiguous(ErrorCode::AnswerTooLarge, TOO_LARGE));
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

/// The deadline of a whole exchange, with one final poll after it.
struct Deadline {
    over: Pin<Box<Sleep>>,
    is_final: bool,
}

impl Deadline {
    fn after(time: Duration) -> Self {
        Self { over: Box::pin(sleep(time)), is_final: false }
    }

    /// Waits for a part of the exchange; none when the deadline and the final poll are over.
    async fn bound<T>(&mut self, part: impl Future<Output = T>) -> Option<T> {
        let mut part = pin!(part);
        loop {
            tokio::select! {
                biased;
                done = &mut part => return Some(done),
                () = &mut self.over => {}
            }
            if self.is_final {
                return None;
            }
            *self = Self { is_final: true, ..Self::after(FINAL_POLL) };
        }
    }
}

/// The time in which a request may be sent.
struct SendWindow {
    clock: Clock,
    send_before: Option<BootInstant>,
}

/// The send window is over.
#[derive(Debug, thiserror::Error)]
#[error("the time to send it is over")]
struct TooLate;

impl SendWindow {
    fn ensure_open(&self) -> Result<(), TooLate> {
        match self.send_before {
            Some(end) if self.clock.since_boot() >= end => Err(TooLate),
            _ => Ok(()),
        }
    }
}

/// A request body, given in one piece while the send window is open.
///
/// `hyper` asks for it once the connection stands, and writes the head together with it: after the
/// window nothing at all reaches the provider.
struct GuardedBody {
    /// Ready at once, except in tests that hold the request here. In a mutex that is never locked,
    /// because a body must be `Sync`.
    connected: Mutex<BoxFuture<'static, ()>>,
    content: Option<Bytes>,
    window: SendWindow,
    /// Dropped with the body, once the request is written.
    _written_signal: oneshot::Sender<()>,
}

impl Body for GuardedBody {
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
        Poll::Ready(content.map(|content| self.window.ensure_open().map(|()| Frame::data(content))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.as_ref().map_or(0, |content| content.len() as u64))
    }
}

/// The HTTP client for one network.
#[expect(clippy::disallowed_methods, reason = "the only client for calls to providers")]
fn client(network: &Network, anchors: TrustAnchors) -> Result<reqwest::Client, reqwest::Error> {
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
        // One connection a request: a kept one may close under the next request, and nobody could
        // say whether that was sent.
        .pool_max_idle_per_host(0)
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(retry::never());
    if anchors == TrustAnchors::BuiltIn {
        let certificates = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
        let certificates = certificates.iter().map(|der| Certificate::from_der(der));
        builder = builder.tls_certs_only(certificates.collect::<Result<Vec<_>, _>>()?);
    }
    builder.build()
}

/// A header value that `http` keeps out of its debug output.
fn sensitive(value: &SecretString) -> Result<HeaderValue, ProviderError> {
    let mut value = HeaderValue::from_str(expose(value)).map_err(|_| {
        let message = "A secret of this client cannot be sent in a header.";
        ProviderError::new(Verdict::Misconfigured, None, ErrorCode::UnusableHeader, message)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn not_sent(code: ErrorCode, message: &str) -> ProviderError {
    ProviderError::new(Verdict::NotSent, None, code, message)
}

fn timed_out() -> ProviderError {
    let message = "The provider did not answer in time.";
    ProviderError::new(Verdict::Ambiguous, None, ErrorCode::Timeout, message)
}

fn send_window_over() -> ProviderError {
    let message = "The request was held up for too long to be safe to send.";
    ProviderError::new(Verdict::TooLate, None, ErrorCode::SendWindowOver, message)
}

/// The error of a failed exchange: before the connection stands nothing was sent, afterwards the
/// whole request may have been.
fn failure(error: &reqwest::Error) -> ProviderError {
    let first: &(dyn Error + 'static) = error;
    let mut causes = iter::successors(Some(first), |&cause| cause.source());
    if causes.any(<dyn Error>::is::<TooLate>) {
        send_window_over()
    } else if error.is_connect() {
        let (code, message) = if error.is_timeout() {
            (ErrorCode::ConnectTimeout, "The provider could not be reached in time.")
        } else {
            (ErrorCode::ConnectFailed, "The provider could not be reached.")
        };
        not_sent(code, message)
    } else if error.is_builder() {
        not_sent(ErrorCode::NotSent, "The request could not be sent.")
    } else {
        let message = "The connection to the provider broke.";
        ProviderError::new(Verdict::Ambiguous, None, ErrorCode::ConnectionBroken, message)
    }
}

#[expect(clippy::disallowed_methods, reason = "the request leaves for the provider here")]
fn expose(secret: &SecretString) -> &str {
    secret.expose_secret()
}
