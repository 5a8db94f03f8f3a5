//! What a provider remembers of every code and token it ever issued, and the rules of rotation.
//!
//! Pure: time is an argument and texts come from outside, kept only as digests.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::oracle::{Endpoint, Known, Oracle};
use crate::secret::Digest;

/// What happens to a refresh token that was used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rotation {
    /// It works for the rest of its life.
    Stays,
    /// It is dead at once; using it again harms nothing else.
    SingleUse,
    /// It works until something of a newer pair is used.
    UntilNextUsed,
    /// It works until `grace` after its first use; using it later ends the whole chain.
    RevokesChain { grace: SignedDuration, old_access_lives: bool },
}

/// A code, an access token or a refresh token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An authorization code.
    Code,
    /// An access token.
    Access,
    /// A refresh token.
    Refresh,
}

/// Why a code or token no longer works.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Its life is over.
    Expired,
    /// A code that was redeemed.
    Redeemed,
    /// A newer pair took its place.
    Rotated,
    /// The code behind it was presented a second time.
    CodeReused,
    /// A refresh token of its chain was presented after its end.
    RefreshReused,
}

/// Who authorised what: the same for all tokens of a chain.
#[derive(Clone, Debug)]
pub(super) struct Authorisation {
    /// The account's id, as text.
    pub account: String,
    pub scopes: Vec<String>,
    /// The redirect URI of the authorisation request; `None` for client credentials.
    pub redirect_uri: Option<String>,
    /// The PKCE challenge (S256) of the authorisation request.
    pub challenge: Option<String>,
}

/// Why a code or token was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// Never issued here, or a text of another kind.
    Unknown,
    /// Issued, but no longer alive.
    Dead(End),
}

/// A pair about to be issued: texts with their lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub access: (&'a str, u32),
    pub refresh: Option<(&'a str, u32)>,
}

/// A code or token that was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Id(usize);

#[derive(Debug)]
struct Entry {
    fingerprint: String,
    kind: Kind,
    chain: usize,
    generation: u32,
    issued_at: Timestamp,
    /// It works before this instant; from it on it is dead for this reason.
    ends: (Timestamp, End),
    presented: BTreeMap<Endpoint, u64>,
}

impl Entry {
    /// Dead from `at` on, unless it is dead before that already.
    fn end(&mut self, at: Timestamp, end: End) {
        if at < self.ends.0 {
            self.ends = (at, end);
        }
    }

    fn ended(&self, now: Timestamp) -> Option<End> {
        (now >= self.ends.0).then_some(self.ends.1)
    }
}

#[derive(Debug)]
struct Chain {
    authorisation: Arc<Authorisation>,
    /// The newest generation; a code has none.
    generation: u32,
    entries: Vec<usize>,
}

/// Everything one simulated provider has issued.
#[derive(Debug)]
pub(super) struct Ledger {
    rotation: Rotation,
    entries: Vec<Entry>,
    by_digest: HashMap<String, usize>,
    chains: Vec<Chain>,
    requests: BTreeMap<Endpoint, u64>,
    unknown: BTreeMap<Endpoint, u64>,
}

impl Ledger {
    pub(super) fn new(rotation: Rotation) -> Self {
        Self {
            rotation,
            entries: Vec::new(),
            by_digest: HashMap::new(),
            chains: Vec::new(),
            requests: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Counts a request that arrived.
    pub(super) fn arrived(&mut self, endpoint: Endpoint) {
        *self.requests.entry(endpoint).or_default() += 1;
    }

    /// Counts a text that a request carried, whatever becomes of that request.
    pub(super) fn presented(&mut self, text: &str, endpoint: Endpoint) {
        let counts = match self.by_digest.get(&digest(text)) {
            Some(&at) => &mut self.entries[at].presented,
            None => &mut self.unknown,
        };
        *counts.entry(endpoint).or_default() += 1;
    }

    /// A person allowed it: a code for a new chain.
    pub(super) fn issue_code(
        &mut self,
        authorisation: Authorisation,
        (text, life): (&str, u32),
        now: Timestamp,
    ) {
        let chain = self.open(authorisation);
        self.add(chain, Kind::Code, text, life, now);
    }

    /// A grant with neither code nor refresh token before it.
    pub(super) fn issue_directly(
        &mut self,
        authorisation: Authorisation,
        pair: Pair<'_>,
        now: Timestamp,
    ) {
        let chain = self.open(authorisation);
        self.issue(chain, pair, now);
    }

    /// The code behind a text, as long as it is alive. Looking does not spend it.
    pub(super) fn code(&self, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        self.alive(Kind::Code, text, now)
    }

    /// Spends a code on a pair.
    pub(super) fn redeem(&mut self, Id(code): Id, pair: Pair<'_>, now: Timestamp) {
        self.entries[code].end(now, End::Redeemed);
        self.issue(self.entries[code].chain, pair, now);
    }

    /// The refresh token behind a text, as long as it is alive; reuse has its consequences here.
    pub(super) fn refresh(&mut self, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        let found = self.alive(Kind::Refresh, text, now);
        if let (Err(Refusal::Dead(End::Rotated)), Rotation::RevokesChain { .. }) =
            (found, self.rotation)
        {
            self.revoke_chain_of(text, End::RefreshReused, now);
        }
        found
    }

    /// Replaces a refresh token by a pair, as the rule of rotation has it.
    pub(super) fn rotate(&mut self, Id(refresh): Id, pair: Pair<'_>, now: Timestamp) {
        let Entry { chain, generation, .. } = self.entries[refresh];
        match self.rotation {
            Rotation::Stays => {}
            Rotation::SingleUse => self.entries[refresh].end(now, End::Rotated),
            Rotation::UntilNextUsed => self.retire_before(chain, generation, now),
            Rotation::RevokesChain { grace, old_access_lives } => {
                let over = now.saturating_add(grace).unwrap_or(Timestamp::MAX);
                self.entries[refresh].end(over, End::Rotated);
                let access_over = if old_access_lives { over } else { now };
                self.each(chain, |entry| {
                    if entry.kind == Kind::Access && entry.generation == generation {
                        entry.end(access_over, End::Rotated);
                    }
                });
            }
        }
        self.issue(chain, pair, now);
    }

    /// The access token behind a text, as long as it is alive. Its use is a use of its pair.
    pub(super) fn access(&mut self, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        let found = self.alive(Kind::Access, text, now)?;
        if let Rotation::UntilNextUsed = self.rotation {
            let Entry { chain, generation, .. } = self.entries[found.0];
            self.retire_before(chain, generation, now);
        }
        Ok(found)
    }

    /// Ends everything that came from the same authorisation as this text.
    pub(super) fn revoke_chain_of(&mut self, text: &str, end: End, now: Timestamp) {
        if let Some(&at) = self.by_digest.get(&digest(text)) {
            self.each(self.entries[at].chain, |entry| entry.end(now, end));
        }
    }

    pub(super) fn authorisation(&self, Id(at): Id) -> Arc<Authorisation> {
        Arc::clone(&self.chains[self.entries[at].chain].authorisation)
    }

    /// Whether a text is the access token that was issued together with a refresh token.
    pub(super) fn issued_together(&self, access: &str, Id(refresh): Id) -> bool {
        let refresh = &self.entries[refresh];
        self.by_digest.get(&digest(access)).map(|&at| &self.entries[at]).is_some_and(|access| {
            access.kind == Kind::Access
                && (access.chain, access.generation) == (refresh.chain, refresh.generation)
        })
    }

    /// How many access tokens are alive.
    pub(super) fn live_access_tokens(&self, now: Timestamp) -> usize {
        let alive = |entry: &&Entry| entry.kind == Kind::Access && entry.ended(now).is_none();
        self.entries.iter().filter(alive).count()
    }

    /// All that is known, for a test or a person to read.
    pub(super) fn oracle(&self, now: Timestamp) -> Oracle {
        let known = |(id, entry): (usize, &Entry)| Known {
            id: id + 1,
            fingerprint: entry.fingerprint.clone(),
            kind: entry.kind,
            chain: entry.chain + 1,
            generation: entry.generation,
            account: self.chains[entry.chain].authorisation.account.clone(),
            issued_at: entry.issued_at,
            ends_at: entry.ends.0,
            alive: entry.ended(now).is_none(),
            ended: entry.ended(now),
            presented: entry.presented.clone(),
        };
        Oracle {
            now,
            requests: self.requests.clone(),
            unknown: self.unknown.clone(),
            known: self.entries.iter().enumerate().map(known).collect(),
        }
    }

    fn alive(&self, kind: Kind, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        let at = *self.by_digest.get(&digest(text)).ok_or(Refusal::Unknown)?;
        let entry = &self.entries[at];
        if entry.kind != kind {
            return Err(Refusal::Unknown);
        }
        entry.ended(now).map_or(Ok(Id(at)), |end| Err(Refusal::Dead(end)))
    }

    /// The lenient rule: with this generation in use, the refresh tokens before it are over.
    fn retire_before(&mut self, chain: usize, generation: u32, now: Timestamp) {
        self.each(chain, |entry| {
            if entry.kind == Kind::Refresh && entry.generation < generation {
                entry.end(now, End::Rotated);
            }
        });
    }

    fn each(&mut self, chain: usize, mut change: impl FnMut(&mut Entry)) {
        for &at in &self.chains[chain].entries {
            change(&mut self.entries[at]);
        }
    }

    fn open(&mut self, authorisation: Authorisation) -> usize {
        let authorisation = Arc::new(authorisation);
        self.chains.push(Chain { authorisation, generation: 0, entries: Vec::new() });
        self.chains.len() - 1
    }

    fn issue(&mut self, chain: usize, pair: Pair<'_>, now: Timestamp) {
        self.chains[chain].generation += 1;
        self.add(chain, Kind::Access, pair.access.0, pair.access.1, now);
        if let Some((text, life)) = pair.refresh {
            self.add(chain, Kind::Refresh, text, life, now);
        }
    }

    fn add(&mut self, chain: usize, kind: Kind, text: &str, life: u32, now: Timestamp) {
        let life = SignedDuration::from_secs(i64::from(life));
        let ends_at = now.saturating_add(life).unwrap_or(Timestamp::MAX);
        let at = self.entries.len();
        let generation = self.chains[chain].generation;
        self.entries.push(Entry {
            fingerprint: Digest::of_bytes(text.as_bytes()).fingerprint(),
            kind,
            chain,
            generation,
            issued_at: now,
            ends: (ends_at, End::Expired),
            presented: BTreeMap::new(),
        });
        self.by_digest.insert(digest(text), at);
        self.chains[chain].entries.push(at);
    }
}

fn digest(text: &str) -> String {
    Digest::of_bytes(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u32 = 3_600;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn pair<'a>(access: &'a str, refresh: &'a str) -> Pair<'a> {
        Pair { access: (access, HOUR), refresh: Some((refresh, 24 * HOUR)) }
    }

    /// A ledger whose only chain holds the pair `a1`, `r1`, issued at 0.
    fn with_first_pair(rotation: Rotation) -> Ledger {
        let mut ledger = Ledger::new(rotation);
        let authorisation = Authorisation {
            account: "1".into(),
            scopes: Vec::new(),
            redirect_uri: None,
            challenge: None,
        };
        ledger.issue_code(authorisation, ("c", 600), at(0));
        let code = ledger.code("c", at(0)).unwrap();
        ledger.redeem(code, pair("a1", "r1"), at(0));
        ledger
    }

    fn rotate(ledger: &mut Ledger, old: &str, new: (&str, &str), now: Timestamp) {
        let refresh = ledger.refresh(old, now).unwrap();
        ledger.rotate(refresh, pair(new.0, new.1), now);
    }

    #[test]
    fn a_code_works_once_and_until_its_end() {
        let ledger = with_first_pair(Rotation::Stays);
        assert_eq!(ledger.code("c", at(1)), Err(Refusal::Dead(End::Redeemed)));
        assert_eq!(ledger.code("a1", at(1)), Err(Refusal::Unknown));
    }

    #[test]
    fn a_token_is_dead_from_the_instant_its_life_ends() {
        let mut ledger = with_first_pair(Rotation::Stays);
        assert!(ledger.access("a1", at(3_599)).is_ok());
        assert_eq!(ledger.access("a1", at(3_600)), Err(Refusal::Dead(End::Expired)));
    }

    #[test]
    fn a_single_use_token_works_once_and_its_reuse_harms_nothing_else() {
        let mut ledger = with_first_pair(Rotation::SingleUse);
        rotate(&mut ledger, "r1", ("a2", "r2"), at(1));
        assert_eq!(ledger.refresh("r1", at(1)), Err(Refusal::Dead(End::Rotated)));
        assert!(ledger.refresh("r2", at(1)).is_ok());
        assert!(ledger.access("a1", at(1)).is_ok());
    }

    #[test]
    fn a_lenient_token_works_until_something_newer_is_used() {
        let mut ledger = with_first_pair(Rotation::UntilNextUsed);
        rotate(&mut ledger, "r1", ("a2", "r2"), at(1));
        rotate(&mut ledger, "r1", ("a3", "r3"), at(2));
        assert!(ledger.access("a3", at(3)).is_ok());
        for old in ["r1", "r2"] {
            assert_eq!(ledger.refresh(old, at(3)), Err(Refusal::Dead(End::Rotated)), "{old}");
        }
        rotate(&mut ledger, "r3", ("a4", "r4"), at(4));
        rotate(&mut ledger, "r4", ("a5", "r5"), at(5));
        assert_eq!(ledger.refresh("r3", at(5)), Err(Refusal::Dead(End::Rotated)));
    }

    #[test]
    fn the_grace_runs_from_the_first_use_and_reuse_after_it_ends_the_chain() {
        let grace = SignedDuration::from_secs(120);
        let rotation = Rotation::RevokesChain { grace, old_access_lives: true };
        let mut ledger = with_first_pair(rotation);
        rotate(&mut ledger, "r1", ("a2", "r2"), at(0));
        rotate(&mut ledger, "r1", ("a3", "r3"), at(119));
        assert!(ledger.access("a1", at(119)).is_ok());
        assert_eq!(ledger.access("a1", at(120)), Err(Refusal::Dead(End::Rotated)));
        assert!(ledger.refresh("r3", at(120)).is_ok());
        assert_eq!(ledger.refresh("r1", at(120)), Err(Refusal::Dead(End::Rotated)));
        assert_eq!(ledger.refresh("r3", at(120)), Err(Refusal::Dead(End::RefreshReused)));
        assert_eq!(ledger.access("a3", at(120)), Err(Refusal::Dead(End::RefreshReused)));
    }

    #[test]
    fn the_oracle_counts_every_presentation_known_or_not() {
        let mut ledger = with_first_pair(Rotation::SingleUse);
        ledger.presented("r1", Endpoint::Token);
        ledger.presented("r1", Endpoint::Token);
        ledger.presented("never issued", Endpoint::Account);
        let oracle = ledger.oracle(at(0));
        let known = oracle.of("r1").unwrap();
        assert_eq!((known.presented[&Endpoint::Token], known.generation), (2, 1));
        assert_eq!(oracle.unknown[&Endpoint::Account], 1);
    }
}
