//! Mass refusal: one refused grant is a verdict, many at once may be the provider's mistake.
//!
//! Pure: `now` is the time since some fixed instant, on a clock that never goes back.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use crate::domain::connection::ConnectionId;

/// The refusals of grants at one provider. Many at once are the provider's mistake more likely than as
/// many people's wish, so no verdict follows from them while that lasts.
#[derive(Debug, Default)]
pub(crate) struct MassRefusal {
    /// The results of the last refreshes, within [`Self::WINDOW`].
    recent: VecDeque<Judged>,
    /// Since when verdicts are held.
    held: Option<Held>,
    /// Whose refusal was held in an earlier spell: refused again, it is believed.
    doubted: BTreeSet<ConnectionId>,
}

#[derive(Clone, Copy, Debug)]
struct Judged {
    at: Duration,
    id: ConnectionId,
    refused: bool,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    since: Duration,
    next_probe: Duration,
}

/// The weight of a refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RefusalWeight {
    /// It is a verdict, unless it proves to be one of many.
    Believed,
    /// It is a verdict for good: there was time for second thoughts.
    Final,
    /// One of many: no verdict for now.
    Held,
    /// The one by which they became many: verdicts of the last [`MassRefusal::WINDOW`] are taken back.
    SuppressionStarted,
}

impl MassRefusal {
    /// The time for which a refusal counts.
    pub(crate) const WINDOW: Duration = Duration::from_mins(10);

    /// The time between two probes while refusals are suppressed.
    pub(crate) const PROBE: Duration = Duration::from_mins(5);

    /// The number of connections refused within the window from which refusals are suppressed.
    const MANY: usize = 5;

    /// The most of a window that may be refused for each refusal to be believed: one in five.
    const SHARE: usize = 5;

    /// After that long without a single grant the provider is believed.
    const LONGEST: Duration = Duration::from_hours(24);

    /// The time for which nothing may be sent; none while something may.
    pub(crate) fn shut_for(&self, now: Duration) -> Option<Duration> {
        self.held.map(|held| held.next_probe.saturating_sub(now)).filter(|left| !left.is_zero())
    }

    /// True while refusals are suppressed.
    pub(crate) fn are_held(&self) -> bool {
        self.held.is_some()
    }

    /// Notes that a request goes out, which [`MassRefusal::shut_for`] does not forbid. While verdicts are
    /// held that is the probe: the next may follow [`MassRefusal::PROBE`] later.
    pub(crate) fn enter(&mut self, now: Duration) {
        if let Some(held) = &mut self.held {
            held.next_probe = now + Self::PROBE;
        }
    }

    /// A refresh brought a grant. True when that ends a hold: few are refused any more. Until then
    /// each grant lets the next request through, so that a provider that has come to itself is soon
    /// known for it.
    pub(crate) fn granted(&mut self, id: ConnectionId, now: Duration) -> bool {
        // Its earlier refusal was a mistake.
        self.recent.retain(|judged| judged.id != id);
        self.note(Judged { at: now, id, refused: false });
        self.doubted.remove(&id);
        if let Some(held) = &mut self.held {
            held.next_probe = now;
        }
        let ended = self.held.is_some() && !self.are_many();
        if ended {
            self.held = None;
            let refused = self.recent.iter().filter(|judged| judged.refused);
            self.doubted.extend(refused.map(|judged| judged.id));
        }
        ended
    }

    /// A refresh was refused.
    pub(crate) fn refused(&mut self, id: ConnectionId, now: Duration) -> RefusalWeight {
        self.note(Judged { at: now, id, refused: true });
        match self.held {
            Some(held) if held.since + Self::LONGEST < now => RefusalWeight::Final,
            Some(_) => RefusalWeight::Held,
            None if self.are_many() => {
                self.held = Some(Held { since: now, next_probe: now + Self::PROBE });
                RefusalWeight::SuppressionStarted
            }
            None if self.doubted.contains(&id) => RefusalWeight::Final,
            None => RefusalWeight::Believed,
        }
    }

    /// True if so many connections are refused that it may be the provider's mistake.
    fn are_many(&self) -> bool {
        let refused = self.recent.iter().filter(|judged| judged.refused);
        let refused: BTreeSet<_> = refused.map(|judged| judged.id).collect();
        refused.len() >= Self::MANY && refused.len() * Self::SHARE >= self.recent.len()
    }

    fn note(&mut self, judged: Judged) {
        self.recent.push_back(judged);
        while self.recent.front().is_some_and(|first| first.at + Self::WINDOW < judged.at) {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn few_refusals_are_believed() {
        let mut refusals = MassRefusal::default();
        for _ in 0..4 {
            assert_eq!(refusals.refused(ConnectionId::new(), at(0)), RefusalWeight::Believed);
        }
        let mut one = MassRefusal::default();
        let id = ConnectionId::new();
        for second in 0..20 {
            assert_eq!(one.refused(id, at(second)), RefusalWeight::Believed, "one is not many");
        }
        let mut spread = MassRefusal::default();
        for hour in 0..20 {
            assert_eq!(
                spread.refused(ConnectionId::new(), at(hour * 3_600)),
                RefusalWeight::Believed
            );
        }
        let mut drowned = MassRefusal::default();
        for _ in 0..40 {
            drowned.granted(ConnectionId::new(), at(0));
        }
        for _ in 0..7 {
            assert_eq!(drowned.refused(ConnectionId::new(), at(1)), RefusalWeight::Believed);
        }
    }

    #[test]
    fn many_refusals_are_held_and_probed() {
        let mut refusals = MassRefusal::default();
        let ids: Vec<_> = (0..6).map(|_| ConnectionId::new()).collect();
        for id in &ids[..4] {
            refusals.refused(*id, at(0));
        }
        assert_eq!(refusals.refused(ids[4], at(0)), RefusalWeight::SuppressionStarted);
        assert_eq!(refusals.refused(ids[5], at(1)), RefusalWeight::Held);
        assert_eq!(refusals.shut_for(at(1)), Some(at(299)));
        assert!(refusals.shut_for(at(300)).is_none());
        refusals.enter(at(300));
        assert!(refusals.shut_for(at(301)).is_some());
        assert!(!refusals.granted(ids[0], at(302)), "one is not enough");
        assert!(refusals.shut_for(at(302)).is_none(), "the next may follow at once");
        refusals.enter(at(302));
        assert_eq!(refusals.refused(ids[1], at(303)), RefusalWeight::Held);
        assert!(refusals.granted(ids[2], at(304)));
        assert!(!refusals.are_held());
    }

    #[test]
    fn who_is_refused_again_after_a_hold_is_believed() {
        let mut refusals = MassRefusal::default();
        let ids: Vec<_> = (0..6).map(|_| ConnectionId::new()).collect();
        for id in &ids {
            refusals.refused(*id, at(0));
        }
        assert!(!refusals.granted(ids[0], at(300)));
        assert!(refusals.granted(ids[1], at(300)));
        assert_eq!(refusals.refused(ids[2], at(301)), RefusalWeight::Final);
        // A connection that was granted a token is trusted again, and begins anew.
        assert!(!refusals.doubted.contains(&ids[0]));
    }

    #[test]
    fn no_hold_lasts_for_ever() {
        let mut refusals = MassRefusal::default();
        for _ in 0..5 {
            refusals.refused(ConnectionId::new(), at(0));
        }
        assert_eq!(refusals.refused(ConnectionId::new(), at(86_399)), RefusalWeight::Held);
        assert_eq!(refusals.refused(ConnectionId::new(), at(86_401)), RefusalWeight::Final);
    }
}
