//! A provider's memory of every code and token it ever issued.
//!
//! Pure: time is an argument and texts come from outside, kept only as digests (but for `successor`).

mod successor;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use self::successor::Successor;
use super::{
    oracle::{End, Endpoint, Kind, Known, Oracle},
    rotation::{Rotation, Successors},
};
use crate::seal::secret::Digest;

/// The subject of an authorisation: the same for all tokens of a chain.
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

/// A pair about to be issued, or to answer with: texts with their lives in seconds.
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
    /// By the refresh token that brought it, for [`Successors::Same`].
    successors: HashMap<usize, Successor>,
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
            successors: HashMap::new(),
            requests: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Counts a request that arrived.
    pub(super) fn count_request(&mut self, endpoint: Endpoint) {
        *self.requests.entry(endpoint).or_default() += 1;
    }

    /// Counts a presented code or token, whatever becomes of its request.
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
        code: (&str, u32),
        now: Timestamp,
    ) {
        let chain = self.open_chain(authorisation);
        self.add_entry(chain, Kind::Code, code, now);
    }

    /// A grant with neither code nor refresh token before it.
    pub(super) fn issue_directly(
        &mut self,
        authorisation: Authorisation,
        pair: Pair<'_>,
        now: Timestamp,
    ) {
        let chain = self.open_chain(authorisation);
        self.issue_pair(chain, pair, now);
    }

    /// The code behind a text, as long as it is alive. Looking does not spend it.
    pub(super) fn code(&self, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        self.find_alive(Kind::Code, text, now)
    }

    /// Spends a code on a pair.
    pub(super) fn redeem(&mut self, Id(code): Id, pair: Pair<'_>, now: Timestamp) {
        self.entries[code].end(now, End::Redeemed);
        self.issue_pair(self.entries[code].chain, pair, now);
    }

    /// The refresh token behind a text, as long as it is alive; reuse has its consequences here.
    pub(super) fn refresh(&mut self, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        let found = self.find_alive(Kind::Refresh, text, now);
        if let (Err(Refusal::Dead(End::Rotated)), Rotation::RevokesChain { .. }) =
            (found, self.rotation)
        {
            self.revoke_chain_of(text, End::RefreshReused, now);
        }
        found
    }

    /// Spends a refresh token as the rule of rotation has it. Gives the pair to answer with.
    pub(super) fn rotate<'a>(
        &'a mut self,
        Id(refresh): Id,
        pair: Pair<'a>,
        now: Timestamp,
    ) -> Pair<'a> {
        let Entry { chain, generation, .. } = self.entries[refresh];
        match self.rotation {
            Rotation::Stays => {
                self.add_entry(chain, Kind::Access, pair.access, now);
                return Pair { refresh: None, ..pair };
            }
            Rotation::UntilNextUsed => self.retire_before(chain, generation, now),
            Rotation::Dies { grace, successors } => {
                self.entries[refresh].end(after(grace, now), End::Rotated);
                match successors {
                    Successors::Same => return self.same_successor(refresh, pair, now),
                    Successors::AllLive => {}
                    Successors::NewestLives => self.retire_after(chain, generation, now),
                }
            }
            Rotation::RevokesChain { grace, access_grace } => {
                self.entries[refresh].end(after(grace, now), End::Rotated);
                self.for_each_in(chain, |entry| {
                    if entry.kind == Kind::Access && entry.generation == generation {
                        entry.end(after(access_grace, now), End::Rotated);
                    }
                });
            }
        }
        self.issue_pair(chain, pair, now);
        pair
    }

    /// The access token behind a text, as long as it is alive. Its use is a use of its pair.
    pub(super) fn access(&mut self, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        let found = self.find_alive(Kind::Access, text, now)?;
        if let Rotation::UntilNextUsed = self.rotation {
            let Entry { chain, generation, .. } = self.entries[found.0];
            self.retire_before(chain, generation, now);
        }
        Ok(found)
    }

    /// Ends everything that came from the same authorisation as this text.
    pub(super) fn revoke_chain_of(&mut self, text: &str, end: End, now: Timestamp) {
        if let Some(&at) = self.by_digest.get(&digest(text)) {
            self.for_each_in(self.entries[at].chain, |entry| entry.end(now, end));
        }
    }

    pub(super) fn authorisation(&self, Id(at): Id) -> Arc<Authorisation> {
        Arc::clone(&self.chains[self.entries[at].chain].authorisation)
    }

    /// True if a text is the access token that was issued together with a refresh token.
    pub(super) fn issued_together(&self, access: &str, Id(refresh): Id) -> bool {
        let refresh = &self.entries[refresh];
        self.by_digest.get(&digest(access)).map(|&at| &self.entries[at]).is_some_and(|access| {
            access.kind == Kind::Access
                && (access.chain, access.generation) == (refresh.chain, refresh.generation)
        })
    }

    /// The number of live access tokens.
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

    fn find_alive(&self, kind: Kind, text: &str, now: Timestamp) -> Result<Id, Refusal> {
        let at = *self.by_digest.get(&digest(text)).ok_or(Refusal::Unknown)?;
        let entry = &self.entries[at];
        if entry.kind != kind {
            return Err(Refusal::Unknown);
        }
        entry.ended(now).map_or(Ok(Id(at)), |end| Err(Refusal::Dead(end)))
    }

    /// The lenient rule: with this generation in use, the refresh tokens before it are over.
    fn retire_before(&mut self, chain: usize, generation: u32, now: Timestamp) {
        self.for_each_in(chain, |entry| {
            if entry.kind == Kind::Refresh && entry.generation < generation {
                entry.end(now, End::Rotated);
            }
        });
    }

    /// Only the newest lives: everything that came after this generation is over.
    fn retire_after(&mut self, chain: usize, generation: u32, now: Timestamp) {
        self.for_each_in(chain, |entry| {
            if entry.generation > generation {
                entry.end(now, End::Rotated);
            }
        });
    }

    /// The pair that this token brought at its first use, which this may be.
    fn same_successor<'a>(
        &'a mut self,
        refresh: usize,
        pair: Pair<'a>,
        now: Timestamp,
    ) -> Pair<'a> {
        if !self.successors.contains_key(&refresh) {
            self.successors.retain(|&of, _| self.entries[of].ended(now).is_none());
            self.issue_pair(self.entries[refresh].chain, pair, now);
            self.successors.insert(refresh, Successor::new(pair, now));
        }
        self.successors[&refresh].again(now)
    }

    fn for_each_in(&mut self, chain: usize, mut change: impl FnMut(&mut Entry)) {
        for &at in &self.chains[chain].entries {
            change(&mut self.entries[at]);
        }
    }

    fn open_chain(&mut self, authorisation: Authorisation) -> usize {
        let authorisation = Arc::new(authorisation);
        self.chains.push(Chain { authorisation, generation: 0, entries: Vec::new() });
        self.chains.len() - 1
    }

    fn issue_pair(&mut self, chain: usize, pair: Pair<'_>, now: Timestamp) {
        self.chains[chain].generation += 1;
        self.add_entry(chain, Kind::Access, pair.access, now);
        if let Some(refresh) = pair.refresh {
            self.add_entry(chain, Kind::Refresh, refresh, now);
        }
    }

    fn add_entry(&mut self, chain: usize, kind: Kind, (text, life): (&str, u32), now: Timestamp) {
        let at = self.entries.len();
        let generation = self.chains[chain].generation;
        self.entries.push(Entry {
            fingerprint: Digest::of_bytes(text.as_bytes()).fingerprint(),
            kind,
            chain,
            generation,
            issued_at: now,
            ends: (end_of(life, now), End::Expired),
            presented: BTreeMap::new(),
        });
        self.by_digest.insert(digest(text), at);
        self.chains[chain].entries.push(at);
    }
}

fn end_of(life: u32, now: Timestamp) -> Timestamp {
    after(SignedDuration::from_secs(i64::from(life)), now)
}

fn after(wait: SignedDuration, now: Timestamp) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

fn digest(text: &str) -> String {
    Digest::of_bytes(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests;
