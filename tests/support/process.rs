//! The real binary as a child process.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

/// The time after which a missing line, or a missing end, fails the test.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running `token-broker`; it is killed when dropped.
///
/// It sees `PATH` and what the test sets, nothing else of the environment, and works in an empty
/// home of its own.
pub(crate) struct Program {
    child: Child,
    home: TempDir,
    stdout: UnboundedReceiver<String>,
    stderr: UnboundedReceiver<String>,
}

/// The exit status and the remaining output of a program.
#[derive(Debug)]
pub(crate) struct ExitedProcess {
    pub(crate) status: ExitStatus,
    /// The lines of standard output that nobody had read before.
    pub(crate) stdout: Vec<String>,
    /// The lines of standard error that nobody had read before.
    pub(crate) stderr: Vec<String>,
}

impl Program {
    /// Starts the binary with these arguments and variables.
    pub(crate) fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_by(&[], arguments, variables)
    }

    /// As [`Program::start`], by way of a command that becomes the program it is told to run.
    pub(crate) fn start_by(by: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut words = by.iter().chain([&env!("CARGO_BIN_EXE_token-broker")]).chain(arguments);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(home.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Self { child, home, stdout, stderr }
    }

    /// Runs the binary to its end.
    pub(crate) async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> ExitedProcess {
        Self::start(arguments, variables).end().await
    }

    /// Its home, working folder and folder for temporary files.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The next line of standard output. Fails when there is none before its end or the deadline.
    pub(crate) async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.stdout.recv()).await.ok().flatten();
        line.unwrap_or_else(|| panic!("no further line; it complained:\n{}", self.complaints()))
    }

    /// The next JSON object on standard output; lines before it that are none are passed over.
    pub(crate) async fn json(&mut self) -> Value {
        loop {
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(&self.line().await) {
                return value;
            }
        }
    }

    /// The next line of standard error. Fails when there is none before its end or the deadline.
    pub(crate) async fn complaint(&mut self) -> String {
        let line = timeout(PATIENCE, self.stderr.recv()).await.ok().flatten();
        line.expect("it says something on standard error")
    }

    /// Waits for a line of standard error that holds these words.
    pub(crate) async fn hear(&mut self, words: &str) {
        while !self.complaint().await.contains(words) {}
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Sends a signal by its name, such as `TERM` or `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success(), "kill -s {name} {pid}: {sent}");
    }

    /// Waits for its end, whatever it may still say.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let all = async { (rest(&mut self.stdout).await, rest(&mut self.stderr).await) };
        assert!(timeout(PATIENCE, all).await.is_ok(), "it still runs after {PATIENCE:?}");
        self.child.wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> ExitedProcess {
        // Both pipes end when the process does; only then is it collected, which does not block.
        let all = async { (rest(&mut self.stdout).await, rest(&mut self.stderr).await) };
        let Ok((stdout, stderr)) = timeout(PATIENCE, all).await else {
            panic!("it still runs after {PATIENCE:?}");
        };
        let status = self.child.wait().unwrap();
        ExitedProcess { status, stdout, stderr }
    }

    /// Waits for its end and lists what it left in its home.
    pub(crate) async fn left_behind(mut self) -> Vec<String> {
        self.wait().await;
        let left = std::fs::read_dir(self.home.path()).unwrap();
        left.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// The lines of standard error so far.
    fn complaints(&mut self) -> String {
        let mut said = Vec::new();
        while let Ok(line) = self.stderr.try_recv() {
            said.push(line);
        }
        said.join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads lines on a thread of its own, so that a full pipe never stops the child.
fn lines(pipe: impl Read + Send + 'static) -> UnboundedReceiver<String> {
    let (sender, receiver) = unbounded_channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

async fn rest(lines: &mut UnboundedReceiver<String>) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(line) = lines.recv().await {
        all.push(line);
    }
    all
}
