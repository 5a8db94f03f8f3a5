//! A connection between a test and its `PostgreSQL` that can be cut.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use url::Url;

use crate::support::database::TestDatabase;

/// The treatment of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// They arrive.
    Open,
    /// Every connection is closed, and every new one.
    Cut,
    /// They vanish, as when a cable is pulled: what was connected by then never hears again.
    Silent,
}

/// The treatment of a connection whose answer was swallowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Then {
    /// It is closed.
    Close,
    /// It stays as it is, and nothing ever comes over it again.
    FallSilent,
}

/// A running relay. Dropping it closes all connections for good.
pub(crate) struct CuttableConnection {
    way: watch::Sender<Way>,
    swallows: watch::Sender<Option<Then>>,
    _carrying: JoinSet<()>,
}

impl CuttableConnection {
    /// Puts itself between the database and whoever opens it from now on.
    pub(crate) async fn before(database: &mut TestDatabase) -> Self {
        let mut url: Url = database.plain_url().parse().unwrap();
        let server = url.socket_addrs(|| Some(5432)).unwrap()[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let way = watch::Sender::new(Way::Open);
        let swallows = watch::Sender::new(None);
        let mut carrying = JoinSet::new();
        carrying.spawn(accept(listener, server, way.subscribe(), swallows.clone()));
        database.url = url.to_string().into();
        Self { way, swallows, _carrying: carrying }
    }

    /// Closes every connection, and every new one.
    pub(crate) fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// Lets nothing through any more, and tells nobody.
    pub(crate) fn silence(&self) {
        self.way.send_replace(Way::Silent);
    }

    /// Lets new connections through again.
    pub(crate) fn mend(&self) {
        self.way.send_replace(Way::Open);
    }

    /// The next COMMIT is carried to the server and its answer is not carried back. Its connection
    /// is closed, or it stays as it is and nothing ever comes over it again.
    pub(crate) fn swallow_commit(&self, then: Then) {
        self.swallows.send_replace(Some(then));
    }

    /// True once that has happened.
    pub(crate) fn has_swallowed(&self) -> bool {
        self.swallows.borrow().is_none()
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    way: watch::Receiver<Way>,
    swallows: watch::Sender<Option<Then>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        connections.spawn(carry(client, server, way.clone(), swallows.clone()));
    }
}

async fn carry(
    mut client: TcpStream,
    server: SocketAddr,
    mut way: watch::Receiver<Way>,
    swallows: watch::Sender<Option<Then>>,
) {
    let mut after = way.clone();
    tokio::select! {
        biased;
        changed = way.wait_for(|way| *way != Way::Open) => {
            if changed.is_ok_and(|way| *way == Way::Cut) {
                return;
            }
        }
        then = talk(&mut client, server, &swallows) => {
            if then == Then::Close {
                return;
            }
        }
    }
    // The connection stays open and is dead, whatever becomes of the line; only a cut ends it.
    drop(after.wait_for(|way| *way == Way::Cut).await);
    drop(client);
}

/// Carries bytes both ways until either side hangs up, or an answer is swallowed.
async fn talk(
    client: &mut TcpStream,
    server: SocketAddr,
    swallows: &watch::Sender<Option<Then>>,
) -> Then {
    let Ok(mut server) = TcpStream::connect(server).await else { return Then::Close };
    let mut said = vec![0; 64 * 1024];
    let mut answered = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            read = client.read(&mut said) => {
                let said = &said[..read.unwrap_or(0)];
                if said.is_empty() || server.write_all(said).await.is_err() {
                    return Then::Close;
                }
                let commits = said.windows(7).any(|word| word == b"COMMIT\0");
                if commits && let Some(then) = swallows.send_replace(None) {
                    // It answers when it is done.
                    drop(server.read(&mut answered).await);
                    return then;
                }
            }
            read = server.read(&mut answered) => {
                let answer = &answered[..read.unwrap_or(0)];
                if answer.is_empty() || client.write_all(answer).await.is_err() {
                    return Then::Close;
                }
            }
        }
    }
}
