//! The gate before each provider: at which pace it is asked, and when it is left alone. A replica
//! has its own; what one learns of a provider the others learn from their own requests.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::sleep;

use super::{
    mass_refusal::{MassRefusal, RefusalWeight},
    permits::{Permit, Priority, PrioritySemaphore},
    throttle::{Breaker, BreakerConfig, RateLimiter},
};
use crate::{
    broker::{BrokerError, RefreshReason},
    clock::Clock,
    domain::{connection::ConnectionId, slug::Slug},
    provider::{Grant, Profile, ProviderError, Verdict},
};

/// When a provider that does not answer is left alone.
const OUTAGE: BreakerConfig = BreakerConfig {
    consecutive_failures: 5,
    min_requests: 20,
    pause: Duration::from_secs(15),
    longest: Duration::from_mins(1),
};

/// When a client whose registration is refused is left alone. One connection with a fault of its
/// own is not enough.
const MISCONFIGURATION: BreakerConfig = BreakerConfig {
    consecutive_failures: 3,
    min_requests: usize::MAX,
    pause: Duration::from_mins(1),
    longest: Duration::from_mins(1),
};

/// The pause where a provider asks us to slow down and does not say for how long.
const BUSY: Duration = Duration::from_secs(5);

/// The gate before one provider.
#[derive(Debug)]
pub(crate) struct Gate {
    title: String,
    /// The permits for background refreshes.
    permits: PrioritySemaphore,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: RateLimiter,
    outage: Breaker,
    /// The provider asked us to slow down until then.
    busy_until: Duration,
    refusals: MassRefusal,
    /// By client, each with the connection that failed last: one alone is not enough.
    misconfiguration: BTreeMap<Slug, (Breaker, Option<ConnectionId>)>,
}

/// Why nothing is sent now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shut {
    /// The provider does not answer, asks for time, or refuses everybody.
    Provider(Duration),
    /// The provider refuses the client.
    Client,
}

impl From<Shut> for BrokerError {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::Provider(retry_after) => Self::Unavailable {
                reason: "the provider is left alone for a while: its last answers were failures"
                    .to_owned(),
                retry_after: retry_after.max(Duration::from_secs(1)),
            },
            Shut::Client => Self::Misconfigured(
                "the provider refuses our registration or the way we ask".to_owned(),
            ),
        }
    }
}

impl Gate {
    pub(crate) fn new(profile: &Profile, clock: Clock) -> Self {
        let pace = profile.pace;
        let permits = usize::try_from(pace.in_flight.get()).unwrap_or(usize::MAX);
        Self {
            title: profile.title.clone(),
            permits: PrioritySemaphore::new(permits),
            clock,
            state: Mutex::new(State {
                rate: RateLimiter::new(pace.per_second.get(), pace.burst.get()),
                outage: Breaker::new(OUTAGE),
                busy_until: Duration::ZERO,
                refusals: MassRefusal::default(),
                misconfiguration: BTreeMap::new(),
            }),
        }
    }

    /// True if a refresh for this client might pass.
    pub(crate) fn is_open(&self, client: &Slug) -> bool {
        let now = self.now();
        self.state().shut(client, now).is_none()
    }

    /// Waits for a place among the background refreshes under way; the most urgent is the next.
    pub(crate) async fn permit(&self, priority: Priority) -> Permit {
        self.permits.acquire(priority).await
    }

    /// Waits as the pace has it. An operator who asks is let through whatever failed before.
    pub(crate) async fn enter(&self, client: &Slug, why: RefreshReason) -> Result<(), Shut> {
        let wait = {
            let now = self.now();
            let mut state = self.state();
            if why != RefreshReason::Operator {
                state.enter(client, now)?;
            }
            state.rate.reserve(now)
        };
        sleep(wait).await;
        Ok(())
    }

    /// Takes note of what a request came to, and tells people of what begins and ends.
    pub(crate) fn record_response(
        &self,
        client: &Slug,
        id: ConnectionId,
        reply: &Result<Grant, ProviderError>,
    ) {
        let answer = reply.as_ref().map_err(|error| &error.verdict);
        let now = self.now();
        let mut state = self.state();
        let State { outage, refusals, misconfiguration, busy_until, .. } = &mut *state;
        let registration = misconfiguration
            .entry(client.clone())
            .or_insert_with(|| (Breaker::new(MISCONFIGURATION), None));
        let (registration, failed_last) = registration;
        let title = &self.title;
        if answer.is_ok() && refusals.granted(id, now) {
            tracing::info!("{title} grants again; what it refused meanwhile is tried again");
        }
        match answer {
            Ok(_) | Err(Verdict::Refused { .. }) => {
                if outage.succeeded(now) {
                    tracing::info!("{title} answers again");
                }
                if registration.succeeded(now) {
                    tracing::info!(%client, "{title} accepts our registration again");
                }
            }
            Err(Verdict::Busy { retry_after }) => {
                *busy_until = (*busy_until).max(now + retry_after.unwrap_or(BUSY));
            }
            Err(Verdict::Ambiguous | Verdict::NotSent) => {
                if outage.failed(now) {
                    tracing::error!(
                        "{title} does not answer: it is left alone but for a probe now and then; \
                         live tokens are served"
                    );
                }
            }
            Err(Verdict::Misconfigured) => {
                let another = failed_last.replace(id) != Some(id);
                if (another || registration.is_open()) && registration.failed(now) {
                    tracing::error!(
                        %client,
                        "{title} refuses our registration or the way we ask: no connection is \
                         touched; look at [clients.{client}]"
                    );
                }
            }
            Err(Verdict::Retry | Verdict::TooLate) => {}
        }
    }

    /// Classifies a refusal of a grant.
    pub(crate) fn classify_refusal(&self, id: ConnectionId) -> RefusalWeight {
        let weight = self.state().refusals.refused(id, self.now());
        if weight == RefusalWeight::SuppressionStarted {
            tracing::error!(
                "{} refuses the grants of many connections at once: nobody is asked to consent \
                 again while that may be the provider's mistake",
                self.title
            );
        }
        weight
    }

    /// True while refusals are suppressed: the provider refuses too many to be believed.
    pub(crate) fn is_suppressing(&self) -> bool {
        self.state().refusals.are_held()
    }

    /// The problems, one sentence each, for people.
    pub(crate) fn notes(&self) -> Vec<String> {
        let state = self.state();
        let title = &self.title;
        let refused = state.misconfiguration.iter().filter(|(_, (breaker, _))| breaker.is_open());
        let mut notes: Vec<_> = refused
            .map(|(client, _)| format!("{title} refuses the registration of client {client}"))
            .collect();
        if state.outage.is_open() {
            notes.push(format!("{title} does not answer; live tokens are served"));
        }
        if state.refusals.are_held() {
            notes.push(format!("{title} refuses many grants at once; no verdict follows for now"));
        }
        notes
    }

    fn now(&self) -> Duration {
        let since_boot = self.clock.since_boot().as_millis();
        Duration::from_millis(u64::try_from(since_boot).unwrap_or_default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn shut(&self, client: &Slug, now: Duration) -> Option<Shut> {
        let busy = self.busy_until.saturating_sub(now);
        let busy = (!busy.is_zero()).then_some(busy);
        let provider = [self.outage.shut_for(now), busy, self.refusals.shut_for(now)];
        let registration = || self.misconfiguration.get(client)?.0.shut_for(now);
        provider
            .into_iter()
            .flatten()
            .max()
            .map(Shut::Provider)
            .or_else(|| registration().map(|_| Shut::Client))
    }

    /// Passes all of them, or none: a probe that one lets through and another stops is none.
    fn enter(&mut self, client: &Slug, now: Duration) -> Result<(), Shut> {
        if let Some(shut) = self.shut(client, now) {
            return Err(shut);
        }
        self.outage.enter(now);
        self.refusals.enter(now);
        if let Some((registration, _)) = self.misconfiguration.get_mut(client) {
            registration.enter(now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Catalogue;

    #[test]
    fn a_delay_of_ours_is_told_by_its_verdict_and_not_by_a_word() {
        let profile =
            Catalogue::load(None, &BTreeMap::new()).unwrap().get("avito").unwrap().clone();
        let gate = Gate::new(&profile, Clock::system());
        let client: Slug = "main".parse().unwrap();
        let learn_five = |verdict: &Verdict| {
            for _ in 0..OUTAGE.consecutive_failures {
                let error = ProviderError {
                    verdict: verdict.clone(),
                    status: None,
                    code: "send_window_over".to_owned(),
                    message: String::new(),
                    salvaged_refresh: None,
                };
                gate.record_response(&client, ConnectionId::new(), &Err(error));
            }
        };
        learn_five(&Verdict::TooLate);
        assert!(gate.is_open(&client), "it is no fault of the provider's");
        learn_five(&Verdict::Ambiguous);
        assert!(!gate.is_open(&client), "whatever the provider says");
    }
}
