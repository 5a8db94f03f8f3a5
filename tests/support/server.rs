//! A throwaway `PostgreSQL` server of a test's own, to be killed and started again.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, chown},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;

/// The variable with the folder of the programs.
const TEST_POSTGRES_BIN: &str = "TEST_POSTGRES_BIN";

/// The time that a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server; it ends with the test.
pub(crate) struct Server {
    programs: PathBuf,
    folder: TempDir,
    /// The user and group that run it where the test runs as root.
    user: Option<(u32, u32)>,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// Makes a cluster and starts it.
    pub(crate) fn start() -> Self {
        let programs = std::env::var_os(TEST_POSTGRES_BIN).unwrap_or_else(|| {
            panic!("{TEST_POSTGRES_BIN} is not set: run `tests/run`, which finds PostgreSQL")
        });
        let folder = tempfile::tempdir().unwrap();
        let is_root = fs::metadata(folder.path()).unwrap().uid() == 0;
        let user = is_root.then(|| (id("-u"), id("-g")));
        if let Some((user, group)) = user {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut this = Self { programs: programs.into(), folder, user, port, process: None };
        let made = this
            .program("initdb")
            .args(["--username=tests", "--auth=trust", "--encoding=UTF8", "--no-sync", "--pgdata"])
            .arg(this.data())
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        this.start_again();
        this
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://tests@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts it on what it left, and waits until it accepts connections.
    pub(crate) fn start_again(&mut self) {
        let process = self
            .program("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "fsync=off"])
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.unwrap());
        let started = Instant::now();
        let port = self.port.to_string();
        let is_ready = || {
            let mut ask = self.program("pg_isready");
            ask.args(["--quiet", "--host=127.0.0.1", "--port", &port]).status().unwrap().success()
        };
        while !is_ready() {
            assert!(started.elapsed() < PATIENCE, "PostgreSQL accepts no connections");
        }
    }

    /// Ends it at once: every connection is cut, and nothing is put in order.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        drop(Command::new("kill").args(["-s", "QUIT", &process.id().to_string()]).status());
        drop(process.wait());
    }

    /// The folder of the cluster.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// One of its programs. None runs as root; there they run as who owns the folder.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = match &self.user {
            None => Command::new(program),
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                let user = [format!("--reuid={user}"), format!("--regid={group}")];
                command.args(user).args(["--clear-groups", "--pdeathsig=QUIT"]).arg(program);
                command
            }
        };
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A number of the user whom Debian's package makes, or of `nobody`.
fn id(which: &str) -> u32 {
    let ask = |user| Command::new("id").args([which, user]).output().unwrap().stdout;
    let parse = |said: Vec<u8>| String::from_utf8_lossy(&said).trim().parse().ok();
    parse(ask("postgres")).or_else(|| parse(ask("nobody"))).unwrap()
}
