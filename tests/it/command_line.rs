//! The command line as a person meets it, through the real binary: what every mistake gives, and
//! that the ordinary way works.

mod configuration;
mod fresh;
mod keys;
mod local;
mod remote;
mod start;
mod usage;

use std::{fs, path::PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    database::{TestDatabase, apply},
    files::contents,
    process::{ExitedProcess, Program},
};

const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;

/// Stands for every secret that a person may have put into a file, a variable or a URL.
const CANARY: &str = "kq7Zx0vWcanaryTj4mPw8e";

/// A machine on which nothing has run yet: an empty folder, and settings that keep to it.
struct Machine {
    folder: TempDir,
    variables: Vec<(String, String)>,
    postgres: Option<TestDatabase>,
}

impl Machine {
    /// With the embedded database.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state").display().to_string();
        let mut machine = Self { folder, variables: Vec::new(), postgres: None };
        machine.set("TOKEN_BROKER__STATE_DIR", &state_dir);
        machine.set("TOKEN_BROKER__PUBLIC_LISTEN", "127.0.0.1:0");
        machine.set("TOKEN_BROKER__INTERNAL_LISTEN", "127.0.0.1:0");
        machine
    }

    /// With an empty Postgres database.
    async fn postgres() -> Self {
        let database = TestDatabase::postgres().await;
        database
            .execute(
                "DO $$ DECLARE name text := current_schema(); BEGIN
                     EXECUTE format('DROP SCHEMA %I CASCADE', name);
                     EXECUTE format('CREATE SCHEMA %I', name);
                 END $$",
            )
            .await;
        let mut machine = Self::new();
        machine.set("TOKEN_BROKER__DATABASE__URL", database.plain_url());
        machine.postgres = Some(database);
        machine
    }

    /// Sets a variable for every program to come.
    fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn key_file(&self) -> PathBuf {
        self.path("state/sealing.keys")
    }

    /// Writes a file and gives its path as text.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn start(&self, arguments: &[&str]) -> Program {
        let variables: Vec<_> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Program::start(arguments, &variables)
    }

    async fn run(&self, arguments: &[&str]) -> ExitedProcess {
        self.start(arguments).end().await
    }

    /// Runs a command that succeeds, and gives what it prints.
    async fn output(&self, arguments: &[&str]) -> Vec<String> {
        let ended = self.run(arguments).await;
        assert!(ended.status.success(), "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// Runs a command that fails, and gives its one line.
    async fn refused(&self, code: i32, arguments: &[&str]) -> String {
        refusal(code, &self.run(arguments).await)
    }

    /// Makes an operator, and a file with their key.
    async fn operator(&self) -> String {
        let key = self.output(&["operators", "create", "anna"]).await.remove(0);
        self.write("operator.key", &format!("{key}\n"))
    }

    /// Starts `serve`; gives it and the URL of its internal listener.
    async fn serve(&mut self) -> (Program, String) {
        self.set("TOKEN_BROKER__LOG__FORMAT", "json");
        let mut program = self.start(&["serve"]);
        loop {
            let line: Value = serde_json::from_str(&program.complaint().await).unwrap();
            if let Some(address) = line["fields"]["internal_listen"].as_str() {
                return (program, format!("http://{address}"));
            }
        }
    }
}

/// Checks what every refusal has in common, and gives its line without the program's name.
fn refusal(code: i32, ended: &ExitedProcess) -> String {
    let said = [ended.stdout.as_slice(), ended.stderr.as_slice()].concat().join("\n");
    assert_eq!(ended.status.code(), Some(code), "{said}");
    assert!(ended.stdout.is_empty(), "on standard output: {said}");
    assert_eq!(ended.stderr.len(), 1, "{said}");
    assert_no_canary(&said);
    let line = ended.stderr[0].strip_prefix("token-broker: ");
    line.unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// Not even a part of a secret that would help to guess the rest.
fn assert_no_canary(text: &str) {
    let lower = text.to_lowercase();
    for start in 0..=CANARY.len() - 6 {
        let part = CANARY[start..start + 6].to_lowercase();
        assert!(!lower.contains(&part), "a secret in: {text}");
    }
}

/// Makes two tests of a function that takes a machine: `name::embedded` and `name::postgres`.
macro_rules! on_both_machines {
    ($(#[$attribute:meta])* async fn $name:ident $($rest:tt)+) => {
        $(#[$attribute])* async fn $name $($rest)+

        mod $name {
            use $crate::command_line::Machine;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn embedded() {
                super::$name(Machine::new()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name(Machine::postgres().await).await;
            }
        }
    };
}
use on_both_machines;
