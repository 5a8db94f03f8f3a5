//! Replicas that are processes of the real binary.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
};

use token_broker::failpoint::Point;

use super::{
    api::Api,
    deployment::{load, write_config},
    http::client,
    process::Program,
};

/// A replica with a state directory and addresses of its own, which it keeps when it dies.
pub(crate) struct ReplicaProcess {
    config: PathBuf,
    state_dir: PathBuf,
    pub(super) api: Api,
    pub(crate) program: Program,
}

impl Deref for ReplicaProcess {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl ReplicaProcess {
    /// Starts a replica with these settings and waits until it serves.
    pub(super) async fn start(api: Api, settings: &toml::Table) -> Self {
        let (config, state_dir) = (write_config(settings), load(settings).state_dir);
        let program = serve(&config, None);
        let mut this = Self { config, state_dir, api, program };
        this.program.hear("serving").await;
        this
    }

    /// Starts it again; it holds every refresh at this point.
    pub(crate) fn start_held(&mut self, at: Option<Point>) {
        self.program = serve(&self.config, at);
        // The connections to its predecessor died with that.
        self.api.http = client();
    }

    /// Starts it again and waits until it serves.
    pub(crate) async fn start_again(&mut self) {
        self.start_held(None);
        self.program.hear("serving").await;
    }

    /// Kills it as it stands.
    pub(crate) async fn kill(&mut self) {
        self.program.signal("KILL");
        self.program.wait().await;
    }

    /// Ends it in order.
    pub(crate) async fn stop(&mut self) {
        self.program.signal("TERM");
        let ended = self.program.wait().await;
        assert!(ended.success(), "{ended}");
    }

    /// A file in its state directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }

    /// The number of grants in the spool. A file that is only reserved begins with a zero byte.
    pub(crate) fn spooled(&self) -> usize {
        let files = fs::read_dir(self.state("spool")).into_iter().flatten().flatten();
        let read = files.filter_map(|file| fs::read(file.path()).ok());
        read.filter(|bytes| bytes.first().is_some_and(|byte| *byte != 0)).count()
    }
}

/// SIGXFSZ is ignored: where a test limits the size of files, the process sees a failed write, as on a
/// full disk.
fn serve(config: &Path, hold: Option<Point>) -> Program {
    let arguments = ["--config", config.to_str().unwrap(), "serve"];
    let hold = hold.map(|point| ("TOKEN_BROKER_HOLD", <&str>::from(point)));
    Program::start_by(&["env", "--ignore-signal=XFSZ"], &arguments, hold.as_slice())
}
