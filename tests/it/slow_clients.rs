//! Clients that say nothing, or only a little.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use axum::{Router, routing::get};
use token_broker::http::server::{Limits, serve};
use tokio::{net::TcpListener, task::spawn_blocking};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A listener with small limits; it ends with the token.
async fn listener(limits: Limits) -> (SocketAddr, CancellationToken, TaskTracker) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let router = Router::new().route("/", get(async || "here"));
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
