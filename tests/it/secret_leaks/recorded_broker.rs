//! The real binary with its log at `trace`, and a record of all that it prints, answers and writes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use token_broker::{
    seal::secret,
    simulator::{Fault, Simulated, SimulatorSettings},
};

use super::{
    canaries::{Canaries, Kind},
    relay::Relay,
};
use crate::support::{
    api::Answer, database::TestDatabase, deployment::Deployment, files::contents, person::Person,
    process::Program, server::Server,
};

/// Text of a provider that tries to forge a line of the log.
pub(super) const FORGED: &str =
    "\r\n{\"level\":\"ERROR\",\"forged\":1}\r\n\u{1b}[2J\u{1b}[31mforged\u{7}\u{202e}";

/// The longest line that a log may hold.
const LONGEST_LINE: usize = 16 * 1024;

/// A broker as a process, and a list of all that came out of it.
pub(super) struct RecordedBroker {
    deployment: Deployment,
    format: &'static str,
    /// The API key of an amoCRM account from before 2020.
    pub(super) account_key: String,
    relays: Vec<Relay>,
    program: Option<Program>,
    server: Option<Server>,
    pub(super) canaries: Canaries,
    /// The lines of standard output and standard error.
    output: Vec<String>,
    /// The answers: to what, which secrets belong there, and the text.
    answers: Mutex<Vec<(String, Vec<Kind>, String)>>,
}

impl Deref for RecordedBroker {
    type Target = Deployment;

    fn deref(&self) -> &Deployment {
        &self.deployment
    }
}

#[expect(clippy::disallowed_methods, reason = "a secret of this test's own making")]
fn random() -> String {
    secrecy::ExposeSecret::expose_secret(&secret::random()).to_owned()
}

/// Providers whose secrets nobody could guess, with an account that has an evil name.
fn simulated(canaries: &mut Canaries) -> SimulatorSettings {
    let mut settings = SimulatorSettings::default();
    for secret in [
        &mut settings.admitad.simulated_client_secret,
        &mut settings.amocrm.simulated_client_secret,
        &mut settings.avito.simulated_client_secret,
        &mut settings.divar.simulated_client_secret,
        &mut settings.kommo.simulated_client_secret,
        &mut settings.divar.simulated_api_key,
    ] {
        *secret = random();
        canaries.plant(Kind::ClientSecret, secret);
    }
    settings.amocrm.accounts[0].simulated_api_key = random();
    settings.avito.accounts[0].name = format!("Demo {FORGED}");
    settings
}

impl RecordedBroker {
    pub(super) async fn start(format: &'static str, server: Option<Server>) -> Self {
        let mut canaries = Canaries::new();
        let simulated = simulated(&mut canaries);
        let account_key = simulated.amocrm.accounts[0].simulated_api_key.clone();
        let pkce = "[providers.profiles.divar.authorize]\npkce = true\n";
        let mut deployment = Deployment::new(TestDatabase::sqlite().await, simulated, pkce).await;
        // The database and the key file are made under the eyes of the test, too.
        fs::remove_file(deployment.key_file()).unwrap();
        deployment.settings.remove("database");
        if let Some(server) = &server {
            let url = server.url();
            deployment.settings.insert("database".to_owned(), toml::toml! { url = url }.into());
        }
        let mut text = deployment.settings.to_string();
        let mut relays = Vec::new();
        for which in Simulated::ALL {
            let port = deployment.simulator(which).port();
            let relay = Relay::start(port).await;
            text = text.replace(&format!(":{port}"), &format!(":{}", relay.port));
            relays.push(relay);
        }
        deployment.settings = text.parse().unwrap();
        let mut this = Self {
            deployment,
            format,
            account_key,
            relays,
            program: None,
            server,
            canaries,
            output: Vec::new(),
            answers: Mutex::default(),
        };
        if this.server.is_some() {
            this.command(&["keys", "generate"]).await;
        }
        let operator = this.command(&["operators", "create", "alice"]).await.remove(0);
        this.plant_key(&operator);
        this.deployment.api.operator_key = operator;
        this.deployment.release_addresses();
        this.serve().await;
        this
    }

    fn program(&self, command: &[&str]) -> Program {
        let config = self.config();
        let log =
            [("TOKEN_BROKER__LOG__FILTER", "trace"), ("TOKEN_BROKER__LOG__FORMAT", self.format)];
        Program::start(&[&["--config", config.to_str().unwrap()], command].concat(), &log)
    }

    /// Runs a command to its end, and gives what belongs to its caller.
    async fn command(&mut self, command: &[&str]) -> Vec<String> {
        let ended = self.program(command).end().await;
        assert!(ended.status.success(), "{ended:?}");
        self.output.extend(ended.stderr);
        ended.stdout
    }

    /// Starts the broker and waits until it serves.
    pub(super) async fn serve(&mut self) {
        let mut program = self.program(&["serve"]);
        loop {
            let line = program.complaint().await;
            let serves = line.contains("internal_listen");
            self.output.push(line);
            if serves {
                break;
            }
        }
        self.program = Some(program);
    }

    /// Ends the broker by a signal and keeps its output. It has left no file in its home.
    pub(super) async fn end(&mut self, signal: &str) {
        let program = self.program.take().unwrap();
        program.signal(signal);
        let home = program.home().to_owned();
        let files = contents(&home);
        assert!(files.is_empty(), "{files:?}");
        let ended = program.end().await;
        self.output.extend(ended.stdout);
        self.output.extend(ended.stderr);
    }

    /// A key of this API: what follows its public name is secret.
    pub(super) fn plant_key(&mut self, key: &str) {
        let secret = key.splitn(3, '_').nth(2).unwrap();
        self.canaries.plant(Kind::ApiKey, secret);
    }

    /// The secret parameter of a URL.
    pub(super) fn plant_from(&mut self, url: &str, parameter: &str, kind: Kind) {
        let url: url::Url = url.parse().unwrap();
        let found = url.query_pairs().find(|(name, _)| name == parameter);
        self.canaries.plant(kind, &found.unwrap_or_else(|| panic!("{parameter} in {url}")).1);
    }

    /// Keeps an answer, to be looked at when all secrets are known.
    pub(super) fn keep_answer(&self, to: &str, answer: &Answer, belongs: &[Kind]) {
        let all = format!("{:?}\n{}", answer.headers, answer.text);
        self.answers.lock().push((to.to_owned(), belongs.to_vec(), all));
    }

    /// A request to the internal listener with this key.
    pub(super) async fn ask(
        &self,
        key: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
        belongs: &[Kind],
    ) -> Answer {
        let mut request = self.request(method, path, key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.send(path, request, belongs).await
    }

    pub(super) async fn send(
        &self,
        to: &str,
        request: reqwest::RequestBuilder,
        belongs: &[Kind],
    ) -> Answer {
        let answer = Answer::read(request.send().await.unwrap()).await;
        self.keep_answer(to, &answer, belongs);
        answer
    }

    pub(super) async fn operate(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask(&self.operator_key, method, path, body, &[]).await
    }

    /// Makes a link of this body, which a person opens to decide; gives the page at the end.
    pub(super) async fn consent(&mut self, body: Value, decision: &str) -> Answer {
        let belongs = [Kind::Link];
        let operator = self.operator_key.clone();
        let made =
            self.ask(&operator, Method::POST, "/v1/consent-links", Some(body), &belongs).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
        let link = made.json()["url"].as_str().unwrap().to_owned();
        self.canaries.plant(Kind::Link, link.rsplit_once('/').unwrap().1);
        let mut person = Person::alone();
        let page = person.get(&link).await;
        self.keep_answer("the link's page", &page, &[]);
        let pressed = person.press(&link).await;
        self.keep_answer("the press", &pressed, &[Kind::State, Kind::Browser]);
        let cookie = pressed.header("set-cookie").split(['=', ';']).nth(1).unwrap().to_owned();
        self.canaries.plant(Kind::Browser, &cookie);
        let authorize = pressed.header("location").to_owned();
        self.plant_from(&authorize, "state", Kind::State);
        let callback = person.decide(&authorize, decision).await;
        if callback.contains("code=") {
            self.plant_from(&callback, "code", Kind::Code);
        }
        let mut callback: url::Url = callback.parse().unwrap();
        let said = callback.query_pairs().into_owned();
        let said: Vec<_> = said.filter(|(name, _)| name != "error_description").collect();
        let forged = ("error_description".to_owned(), FORGED.to_owned());
        callback.query_pairs_mut().clear().extend_pairs(said.into_iter().chain([forged]));
        let callback = String::from(callback);
        let back = person.get(&callback).await;
        assert_eq!(back.status, StatusCode::SEE_OTHER, "{back:?}");
        self.keep_answer("the callback", &back, &[Kind::Link]);
        let page = person.get(back.header("location")).await;
        self.keep_answer("the last page", &page, &[]);
        page
    }

    /// The next answer of a token endpoint goes wrong like this, and somebody asks for it.
    pub(super) async fn refresh(
        &self,
        which: Simulated,
        name: &str,
        fault: Option<Fault>,
    ) -> Answer {
        if let Some(fault) = fault {
            self.simulator(which).fault(&fault, 1);
        }
        self.operate(Method::POST, &format!("/v1/connections/{name}/refresh"), None).await
    }

    /// Bytes that no client would send, to a listener; the answer is read to its end.
    pub(super) fn junk(&self, listener: &str, words: &[u8]) {
        let mut stream = TcpStream::connect(&listener["http://".len()..]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        // It may hang up before it has read everything.
        drop(stream.write_all(words).and_then(|()| stream.read_to_end(&mut answer)));
        let answer = String::from_utf8_lossy(&answer).into_owned();
        self.answers.lock().push(("junk".to_owned(), Vec::new(), answer));
    }

    /// Plants the secrets that the relays have heard, and the sealing key.
    fn learn(&mut self) {
        for relay in &self.relays {
            for (kind, secret) in relay.secrets() {
                self.canaries.plant(kind, &secret);
            }
        }
        let keys = fs::read_to_string(self.state("sealing.keys")).unwrap();
        let key = keys.lines().find(|line| !line.starts_with('#')).unwrap();
        self.canaries.plant(Kind::SealingKey, key.split_once(' ').unwrap().1);
        assert_eq!(self.canaries.planted().len(), 11, "{:?}", self.canaries.planted());
    }

    /// Scans all files, the log and all answers for secrets.
    pub(super) async fn scan(&mut self) {
        self.scan_files().await;
        self.scan_log();
        self.scan_answers();
    }

    /// Scans all that lies on a disk at this moment.
    pub(super) async fn scan_files(&mut self) {
        self.learn();
        let mut files = contents(&self.state(""));
        files.retain(|(path, _)| path.file_name().unwrap() != "sealing.keys");
        assert!(files.iter().any(|(path, _)| path.parent().unwrap().ends_with("stored")));
        if let Some(server) = &self.server {
            let mut connection = PgConnection::connect(&server.url()).await.unwrap();
            sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            files.extend(contents(&server.data()));
            files.push((PathBuf::from("pg_dump"), dump(&server.url())));
        } else if self.program.is_some() {
            assert!(files.iter().any(|(path, _)| path.ends_with("token-broker.sqlite-wal")));
        }
        let sealed =
            files.iter().filter(|(_, bytes)| bytes.windows(3).any(|three| three == b"v1."));
        assert!(sealed.count() > 2, "what is sealed is among what is looked at");
        for (path, bytes) in &files {
            self.canaries.nowhere_in(&path.display().to_string(), bytes, &[]);
        }
    }

    fn scan_answers(&self) {
        let mut carried = 0;
        for (to, belongs, text) in self.answers.lock().iter() {
            self.canaries.nowhere_in(&format!("the answer to {to}"), text.as_bytes(), belongs);
            carried += usize::from(self.canaries.find(text.as_bytes(), &[]).is_some());
        }
        assert!(carried > 10, "the scan finds what is meant to be there");
    }

    fn scan_log(&self) {
        assert!(self.output.len() > 500, "{} lines are not the most talkative", self.output.len());
        for line in &self.output {
            self.canaries.nowhere_in("the log", line.as_bytes(), &[]);
            assert!(line.len() <= LONGEST_LINE, "{} bytes: {}", line.len(), &line[..200]);
            assert!(!line.contains(|c: char| c.is_control()), "{}", line.escape_debug());
            if self.format == "json" {
                let json: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
                assert!(json["level"].is_string() && json["timestamp"].is_string(), "{line}");
                assert!(json.get("forged").is_none(), "{line}");
            } else {
                let time = line.split(' ').next().unwrap();
                assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
            }
        }
    }
}

/// A backup of the database.
fn dump(url: &str) -> Vec<u8> {
    let program = Path::new(&std::env::var_os("TEST_POSTGRES_BIN").unwrap()).join("pg_dump");
    let dumped = Command::new(program).args(["--dbname", url, "--inserts"]).output().unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    dumped.stdout
}
