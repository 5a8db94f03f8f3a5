//! A real Chromium, driven through `ChromeDriver`.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fantoccini::{
    Client, ClientBuilder, Locator,
    wd::{Capabilities, WebDriverCompatibleCommand},
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use url::Url;

/// The time after which a missing page fails the test.
const PATIENCE: Duration = Duration::from_secs(30);

/// The size of the page, in CSS pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Screen {
    Desktop,
    Phone,
}

/// The preferred colour scheme (`prefers-color-scheme`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme {
    Dark,
    Light,
}

/// One browser with an empty profile; it ends when dropped.
pub(crate) struct Browser {
    client: Client,
    // Dropped in this order: the browser ends before its profile goes.
    _driver: Driver,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser. `tests/run` says where the programs are.
    pub(crate) async fn open(screen: Screen, scheme: Scheme) -> Self {
        let driver = Driver::start();
        let profile = tempfile::tempdir().unwrap();
        let capabilities = json!({
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "goog:chromeOptions": {
                "binary": from_tests_run("TEST_CHROMIUM"),
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-quic",
                    "--hide-scrollbars",
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                    // A container's /dev/shm is too small for it.
                    "--disable-dev-shm-usage",
                    format!("--user-data-dir={}", profile.path().display()),
                ],
            },
        });
        let capabilities: Capabilities = serde_json::from_value(capabilities).unwrap();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .unwrap();
        let browser = Self { client, _driver: driver, _profile: profile };
        browser.show(screen, scheme).await;
        browser
    }

    /// Changes the size of the page and the preferred scheme.
    pub(crate) async fn show(&self, screen: Screen, scheme: Scheme) {
        let (width, height, mobile) = match screen {
            Screen::Desktop => (1280, 800, false),
            Screen::Phone => (390, 844, true),
        };
        // A window cannot be as narrow as a phone, and no flag sets the scheme: both are emulated.
        let metrics = json!({
            "width": width, "height": height, "mobile": mobile,
            "deviceScaleFactor": if mobile { 2 } else { 1 },
        });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = match scheme {
            Scheme::Dark => "dark",
            Scheme::Light => "light",
        };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    /// Opens a page and waits until it is loaded.
    pub(crate) async fn goto(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Goes back as the browser's button does, and waits for the page.
    pub(crate) async fn back(&self) {
        self.client.back().await.unwrap();
    }

    /// Loads the page anew.
    pub(crate) async fn reload(&self) {
        self.client.refresh().await.unwrap();
    }

    /// The status of the answer that brought the page.
    pub(crate) async fn status(&self) -> Value {
        self.evaluate("performance.getEntriesByType('navigation')[0].responseStatus").await
    }

    /// The address of the page that is shown.
    pub(crate) async fn url(&self) -> Url {
        self.client.current_url().await.unwrap()
    }

    /// The page's title.
    pub(crate) async fn title(&self) -> String {
        self.client.title().await.unwrap()
    }

    /// The text that a person can see.
    pub(crate) async fn text(&self) -> String {
        self.client.find(Locator::Css("body")).await.unwrap().text().await.unwrap()
    }

    /// Chooses the one radio button with exactly this value.
    pub(crate) async fn choose(&self, value: &str) {
        let radio = format!("input[type=radio][value=\"{value}\"]");
        self.client.find(Locator::Css(&radio)).await.unwrap().click().await.unwrap();
    }

    /// Clicks the one button with exactly this text and waits for the page that follows, past
    /// every redirect.
    pub(crate) async fn press(&self, button: &str) {
        let path = format!("//button[normalize-space() = \"{button}\"]");
        let found = self.client.find_all(Locator::XPath(&path)).await.unwrap();
        let [found] = found.as_slice() else {
            panic!("{} buttons say {button:?} in: {}", found.len(), self.text().await);
        };
        // A new document has none of the marks of the one before it.
        self.evaluate("window.pressed = true").await;
        found.click().await.unwrap();
        let arrived = async {
            let script = "return !window.pressed && document.readyState === 'complete'";
            // An error means that the document went away under the question.
            while self.client.execute(script, Vec::new()).await.ok() != Some(Value::Bool(true)) {}
        };
        let arrived = timeout(PATIENCE, arrived).await;
        assert!(arrived.is_ok(), "nothing followed {button:?}; still: {}", self.text().await);
    }

    /// The value of an expression in the page.
    pub(crate) async fn evaluate(&self, expression: &str) -> Value {
        self.client.execute(&format!("return {expression}"), Vec::new()).await.unwrap()
    }

    /// The console since the last call: refused loads, violated policies, exceptions.
    pub(crate) async fn console_errors(&self) -> Vec<String> {
        let log = self.issue("se/log", json!({ "type": "browser" })).await;
        log.as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["level"] == "SEVERE")
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The visible text of one of the page's frames.
    pub(crate) async fn frame_text(&self, frame: u16) -> String {
        self.client.enter_frame(frame).await.unwrap();
        let text = self.text().await;
        self.client.enter_parent_frame().await.unwrap();
        text
    }

    /// The requests sent since the last call, redirects one by one, as the `DevTools` Protocol
    /// describes them: `Network.requestWillBeSent` has the address, the event `…ExtraInfo` that goes
    /// with it the headers on the wire.
    pub(crate) async fn requests(&self) -> Vec<Value> {
        let log = self.issue("se/log", json!({ "type": "performance" })).await;
        let messages = log.as_array().unwrap().iter().map(|entry| {
            let message = entry["message"].as_str().unwrap();
            serde_json::from_str::<Value>(message).unwrap()["message"].take()
        });
        messages
            .filter(|message| {
                message["method"].as_str().unwrap().starts_with("Network.requestWillBeSent")
            })
            .map(|mut message| message["params"].take())
            .collect()
    }

    /// Keeps a picture of the whole page as `screenshots/<name>.png` in Cargo's target folder.
    pub(crate) async fn screenshot(&self, name: &str) {
        let picture =
            self.devtools("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let picture = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        let folder = screenshots();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }

    /// The cookies that would go to the page that is shown, as the `DevTools` Protocol describes
    /// them (`Network.Cookie`).
    pub(crate) async fn cookies(&self) -> Vec<Value> {
        let found = self.devtools("Network.getCookies", json!({})).await;
        found["cookies"].as_array().unwrap().clone()
    }

    /// A command of the Chrome `DevTools` Protocol.
    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.issue("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn issue(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(ChromeCommand { path, body }).await.unwrap()
    }
}

/// A command that `ChromeDriver` adds to `WebDriver`.
#[derive(Debug)]
struct ChromeCommand {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for ChromeCommand {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        let session = session.expect("a browser has its session from the start");
        base.join(&format!("session/{session}/{}", self.path))
    }

    fn method_and_body(&self, _: &Url) -> (axum::http::Method, Option<String>) {
        (axum::http::Method::POST, Some(self.body.to_string()))
    }
}

/// A running `ChromeDriver`.
struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    fn start() -> Self {
        let mut child = Command::new(from_tests_run("TEST_CHROMEDRIVER"))
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = said.by_ref().map_while(Result::ok).find_map(|line| {
            line.strip_prefix("ChromeDriver was started successfully on port ")?
                .trim_end_matches('.')
                .parse()
                .ok()
        });
        Self { child, port: port.expect("ChromeDriver says its port, or ends") }
    }

    /// Asks it to end its browsers and itself: killed, it would leave them running.
    fn shut_down(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /shutdown HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")?;
        stream.read(&mut [0]).map(drop)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nothing is left to be done about a failure here; the next line ends it in any case.
        drop(self.shut_down());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The path of a program, from the environment that `tests/run` prepares.
fn from_tests_run(variable: &str) -> String {
    env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: start the tests with tests/run"))
}

/// The folder of the pictures: beside the folder `debug` or `release` that holds the binary.
fn screenshots() -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_token-broker"));
    binary.ancestors().nth(2).expect("a binary lies in target/<profile>").join("screenshots")
}
