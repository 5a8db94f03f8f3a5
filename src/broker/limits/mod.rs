//! Limits: the pace of each provider, circuit breakers, mass refusals, and turns at the store.
//!
//! May use: the clock, domain and provider types. Used by the other owners.

mod gate;
mod mass_refusal;
pub(crate) mod per_minute;
mod permits;
mod public;
mod throttle;

use std::collections::BTreeMap;

use tokio::sync::SemaphorePermit;

pub(crate) use self::{
    gate::{Gate, Shut},
    mass_refusal::{MassRefusal, RefusalWeight},
    permits::{Permit, Priority},
};
use self::{per_minute::PerMinuteLimiter, public::PublicLimiter};
use super::{BrokerError, clients::Clients};
use crate::{
    clock::Clock,
    domain::{
        consent::{LinkId, MAX_PRESSES},
        slug::Slug,
    },
    provider::client::Client,
};

/// Every limiter of the process.
#[derive(Debug)]
pub(crate) struct Limits {
    /// By provider.
    gates: BTreeMap<Slug, Gate>,
    public: PublicLimiter,
    /// The presses of each link's button in this minute.
    presses: PerMinuteLimiter<LinkId>,
    clock: Clock,
}

impl Limits {
    pub(crate) fn new(clients: &Clients, clock: &Clock) -> Self {
        let profiles = clients.iter().map(|client| &client.profile);
        let gates = profiles
            .map(|profile| (profile.name.clone(), Gate::new(profile, clock.clone())))
            .collect();
        Self {
            gates,
            public: PublicLimiter::default(),
            presses: PerMinuteLimiter::new(clock.since_boot()),
            clock: clock.clone(),
        }
    }

    /// The gate before a client's provider.
    pub(crate) fn gate(&self, client: &Client) -> &Gate {
        &self.gates[&client.profile.name]
    }

    /// Every gate, by provider.
    pub(crate) fn gates(&self) -> impl Iterator<Item = (&Slug, &Gate)> {
        self.gates.iter()
    }

    /// Waits for a turn of the public listener at the store, which ends when dropped.
    pub(crate) async fn public_turn(&self) -> Result<SemaphorePermit<'_>, BrokerError> {
        self.public.acquire().await
    }

    /// Refuses one press of a link's button more than [`MAX_PRESSES`] in a minute.
    pub(crate) fn press(&self, link: LinkId) -> Result<(), BrokerError> {
        if self.presses.admits(self.clock.since_boot(), link, MAX_PRESSES).0 {
            return Ok(());
        }
        Err(BrokerError::TooMany(
            "the button of this link was pressed too often; wait a minute".to_owned(),
        ))
    }
}
