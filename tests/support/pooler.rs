//! A pooler in transaction mode between a test and its database.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use url::Url;

/// The variable with the path of the program.
const TEST_PGBOUNCER: &str = "TEST_PGBOUNCER";

/// A running `PgBouncer`; it ends with the test.
pub(crate) struct Pooler {
    /// The URL of the database through it.
    pub(crate) url: String,
    child: Child,
    _folder: TempDir,
}

impl Pooler {
    /// Starts one before the schema of that name on the server of `admin_url`.
    pub(crate) async fn start(admin_url: &str, schema: &str) -> Self {
        let program = std::env::var(TEST_PGBOUNCER).unwrap_or_else(|_| {
            panic!("{TEST_PGBOUNCER} is not set: run `tests/run`, which brings a PgBouncer")
        });
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = folder.path().join("pgbouncer.ini");
        let mut text = configuration(&admin_url.parse().unwrap(), schema, port);
        // It refuses to run as root.
        if fs::metadata(folder.path()).unwrap().uid() == 0 {
            text += "user = nobody\n";
        }
        fs::write(&settings, text).unwrap();
        let mut pgbouncer = Command::new(program);
        let pgbouncer = pgbouncer.arg("--quiet").arg(settings).stdin(Stdio::null());
        let child = pgbouncer.spawn().unwrap();
        let listens = async { while TcpStream::connect(("127.0.0.1", port)).await.is_err() {} };
        assert!(timeout(Duration::from_secs(30), listens).await.is_ok(), "no pooler listens");
        let url = format!("postgres://tests@127.0.0.1:{port}/broker");
        Self { url, child, _folder: folder }
    }
}

/// So few connections that who keeps one for himself is soon noticed. A pooler knows no start-up
/// options, so it is the one to choose the schema.
fn configuration(server: &Url, schema: &str, port: u16) -> String {
    format!(
        "[databases]
broker = host={} port={} dbname={} user={} password={} connect_query='SET search_path = {schema}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 200
",
        server.host_str().unwrap(),
        server.port().unwrap(),
        server.path().trim_start_matches('/'),
        server.username(),
        server.password().unwrap_or_default(),
    )
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
