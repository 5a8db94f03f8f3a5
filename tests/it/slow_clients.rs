//! Clients that say nothing, or only a little.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    routing::{get, post},
};
use serde_json::Value;
use token_broker::http::server::{Limits, serve};
use tokio::{net::TcpListener, task::spawn_blocking, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::process::Program;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(40);

/// More than fits between two processes that do not read.
const LARGE: usize = 32 * 1024 * 1024;

/// A listener with small limits; it ends with the token.
async fn listener(limits: Limits) -> (SocketAddr, CancellationToken, TaskTracker) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let router = Router::new()
        .route("/", get(async || "here"))
        .route("/large", get(async || vec![b'x'; LARGE]))
        .route("/read", post(async |body: Bytes| format!("{} bytes", body.len())));
    tasks.spawn(serve(listener, router, shutdown.clone(), limits));
    tasks.close();
    (address, shutdown, tasks)
}

/// Says this much, and returns what comes until the other side hangs up.
fn say(address: SocketAddr, words: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(words.as_bytes()).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("the other side hangs up");
    String::from_utf8_lossy(&heard).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_half_a_request_end_with_the_time_for_a_head() {
    let limits = Limits { head: Duration::from_millis(200), connections: 2, ..Limits::default() };
    let (address, shutdown, tasks) = listener(limits).await;
    for words in
        ["", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let heard = spawn_blocking(move || say(address, words)).await.unwrap();
        assert!(!heard.contains("200 OK"), "{words:?}: {heard}");
    }
    // Two who say nothing have all the places; a third is served once they are gone.
    let silent: Vec<_> = (0..2).map(|_| TcpStream::connect(address).unwrap()).collect();
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let heard = spawn_blocking(move || say(address, request)).await.unwrap();
    assert!(heard.ends_with("here"), "{heard}");
    drop(silent);
    shutdown.cancel();
    tasks.wait().await;
}

/// Says the first words at once and then one byte at a time, until the other side hangs up; gives
/// what it said.
fn trickle(address: SocketAddr, words: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    stream.write_all(words.as_bytes()).unwrap();
    let mut heard = Vec::new();
    let mut part = [0; 1024];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => heard.extend(&part[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
        if stream.write_all(b"x").is_err() {
            break;
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_byte_by_byte_is_cut() {
    let limits = Limits { body: Duration::from_millis(400), ..Limits::default() };
    let (address, shutdown, tasks) = listener(limits).await;
    for length in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let words = format!("POST /read HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n1000\r\nbody");
        let heard = timeout(PATIENCE, spawn_blocking(move || trickle(address, &words))).await;
        let heard = heard.expect("it is cut").unwrap();
        assert!(heard.starts_with("HTTP/1.1 400"), "{length}: {heard}");
    }
    let words =
        "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
    let heard = spawn_blocking(move || say(address, words)).await.unwrap();
    assert!(heard.ends_with("4 bytes"), "what comes at once is taken: {heard}");
    shutdown.cancel();
    tasks.wait().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_reads_gives_its_place_back() {
    let limits = Limits { write: Duration::from_millis(200), connections: 1, ..Limits::default() };
    let (address, shutdown, tasks) = listener(limits).await;
    let mut deaf = TcpStream::connect(address).unwrap();
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // The one place is taken until the deaf one is given up.
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let heard = timeout(PATIENCE, spawn_blocking(move || say(address, request))).await;
    let heard = heard.expect("its place is given back").unwrap();
    assert!(heard.ends_with("here"), "{heard}");
    drop(deaf);
    shutdown.cancel();
    tasks.wait().await;
    // Who does read gets it all. A reader's thread may stand still for longer than the limit above.
    let (address, shutdown, tasks) = listener(Limits::default()).await;
    let large = "GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let heard = spawn_blocking(move || say(address, large)).await.unwrap();
    assert!(heard.len() > LARGE, "{} bytes", heard.len());
    shutdown.cancel();
    tasks.wait().await;
}

/// T63, through the real binary, which has few file descriptors: whoever floods the public listener
/// leaves the internal one alone, and on both a body has its ten seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_the_public_listener_leaves_the_internal_one_its_places() {
    let home = tempfile::tempdir().unwrap();
    let state_dir = home.path().join("state").display().to_string();
    let variables = [
        ("TOKEN_BROKER__STATE_DIR", state_dir.as_str()),
        ("TOKEN_BROKER__PUBLIC_LISTEN", "127.0.0.1:0"),
        ("TOKEN_BROKER__INTERNAL_LISTEN", "127.0.0.1:0"),
        ("TOKEN_BROKER__LOG__FORMAT", "json"),
    ];
    // The soft limit is as low as some systems set it; the hard one is what counts.
    let few = ["prlimit", "--nofile=64:200"];
    let mut program = Program::start_by(&few, &["serve"], &variables);
    let (public, internal) = loop {
        let line: Value = serde_json::from_str(&program.complaint().await).unwrap();
        let address = |name: &str| line["fields"][name].as_str().map(|text| text.parse().unwrap());
        if let Some(both) = address("public_listen").zip(address("internal_listen")) {
            break both;
        }
    };
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.pid())).unwrap();
    let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(open.split_whitespace().nth(3), Some("200"), "{open}");

    let slow = |address: SocketAddr, path: &str| {
        let words = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\n"
        );
        spawn_blocking(move || trickle(address, &words))
    };
    let bodies =
        [slow(internal, "/oauth2/token"), slow(public, "/connect/x"), slow(internal, "/nowhere")];

    // Three times as many as there are descriptors; each that is given up is replaced.
    let ends = CancellationToken::new();
    let flood = ends.clone();
    let flood = spawn_blocking(move || {
        let begin = || {
            let mut stream = TcpStream::connect(public).ok()?;
            drop(stream.write_all(b"GET /connect/x HTTP/1.1\r\nHost: "));
            stream.set_nonblocking(true).ok()?;
            Some(stream)
        };
        let mut all: Vec<_> = (0..600).filter_map(|_| begin()).collect();
        let most = all.len();
        while !flood.is_cancelled() {
            all.retain_mut(|stream| {
                let end = stream.read(&mut [0; 16]);
                matches!(end, Err(error) if error.kind() == ErrorKind::WouldBlock)
            });
            all.extend((all.len()..most).filter_map(|_| begin()));
        }
        most
    });
    let request = "GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut answers = 0;
    // As long as the slowest body lasts, and so for longer than a head may take.
    let bodies = async {
        for body in bodies {
            let heard = body.await.unwrap();
            assert!(heard.starts_with("HTTP/1.1 4") || heard.is_empty(), "{heard}");
        }
    };
    let reads = async {
        loop {
            let read =
                timeout(Duration::from_secs(15), spawn_blocking(move || say(internal, request)));
            let heard = read.await.expect("the internal listener answers").unwrap();
            assert!(heard.starts_with("HTTP/1.1 204"), "{heard}");
            answers += 1;
        }
    };
    tokio::select! {
        cut = timeout(PATIENCE, bodies) => cut.expect("slow bodies are cut"),
        () = reads => {}
    }
    ends.cancel();
    assert!(flood.await.unwrap() > 400, "the flood is larger than the limit");
    assert!(answers > 10, "{answers}");
    program.signal("TERM");
    let ended = program.end().await;
    assert!(ended.status.success(), "{ended:?}");
    // Who finds none left waits until some client goes away.
    let out = ended.stderr.iter().find(|line| line.contains("cannot accept a connection"));
    assert_eq!(out, None, "there were descriptors for every place");
}
