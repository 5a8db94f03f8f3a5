//! The one place that sends, against servers on this machine that misbehave.

use std::{future::ready, net::SocketAddr, pin::pin, process::Command, sync::Arc, time::Duration};

use jiff::SignedDuration;
use parking_lot::Mutex;
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::{
    clock::Clock,
    failpoint::Failpoints,
    provider::{
        Body, MAX_BODY, Network, Outbound, OutboundRequest, Profile, ProviderError, Reply,
        TrustAnchors, Verdict, read_grant, test_support,
    },
};

/// A server that reads each request whole, then sends what a test wants it to.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<(SocketAddr, String)>>>,
}

/// The server's behaviour after its answer.
#[derive(Clone, Copy)]
enum Then {
    /// Closes the connection.
    Close,
    /// Repeats its last kilobyte until the client hangs up.
    Flood,
    /// Leaves the connection open and says no more.
    Stall,
    /// Waits for the next request on the same connection.
    KeepAlive,
}

impl Server {
    async fn start(answer: impl Into<String>, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), answer.into());
        // It ends with the test's runtime.
        TaskTracker::new().spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, peer)) = listener.accept().await {
                while let Some(request) = read(&mut stream).await {
                    seen.lock().push((peer, request));
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    match then {
                        Then::Close => break,
                        Then::Flood => while stream.write_all(&[b' '; 1024]).await.is_ok() {},
                        Then::Stall => {
                            open.push(stream);
                            break;
                        }
                        Then::KeepAlive => {}
                    }
                }
            }
        });
        Self { address, requests }
    }

    /// A server that speaks first, and listens to nobody.
    async fn greeting(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        TaskTracker::new().spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(text.as_bytes()).await.unwrap();
                open.push(stream);
            }
        });
        address
    }

    /// The requests, and which connection each came over.
    fn seen(&self) -> Vec<(SocketAddr, String)> {
        self.requests.lock().clone()
    }

    async fn asked(&self) -> Result<Reply, ProviderError> {
        send(&format!("http://{}/token", self.address), &profile(Network::Loopback)).await
    }
}

/// Reads one request with its body; none at the end of the connection.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Some(text);
        }
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

pub(super) fn profile(network: Network) -> Profile {
    let mut profile = (*test_support::profile("avito")).clone();
    profile.network = network;
    profile.token.timeout = Duration::from_secs(20);
    profile
}

fn post(url: &str) -> OutboundRequest {
    OutboundRequest {
        method: Method::POST,
        url: Url::parse(url).unwrap(),
        headers: Vec::new(),
        body: Body::Form(vec![("refresh_token".to_owned(), "r t".into())]),
    }
}

pub(super) async fn send(url: &str, profile: &Profile) -> Result<Reply, ProviderError> {
    Outbound::new(Clock::system(), Failpoints::default())
        .unwrap()
        .send(profile, post(url), None)
        .await
}

#[tokio::test]
async fn a_request_carries_what_it_should_and_the_answer_is_read() {
    let answer = "HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}";
    let server = Server::start(answer, Then::Close).await;
    let reply = server.asked().await.unwrap();
    assert_eq!(reply.status, 429);
    assert_eq!(reply.retry_after, Some(Duration::from_secs(7)));
    let error = read_grant(&profile(Network::Loopback), &reply).unwrap_err();
    assert_eq!(error.verdict, Verdict::Busy { retry_after: Some(Duration::from_secs(7)) });

    let [(_, request)] = server.seen().try_into().unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "refresh_token=r+t");
    let (line, headers) = head.split_once("\r\n").unwrap();
    assert_eq!(line, "POST /token HTTP/1.1");
    let mut headers: Vec<_> = headers.lines().filter(|line| !line.starts_with("host")).collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            "accept-encoding: identity",
            "accept: application/json",
            "content-length: 17",
            "content-type: application/x-www-form-urlencoded",
            concat!("user-agent: token-broker/", env!("CARGO_PKG_VERSION")),
        ]
    );
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Server::start(ok("{}"), Then::Close).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
            target.address
        );
        let server = Server::start(answer, Then::Close).await;
        let reply = server.asked().await.unwrap();
        let error = read_grant(&profile(Network::Loopback), &reply).unwrap_err();
        assert_eq!(error.verdict, Verdict::Misconfigured, "{status}");
        assert_eq!(server.seen().len(), 1);
    }
    assert!(target.seen().is_empty());
}

#[tokio::test]
async fn a_request_that_was_read_is_never_sent_again() {
    let server = Server::start("", Then::Close).await;
    let error = server.asked().await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "connection_broken"));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn every_request_has_a_connection_of_its_own() {
    let server = Server::start(ok("{}"), Then::KeepAlive).await;
    let outbound = Outbound::new(Clock::system(), Failpoints::default()).unwrap();
    let request = || OutboundRequest {
        method: Method::GET,
        url: Url::parse(&format!("http://{}/", server.address)).unwrap(),
        headers: Vec::new(),
        body: Body::Empty,
    };
    let profile = profile(Network::Loopback);
    outbound.send(&profile, request(), None).await.unwrap();
    outbound.send(&profile, request(), None).await.unwrap();
    let [(first, _), (second, _)] = server.seen().try_into().unwrap();
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_stalled_answer_ends_in_time_and_gives_up_its_refresh_token() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{\"refresh_token\":\"rt\",";
    let server = Server::start(answer, Then::Stall).await;
    let mut profile = profile(Network::Loopback);
    profile.token.timeout = Duration::from_millis(300);
    let error = send(&format!("http://{}/", server.address), &profile).await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "timeout"));
    assert_eq!(error.status, Some(200));
    assert!(error.salvaged_refresh.is_some());

    let silent = Server::start("", Then::Stall).await;
    let error = send(&format!("http://{}/", silent.address), &profile).await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "timeout"));
}

#[tokio::test]
async fn a_cut_answer_gives_up_its_refresh_token() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{\"refresh_token\":\"rt\",";
    let error = Server::start(answer, Then::Close).await.asked().await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "connection_broken"));
    assert!(error.salvaged_refresh.is_some());
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let head = "HTTP/1.1 200 OK\r\n\r\n{\"refresh_token\":\"rt\",";
    let error = Server::start(head, Then::Flood).await.asked().await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "answer_too_large"));
    assert!(error.salvaged_refresh.is_some());

    let reply = Server::start(ok(&" ".repeat(MAX_BODY)), Then::Close).await.asked().await;
    assert_eq!(reply.unwrap().status, 200);
    let error = Server::start(ok(&" ".repeat(MAX_BODY + 1)), Then::Close).await.asked().await;
    assert_eq!(error.unwrap_err().code, "answer_too_large");
}

#[tokio::test]
async fn large_or_many_headers_are_refused() {
    let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(40_000));
    let error = Server::start(large, Then::Close).await.asked().await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "answer_too_large"));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(200));
    let error = Server::start(many, Then::Close).await.asked().await.unwrap_err();
    assert_eq!(error.verdict, Verdict::Ambiguous);
}

#[tokio::test]
async fn a_compressed_answer_is_refused() {
    for encoding in ["gzip", "br", "gzip, gzip, gzip", "x-unknown"] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\n\r\n{{}}");
        let error = Server::start(answer, Then::Close).await.asked().await.unwrap_err();
        assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "compressed_answer"));
    }
    let identity = "HTTP/1.1 200 OK\r\ncontent-encoding: identity\r\n\r\n{}";
    assert!(Server::start(identity, Then::Close).await.asked().await.is_ok());
}

#[tokio::test]
async fn what_never_connects_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let error = send(&format!("http://{nobody}/"), &profile(Network::Loopback)).await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::NotSent, "connect_failed"));

    // A server that does not speak TLS, and one that says nothing.
    let server = Server::greeting("HTTP/1.1 400 Bad\r\n\r\n").await;
    let error = send(&format!("https://{server}/"), &profile(Network::Loopback)).await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::NotSent, "connect_failed"));
    let server = Server::greeting("").await;
    let error = send(&format!("https://{server}/"), &profile(Network::Loopback)).await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::NotSent, "connect_timeout"));
}

#[tokio::test]
async fn a_request_that_is_held_up_past_its_time_never_leaves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let clock = Clock::system();
    let outbound = Outbound::new(clock.clone(), Failpoints::default()).unwrap();
    let profile = profile(Network::Loopback);
    let window = Duration::from_mins(1);
    let before = clock.since_boot() + window;
    let mut sending = pin!(outbound.send(&profile, post(&url), Some(before)));
    tokio::select! {
        biased;
        sent = &mut sending => panic!("it cannot have connected yet: {sent:?}"),
        () = ready(()) => {}
    }
    clock.advance(window);
    let error = sending.await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::TooLate, "send_window_over"));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut arrived = Vec::new();
    stream.read_to_end(&mut arrived).await.unwrap();
    assert!(arrived.is_empty(), "{}", String::from_utf8_lossy(&arrived));

    // After the send window not even a connection is opened.
    drop(listener);
    let error = outbound.send(&profile, post(&url), Some(before)).await.unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::TooLate, "send_window_over"));
    // Setting the wall clock back gives it no more time, and whoever is in time is let through.
    clock.step_wall(SignedDuration::from_hours(-1));
    assert_eq!(
        outbound.send(&profile, post(&url), Some(before)).await.unwrap_err().code,
        "send_window_over"
    );
    let server = Server::start(ok("{}"), Then::Close).await;
    let url = format!("http://{}/", server.address);
    let before = clock.since_boot() + window;
    assert_eq!(outbound.send(&profile, post(&url), Some(before)).await.unwrap().status, 200);
}

#[tokio::test]
async fn nothing_is_sent_out_of_the_network() {
    let server = Server::start(ok("{}"), Then::Close).await;
    let port = server.address.port();
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("https://localhost:{port}/"),
        "https://127.0.0.1/".to_owned(),
        "https://2130706433/".to_owned(),
        "https://169.254.169.254/".to_owned(),
    ] {
        let error = send(&url, &profile(Network::Public)).await.unwrap_err();
        assert_eq!((error.verdict, &*error.code), (Verdict::Misconfigured, "outside_network"));
    }
    // A listed name that leads elsewhere: found at dial time.
    let private = Network::Private {
        hosts: vec!["demo.localhost".to_owned()],
        networks: vec!["10.0.0.0/8".to_owned().try_into().unwrap()],
    };
    let url = format!("https://demo.localhost:{port}/");
    let error = send(&url, &profile(private)).await.unwrap_err();
    assert_eq!(error.verdict, Verdict::NotSent);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn names_under_localhost_reach_this_machine() {
    let server = Server::start(ok("{}"), Then::Close).await;
    let url = format!("http://demo.amocrm.localhost:{}/", server.address.port());
    assert_eq!(send(&url, &profile(Network::Loopback)).await.unwrap().status, 200);
    assert!(server.seen()[0].1.contains("host: demo.amocrm.localhost"));
}

/// Runs the calling test once more in a process with these variables; true inside of it.
fn with_environment(test: &str, variables: &[(&str, &str)]) -> bool {
    if variables.iter().all(|(name, value)| std::env::var(name).is_ok_and(|is| is == *value)) {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("{}::{test}", module_path!().split_once("::").unwrap().1)]);
    let output = again.envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

#[tokio::test]
async fn a_proxy_named_by_the_environment_is_not_used() {
    let nobody = "http://127.0.0.1:1";
    let proxies = [("HTTP_PROXY", nobody), ("http_proxy", nobody), ("ALL_PROXY", nobody)];
    if with_environment("a_proxy_named_by_the_environment_is_not_used", &proxies) {
        assert!(Server::start(ok("{}"), Then::Close).await.asked().await.is_ok());
    }
}

#[test]
fn a_machine_without_certificates_gets_the_built_in_ones() {
    let none = [("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")];
    if with_environment("a_machine_without_certificates_gets_the_built_in_ones", &none) {
        assert_eq!(
            Outbound::new(Clock::system(), Failpoints::default()).unwrap().trust_anchors(),
            TrustAnchors::BuiltIn
        );
    }
}
