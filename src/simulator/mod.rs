//! Simulators: faithful imitations of Avito, amoCRM, Kommo, Admitad and Divar on loopback, for
//! demos, tests and users' staging.
//!
//! May use: the clock, slugs and digests; nothing of the broker. Used by the commands `demo` and
//! `simulate`, by `config` for its settings, and by tests.
//!
//! They are as strict as the real providers: a wrong encoding, a wrong client authentication, a
//! missing `redirect_uri`, a reused code or refresh token or an unknown route fails with that
//! provider's own status and body. A rule that no source confirms is a named switch in [`settings`]. Nothing
//! here is real: accounts, secrets and tokens open nothing.
//!
//! # Hosts
//!
//! Each provider has one listener, and the `Host` header chooses what answers on it: `localhost` is
//! the site where a person consents (another site than a broker on 127.0.0.1), the API is on
//! `127.0.0.1`, and the accounts of amoCRM and Kommo each have a host of their own,
//! `<subdomain>.amocrm.localhost`, which RFC 6761 resolves to loopback.
//!
//! # Rotation
//!
//! A used refresh token meets by default the same fate as at the real provider. With
//! [`rotation`](settings::AvitoSettings::rotation) every token endpoint can be any of six classes.
//!
//! # Control and oracle
//!
//! `GET /_simulator/oracle` (on every host) lists every code and token ever issued, whether it lives
//! and how often it was presented. `POST /_simulator/clock` with `{"advance_seconds": 60}` moves the
//! provider's clock, `POST /_simulator/faults` with
//! `{"fault": {"kind": "drop", "processed": true}, "times": 1}` spoils the next token requests.
//! [`Simulator`] offers the same in Rust.
//!
//! # Consent without a person
//!
//! The consent page is one form: `POST` to the page's own URL with `decision=allow` or
//! `decision=deny`, and `account` to choose another than the first.

mod admitad;
mod amocrm;
mod application;
mod avito;
mod configuration;
mod control;
mod core;
mod divar;
mod fault;
mod hydra;
mod ledger;
mod oracle;
mod page;
mod request;
mod rotation;
mod serve;
pub mod settings;
mod shape;
mod switch;

use std::{fmt, io, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    application::Application,
    fault::Fault,
    oracle::{End, Endpoint, Kind, Known, Oracle},
    settings::SimulatorSettings,
};
use self::{
    core::Core,
    rotation::Rotation,
    serve::{ApiHost, Hosts},
};
use crate::clock::Clock;

/// The providers that are simulated.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Simulated {
    /// Admitad.
    Admitad,
    /// amoCRM.
    Amocrm,
    /// Avito.
    Avito,
    /// Divar Kenar.
    Divar,
    /// Kommo.
    Kommo,
}

impl Simulated {
    /// All of them, in alphabetical order.
    pub const ALL: [Self; 5] = [Self::Admitad, Self::Amocrm, Self::Avito, Self::Divar, Self::Kommo];

    /// The name of its profile.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admitad => "admitad",
            Self::Amocrm => "amocrm",
            Self::Avito => "avito",
            Self::Divar => "divar",
            Self::Kommo => "kommo",
        }
    }
}

impl fmt::Display for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One running simulator.
#[derive(Clone, Debug)]
pub struct Simulator {
    core: Arc<Core>,
}

impl Simulator {
    /// `http://127.0.0.1:PORT`: the API of the provider, and `/_simulator/`.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.core.port
    }

    /// A view of everything issued by it and presented to it.
    pub fn oracle(&self) -> Oracle {
        self.core.oracle()
    }

    /// Moves its own clock ahead of the one it was started with.
    pub fn advance_clock(&self, by: Duration) {
        self.core.advance(by);
    }

    /// Spoils the next `times` token requests, after those already ordered.
    pub fn fault(&self, fault: &Fault, times: usize) {
        self.core.order(fault, times);
    }

    /// Spoils the next `times` revocation requests, after those already ordered.
    pub fn fault_revocation(&self, fault: &Fault, times: usize) {
        self.core.order_revocation(fault, times);
    }

    /// Takes back the faults that were ordered and have not come yet, and lets the answers go that
    /// are [late](Fault::Late).
    pub fn clear_faults(&self) {
        self.core.clear_faults();
    }
}

/// All simulators. Dropping this stops them.
#[derive(Debug)]
pub struct Simulators {
    settings: SimulatorSettings,
    /// In the order of [`Simulated::ALL`].
    running: Vec<Simulator>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Simulators {
    /// Binds a loopback port for each provider and serves.
    pub async fn start(settings: SimulatorSettings, clock: Clock) -> io::Result<Self> {
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let mut running = Vec::with_capacity(Simulated::ALL.len());
        for which in Simulated::ALL {
            let (listener, port) = serve::bind(settings.port(which)).await?;
            let (core, hosts) = hosts(which, &settings, port, clock.clone(), &tasks);
            tasks.spawn(serve::serve(listener, Arc::new(hosts), tasks.clone(), stop.clone()));
            running.push(Simulator { core });
        }
        guard.disarm();
        Ok(Self { settings, running, tasks, stop })
    }

    /// One of them.
    pub fn of(&self, which: Simulated) -> &Simulator {
        // `Simulated::ALL` is in the order of the enum, so the number of a variant is its place.
        &self.running[which as usize]
    }

    /// Stops accepting, drops every connection, and waits until that is done.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Simulators {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn hosts(
    which: Simulated,
    settings: &SimulatorSettings,
    port: u16,
    clock: Clock,
    tasks: &TaskTracker,
) -> (Arc<Core>, Hosts) {
    let class = settings.rotation(which);
    let core = |own| Arc::new(Core::new(port, clock, class.unwrap_or(own)));
    let (core, site, api, api_host) = match which {
        Simulated::Admitad => {
            let settings = settings.admitad.clone();
            let core = core(admitad::rotation(&settings));
            let admitad = Arc::new(admitad::Admitad { core: Arc::clone(&core), settings });
            let site = admitad::site(Arc::clone(&admitad));
            (core, site, admitad::api(admitad), ApiHost::Loopback)
        }
        Simulated::Amocrm | Simulated::Kommo => {
            let (product, settings) = match which {
                Simulated::Kommo => (amocrm::Product::Kommo, settings.kommo.clone()),
                _ => (amocrm::Product::Amocrm, settings.amocrm.clone()),
            };
            let core = core(amocrm::rotation(&settings));
            let amocrm =
                Arc::new(amocrm::Amocrm::new(product, Arc::clone(&core), settings, tasks.clone()));
            let site = amocrm::site(Arc::clone(&amocrm));
            (core, site, amocrm::api(amocrm), ApiHost::Under(product.suffix()))
        }
        Simulated::Avito => {
            let settings = settings.avito.clone();
            let core = core(avito::rotation(&settings));
            let avito = Arc::new(avito::Avito { core: Arc::clone(&core), settings });
            let site = avito::site(Arc::clone(&avito));
            (core, site, avito::api(avito), ApiHost::Loopback)
        }
        Simulated::Divar => {
            let settings = settings.divar.clone();
            let core = core(divar::rotation(&settings));
            let divar = Arc::new(divar::Divar { core: Arc::clone(&core), settings });
            let site = divar::site(Arc::clone(&divar));
            (core, site, divar::api(divar), ApiHost::Loopback)
        }
    };
    let control = control::router(Arc::clone(&core));
    let elsewhere = control::elsewhere(Arc::clone(&core));
    (core, Hosts { site, api, api_host, control, elsewhere })
}

impl SimulatorSettings {
    fn port(&self, which: Simulated) -> u16 {
        match which {
            Simulated::Admitad => self.admitad.port,
            Simulated::Amocrm => self.amocrm.port,
            Simulated::Avito => self.avito.port,
            Simulated::Divar => self.divar.port,
            Simulated::Kommo => self.kommo.port,
        }
    }

    /// The rotation set in place of a provider's own.
    fn rotation(&self, which: Simulated) -> Option<Rotation> {
        let (class, grace) = match which {
            Simulated::Admitad => (self.admitad.rotation, self.admitad.rotation_grace),
            Simulated::Amocrm => (self.amocrm.rotation, self.amocrm.rotation_grace),
            Simulated::Avito => (self.avito.rotation, self.avito.rotation_grace),
            Simulated::Divar => (self.divar.rotation, self.divar.rotation_grace),
            Simulated::Kommo => (self.kommo.rotation, self.kommo.rotation_grace),
        };
        class.map(|class| Rotation::of(class, grace))
    }
}
