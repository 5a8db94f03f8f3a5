//! The real binary at its most talkative, and everything that it says, answers and writes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;
use token_broker::{
    clock::Clock,
    secret,
    simulator::{Fault, Simulated, SimulatorSettings, Simulators},
};

use super::{
    canaries::{Kind, Marks},
    relay::Relay,
};
use crate::support::{
    broker::{Answer, Person},
    http::client,
    process::Program,
    server::Server,
    wait::free_address,
};

/// What a provider may send in the hope of a line of its own in the log.
pub(super) const FORGED: &str =
    "\r\n{\"level\":\"ERROR\",\"forged\":1}\r\n\u{1b}[2J\u{1b}[31mforged\u{7}\u{202e}";

/// The longest line that a log may hold.
const LONGEST_LINE: usize = 16 * 1024;

/// The broker with its providers, and a list of all that came out of it.
pub(super) struct World {
    home: TempDir,
    format: &'static str,
    pub(super) public: String,
    pub(super) internal: String,
    pub(super) operator: String,
    /// The API key of an amoCRM account from before 2020.
    pub(super) account_key: String,
    pub(super) simulators: Simulators,
    relays: Vec<Relay>,
    program: Option<Program>,
    server: Option<Server>,
    pub(super) marks: Marks,
    /// What it said on standard output and standard error, line by line.
    said: Vec<String>,
    /// What it answered: to what, and which secrets belong there.
    answers: Mutex<Vec<(String, Vec<Kind>, String)>>,
}

#[expect(clippy::disallowed_methods, reason = "a secret of this test's own making")]
fn random() -> String {
    secrecy::ExposeSecret::expose_secret(&secret::random()).to_owned()
}

/// Providers whose secrets nobody could guess, with an account that has an evil name.
fn simulated(public: &str, marks: &mut Marks) -> SimulatorSettings {
    let mut settings = SimulatorSettings::default();
    settings.register_callbacks(&format!("http://{public}"));
    for secret in [
        &mut settings.admitad.simulated_client_secret,
        &mut settings.amocrm.simulated_client_secret,
        &mut settings.avito.simulated_client_secret,
        &mut settings.divar.simulated_client_secret,
        &mut settings.kommo.simulated_client_secret,
        &mut settings.divar.simulated_api_key,
    ] {
        *secret = random();
        marks.plant(Kind::ClientSecret, secret);
    }
    settings.amocrm.accounts[0].simulated_api_key = random();
    settings.avito.accounts[0].name = format!("Demo {FORGED}");
    settings
}

impl World {
    pub(super) async fn start(format: &'static str, server: Option<Server>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (public, internal) = (free_address(), free_address());
        let mut marks = Marks::new();
        let simulated = simulated(&public, &mut marks);
        let account_key = simulated.amocrm.accounts[0].simulated_api_key.clone();
        let simulators = Simulators::start(simulated, Clock::system()).await.unwrap();
        let mut settings = simulators.configuration();
        let state_dir = home.path().join("state");
        for (name, value) in [
            ("public_url", format!("http://{public}")),
            ("public_listen", public.clone()),
            ("internal_url", format!("http://{internal}")),
            ("internal_listen", internal.clone()),
            ("state_dir", state_dir.display().to_string()),
        ] {
            settings.insert(name.to_owned(), value.into());
        }
        if let Some(server) = &server {
            let url = server.url();
            settings.insert("database".to_owned(), toml::toml! { url = url }.into());
        }
        let divar = settings["providers"]["profiles"]["divar"].as_table_mut().unwrap();
        let authorize = divar.entry("authorize").or_insert_with(|| toml::Table::new().into());
        authorize.as_table_mut().unwrap().insert("pkce".to_owned(), true.into());
        let mut text = settings.to_string();
        let mut relays = Vec::new();
        for which in Simulated::ALL {
            let port = simulators.of(which).port();
            let relay = Relay::start(port).await;
            text = text.replace(&format!(":{port}"), &format!(":{}", relay.port));
            relays.push(relay);
        }
        fs::write(home.path().join("broker.toml"), text).unwrap();
        let mut this = Self {
            home,
            format,
            public: format!("http://{public}"),
            internal: format!("http://{internal}"),
            operator: String::new(),
            account_key,
            simulators,
            relays,
            program: None,
            server,
            marks,
            said: Vec::new(),
            answers: Mutex::default(),
        };
        if this.server.is_some() {
            this.command(&["keys", "generate"]).await;
        }
        let operator = this.command(&["operators", "create", "alice"]).await;
        this.operator.clone_from(&operator[0]);
        this.plant_key(&operator[0]);
        this.serve().await;
        this
    }

    fn program(&self, command: &[&str]) -> Program {
        let config = self.home.path().join("broker.toml");
        let mut arguments = vec!["--config", config.to_str().unwrap()];
        arguments.extend(command);
        let log =
            [("TOKEN_BROKER__LOG__FILTER", "trace"), ("TOKEN_BROKER__LOG__FORMAT", self.format)];
        Program::start(&arguments, &log)
    }

    /// Runs a command to its end, and gives what belongs to its caller.
    async fn command(&mut self, command: &[&str]) -> Vec<String> {
        let ended = self.program(command).end().await;
        assert!(ended.status.success(), "{ended:?}");
        self.said.extend(ended.stderr);
        ended.stdout
    }

    /// Starts the broker and waits until it serves.
    pub(super) async fn serve(&mut self) {
        let mut program = self.program(&["serve"]);
        loop {
            let line = program.complaint().await;
            let serves = line.contains("internal_listen");
            self.said.push(line);
            if serves {
                break;
            }
        }
        self.program = Some(program);
    }

    /// Ends the broker by a signal; what it said is kept, and its home is looked at.
    pub(super) async fn end(&mut self, signal: &str) {
        let program = self.program.take().unwrap();
        program.signal(signal);
        let home = program.home().to_owned();
        let files = files(&home);
        assert!(files.is_empty(), "{files:?}");
        let ended = program.end().await;
        self.said.extend(ended.stdout);
        self.said.extend(ended.stderr);
    }

    /// A key of this API: what follows its public name is secret.
    pub(super) fn plant_key(&mut self, key: &str) {
        let secret = key.splitn(3, '_').nth(2).unwrap();
        self.marks.plant(Kind::ApiKey, secret);
    }

    /// The secret parameter of a URL.
    pub(super) fn plant_from(&mut self, url: &str, parameter: &str, kind: Kind) {
        let url: url::Url = url.parse().unwrap();
        let found = url.query_pairs().find(|(name, _)| name == parameter);
        self.marks.plant(kind, &found.unwrap_or_else(|| panic!("{parameter} in {url}")).1);
    }

    /// Keeps an answer, to be looked at when all secrets are known.
    pub(super) fn note(&self, to: &str, answer: &Answer, belongs: &[Kind]) {
        let all = format!("{:?}\n{}", answer.headers, answer.text);
        self.answers.lock().unwrap().push((to.to_owned(), belongs.to_vec(), all));
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
        let bearer = format!("Bearer {key}");
        let mut request = client()
            .request(method, format!("{}{path}", self.internal))
            .header("authorization", bearer);
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
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let answer = Answer { status, headers, text: response.text().await.unwrap() };
        self.note(to, &answer, belongs);
        answer
    }

    pub(super) async fn operate(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask(&self.operator, method, path, body, &[]).await
    }

    /// Makes a link of this body, which a person opens to decide; gives the page at the end.
    pub(super) async fn consent(&mut self, body: Value, decision: &str) -> Answer {
        let belongs = [Kind::Link];
        let operator = self.operator.clone();
        let made =
            self.ask(&operator, Method::POST, "/v1/consent-links", Some(body), &belongs).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
        let link = made.json()["url"].as_str().unwrap().to_owned();
        self.marks.plant(Kind::Link, link.rsplit_once('/').unwrap().1);
        let mut person = Person::alone();
        let page = person.get(&link).await;
        self.note("the link's page", &page, &[]);
        let pressed = person.press(&link).await;
        self.note("the press", &pressed, &[Kind::State, Kind::Browser]);
        let cookie = pressed.header("set-cookie").split(['=', ';']).nth(1).unwrap().to_owned();
        self.marks.plant(Kind::Browser, &cookie);
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
        self.note("the callback", &back, &[Kind::Link]);
        let page = person.get(back.header("location")).await;
        self.note("the last page", &page, &[]);
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
            self.simulators.of(which).fault(&fault, 1);
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
        self.answers.lock().unwrap().push(("junk".to_owned(), Vec::new(), answer));
    }

    pub(super) fn state(&self, name: &str) -> PathBuf {
        self.home.path().join("state").join(name)
    }

    /// Hears which secrets there are.
    fn learn(&mut self) {
        for relay in &self.relays {
            for (kind, secret) in relay.secrets() {
                self.marks.plant(kind, &secret);
            }
        }
        let keys = fs::read_to_string(self.state("sealing.keys")).unwrap();
        let key = keys.lines().find(|line| !line.starts_with('#')).unwrap();
        self.marks.plant(Kind::SealingKey, key.split_once(' ').unwrap().1);
        assert_eq!(self.marks.planted().len(), 11, "{:?}", self.marks.planted());
    }

    /// Looks at everything, when everything has been said.
    pub(super) async fn look(&mut self) {
        self.look_at_files().await;
        self.look_at_the_log();
        self.look_at_the_answers();
    }

    /// Looks at all that lies on a disk at this moment.
    pub(super) async fn look_at_files(&mut self) {
        self.learn();
        let mut files = files(&self.home.path().join("state"));
        files.retain(|(path, _)| path.file_name().unwrap() != "sealing.keys");
        assert!(files.iter().any(|(path, _)| path.parent().unwrap().ends_with("stored")));
        if let Some(server) = &self.server {
            let mut connection = PgConnection::connect(&server.url()).await.unwrap();
            sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            files.extend(self::files(&server.data()));
            files.push((PathBuf::from("pg_dump"), dump(&server.url())));
        } else if self.program.is_some() {
            assert!(files.iter().any(|(path, _)| path.ends_with("token-broker.sqlite-wal")));
        }
        let sealed =
            files.iter().filter(|(_, bytes)| bytes.windows(3).any(|three| three == b"v1."));
        assert!(sealed.count() > 2, "what is sealed is among what is looked at");
        for (path, bytes) in &files {
            self.marks.nowhere_in(&path.display().to_string(), bytes, &[]);
        }
    }

    fn look_at_the_answers(&self) {
        let mut carried = 0;
        for (to, belongs, text) in self.answers.lock().unwrap().iter() {
            self.marks.nowhere_in(&format!("the answer to {to}"), text.as_bytes(), belongs);
            carried += usize::from(self.marks.find(text.as_bytes(), &[]).is_some());
        }
        assert!(carried > 10, "the scan finds what is meant to be there");
    }

    fn look_at_the_log(&self) {
        assert!(self.said.len() > 500, "{} lines are not the most talkative", self.said.len());
        for line in &self.said {
            self.marks.nowhere_in("the log", line.as_bytes(), &[]);
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

/// Every file under a folder, with what is in it.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            // The server removes files of its own as it goes.
            all.extend(fs::read(&path).map(|bytes| (path, bytes)));
        }
    }
    all
}

/// What a backup would hold.
fn dump(url: &str) -> Vec<u8> {
    let program = Path::new(&std::env::var_os("TEST_POSTGRES_BIN").unwrap()).join("pg_dump");
    let dumped = Command::new(program).args(["--dbname", url, "--inserts"]).output().unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    dumped.stdout
}
