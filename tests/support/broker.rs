//! Replicas in the test's own process: the background refresher is stepped by hand, the clock moved
//! by hand.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use token_broker::{
    app::{App, Listeners},
    broker::Broker,
    clock::Clock,
    failpoint::Failpoints,
    simulator::SimulatorSettings,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    api::Api,
    database::TestDatabase,
    deployment::{Deployment, bind, load},
};

/// Options of a replica that are no settings.
#[derive(Clone, Default)]
pub(crate) struct RunOptions {
    /// The points at which its refreshes are held.
    pub(crate) failpoints: Failpoints,
    /// True if the background refresher runs; otherwise the test steps it.
    pub(crate) background: bool,
}

/// A deployment with its first replica.
pub(crate) struct TestBroker {
    pub(super) deployment: Deployment,
    pub(super) running: Running,
    pub(super) options: RunOptions,
}

impl Deref for TestBroker {
    type Target = Deployment;

    fn deref(&self) -> &Deployment {
        &self.deployment
    }
}

impl DerefMut for TestBroker {
    fn deref_mut(&mut self) -> &mut Deployment {
        &mut self.deployment
    }
}

/// The part that ends and starts anew.
pub(super) struct Running {
    pub(super) broker: Arc<Broker>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    pub(super) async fn start(
        settings: &toml::Table,
        listeners: Listeners,
        clock: Clock,
        options: &RunOptions,
    ) -> Self {
        let failpoints = options.failpoints.clone();
        let app = Box::pin(App::start(load(settings), listeners, clock, failpoints)).await.unwrap();
        let broker = Arc::clone(app.broker());
        let shutdown = app.shutdown();
        let tasks = TaskTracker::new();
        if options.background {
            tasks.spawn(app.run());
        } else {
            tasks.spawn(app.run_without_background());
        }
        tasks.close();
        Self { broker, shutdown, tasks }
    }

    async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }

    async fn idle(&self) {
        let tasks = self.broker.tasks();
        tasks.close();
        tasks.wait().await;
        tasks.reopen();
    }

    async fn refresh_due(&self) -> usize {
        self.broker.sync().await.unwrap();
        self.broker.refresh_due(100).await.unwrap()
    }
}

/// Another replica, with a state directory and addresses of its own.
pub(crate) struct Replica {
    pub(super) running: Running,
    pub(super) api: Api,
}

impl Deref for Replica {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Replica {
    /// The use cases, without a socket between.
    pub(crate) fn broker(&self) -> &Arc<Broker> {
        &self.running.broker
    }

    /// One step of the background refresher.
    pub(crate) async fn refresh_due(&self) -> usize {
        self.running.refresh_due().await
    }

    /// Waits until nothing is under way in the background.
    pub(crate) async fn idle(&self) {
        self.running.idle().await;
    }

    /// Ends it as a signal would, and waits for it.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }
}

impl TestBroker {
    /// A broker with the simulators' defaults.
    pub(crate) async fn start(database: TestDatabase) -> Self {
        Self::start_with(database, SimulatorSettings::default(), "").await
    }

    /// A broker with simulators of one's own and further settings, as TOML.
    pub(crate) async fn start_with(
        database: TestDatabase,
        simulated: SimulatorSettings,
        settings: &str,
    ) -> Self {
        let deployment = Deployment::new(database, simulated, settings).await;
        deployment.in_process(RunOptions::default()).await
    }

    /// A broker with the simulators' defaults, further settings and options.
    pub(crate) async fn start_with_options(
        database: TestDatabase,
        settings: &str,
        options: RunOptions,
    ) -> Self {
        let simulated = SimulatorSettings::default();
        Deployment::new(database, simulated, settings).await.in_process(options).await
    }

    /// The use cases, without a socket between.
    pub(crate) fn broker(&self) -> &Arc<Broker> {
        &self.running.broker
    }

    /// Ends the broker as a signal would and starts it again on the same database and addresses,
    /// with its settings changed.
    pub(crate) async fn restart(&mut self, change: impl FnOnce(&mut toml::Table)) {
        self.halt().await;
        change(&mut self.settings);
        let listeners = bind(&self.public_url[7..], &self.internal_url[7..]).await;
        let clock = self.clock.clone();
        self.running = Running::start(&self.settings, listeners, clock, &self.options).await;
    }

    /// Restarts it with a client that only these services may use.
    pub(crate) async fn restrict_client(&mut self, client: &str, services: &str) {
        self.restart(|settings| {
            let client = settings["clients"][client].as_table_mut().unwrap();
            client.insert("services".into(), services.into());
        })
        .await;
    }

    /// Ends the broker as a signal would; [`TestBroker::restart`] starts it again.
    pub(crate) async fn halt(&self) {
        self.running.stop().await;
    }

    /// Moves the clock of the broker, its database and the simulators; the broker's memory is
    /// brought up to date, as the background would have done meanwhile.
    pub(crate) async fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.broker().sync().await.unwrap();
    }

    /// True if a received grant is kept as a fallback because the connection holds another.
    pub(crate) async fn has_fallback(&self, connection: &str) -> bool {
        let store = self.broker().store();
        let id = store.record(connection).await.unwrap().unwrap().connection.id;
        store.fallback(id).await.unwrap().is_some()
    }

    /// Waits until nothing is under way in the background.
    pub(crate) async fn idle(&self) {
        self.running.idle().await;
    }

    /// One step of the background refresher.
    pub(crate) async fn refresh_due(&self) -> usize {
        self.running.refresh_due().await
    }

    /// Ends the broker as a signal would, and waits for it.
    pub(crate) async fn stop(self) {
        self.halt().await;
        self.deployment.simulators.shutdown().await;
    }
}
