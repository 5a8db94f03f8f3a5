//! Stands between the broker and a simulated provider, and hears every word: which secrets there
//! are, nobody else could tell.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::canaries::Kind;

type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// A relay; it ends with the test.
pub(super) struct Relay {
    pub(super) port: u16,
    heard: Heard,
    _accepting: JoinSet<()>,
}

impl Relay {
    pub(super) async fn start(provider: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Heard::default();
        let mut accepting = JoinSet::new();
        let hears = Arc::clone(&heard);
        accepting.spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((broker, _)) = listener.accept().await {
                let Ok(provider) = TcpStream::connect(("127.0.0.1", provider)).await else {
                    continue;
                };
                let (from_broker, to_broker) = broker.into_split();
                let (from_provider, to_provider) = provider.into_split();
                ways.spawn(pass_on(from_broker, to_provider, Arc::clone(&hears)));
                ways.spawn(pass_on(from_provider, to_broker, Arc::clone(&hears)));
            }
        });
        Self { port, heard, _accepting: accepting }
    }

    /// Every secret that went by.
    pub(super) fn secrets(&self) -> Vec<(Kind, String)> {
        let heard = self.heard.lock();
        heard.iter().flat_map(|said| secrets(&String::from_utf8_lossy(said))).collect()
    }
}

async fn pass_on(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, heard: Heard) {
    let mut said = Vec::new();
    let mut part = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut part).await {
        said.extend(&part[..length]);
        if to.write_all(&part[..length]).await.is_err() {
            break;
        }
    }
    // Who hears the end may look at once at what was heard.
    heard.lock().push(said);
    drop(to.shutdown().await);
}

/// The secrets of one message, which is the last on its connection.
fn secrets(message: &str) -> Vec<(Kind, String)> {
    let Some((_, body)) = message.split_once("\r\n\r\n") else { return Vec::new() };
    let members: Vec<(String, String)> = match serde_json::from_str(body) {
        Ok(Value::Object(members)) => {
            let text = |value: Value| value.as_str().map(str::to_owned);
            members.into_iter().filter_map(|(name, value)| Some((name, text(value)?))).collect()
        }
        _ => url::form_urlencoded::parse(body.as_bytes()).into_owned().collect(),
    };
    let kind = |name: &str| match name {
        "access_token" => Some(Kind::Access),
        "api_key" => Some(Kind::AccountKey),
        "client_secret" => Some(Kind::ClientSecret),
        "code_verifier" => Some(Kind::Verifier),
        "refresh_token" => Some(Kind::Refresh),
        _ => None,
    };
    let secrets = members.into_iter().filter_map(|(name, value)| Some((kind(&name)?, value)));
    secrets.filter(|(_, value)| value.len() >= 12).collect()
}
