//! # token-broker
//!
//! Keeps OAuth2 access tokens alive for many accounts at many providers and hands a fresh one to
//! any internal service in one HTTP call. This page is the map: the rooms, the words, then three
//! journeys through the code. For users there is the [guide].
//!
//! # Rooms
//!
//! Direction is always down: a room may use the rooms below it, and none above. [`store`] and
//! [`provider`] do not know each other.
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`] | the commands, and their exit codes |
//! | [`app`] | wiring: settings to a running broker, and back down in order; the background loops; the state directory |
//! | [`http`] | the two listeners, what each offers, the pages a person sees |
//! | [`broker`] | the use cases: a facade over owners such as the refresher, the consent flow and the cache |
//! | [`config`] | the settings, checked before anything starts; logging |
//! | [`store`] | SQLite and PostgreSQL behind one SQL text, in whole steps |
//! | [`provider`] | profiles as data, requests and replies as pure functions, the way out, our clients |
//! | [`spool`] | write-ahead files of received grants, on their way into the store |
//! | [`audit`] | the audit trail: events and their files, which the broker ships to the store |
//! | [`domain`] | pure rules: connections, grants, consents, callers, freezes, conflicts of grants |
//! | [`seal`] | secrets at rest, key files, digests |
//! | [`simulator`] | strict imitations of the built-in providers |
//! | [`clock`], [`failpoint`], `os` | time; points at which tests hold a refresh; atomic files and process hardening |
//! | [`guide`] | the guide for users, in Markdown |
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | provider, profile | an authorization server; the TOML file that describes it ([`provider::Profile`]) |
//! | client | our registration at a provider ([`provider::client::Client`]) |
//! | connection | one account reached through one client ([`domain::connection::Connection`]) |
//! | grant | the tokens that a token endpoint returned ([`domain::grant`]); RFC 6749 uses the word for the authorization that is exchanged for them |
//! | generation | counts the grants that a connection has held |
//! | slot | the place of a grant: live, pending or fallback; its tokens are sealed for it ([`domain::grant::GrantSlot`]) |
//! | fallback grant | a received grant that lost its place to another one, kept in case that one is refused |
//! | lineage, sibling | the refresh that brought a grant; two answers to the same refresh token ([`domain::grant_conflict`]) |
//! | spent token | a refresh token that was presented and has a successor, or was refused: never presented again, known by its digest |
//! | lease, claim | the right to refresh a connection for a bounded time: a row with the intent, committed before anything is sent |
//! | attempt | one presentation of a refresh token, from its claim to its known end |
//! | single-flight | one refresh of a connection at a time in a process; everybody else joins it |
//! | spool, reservation | the folder of received grants; the room in it that is made before a request is sent |
//! | gate | pace, circuit breaker and mass-refusal hold before one provider |
//! | quarantine | the state of connections whose database looks restored or copied: served, not refreshed |
//! | watermark | the database as this replica last saw it, kept in a file outside it |
//! | freeze | an operator's order to serve nothing of a provider, client, service or connection |
//! | fingerprint | the beginning of a token's digest: tells tokens apart, and is of no other use |
//! | consent link, consent | a one-time URL for a person; one attempt, from the click to the callback |
//! | service, operator | an internal caller with a key; a person who runs the broker |
//!
//! # Fetch
//!
//! `GET /v1/connections/{connection}/token`:
//!
//! 1. The handler checks the key: [`Broker::authenticate`](broker::Broker::authenticate).
//! 2. [`Broker::token`](broker::Broker::token) asks
//!    [`TokenReader`](broker::token::TokenReader), which looks into the
//!    [`Cache`](broker::cache::Cache) and checks freezes and the connection's state.
//! 3. A live token is put on record
//!    ([`AuditLog::write_durable`](broker::audit::AuditLog::write_durable)) and leaves.
//! 4. Without one the reader starts or joins the refresh of that connection
//!    ([`SingleFlight::refresh`](broker::refresh::SingleFlight::refresh)) and waits for it; the
//!    refresh is a task of its own that goes on when the caller hangs up.
//!
//! # Refresh
//!
//! The same for readers, operators and the [background](app::background::run), in the order of
//! [`Refresher`](broker::refresh::Refresher)'s protocol:
//!
//! 1. Start: [`Broker::start_due`](broker::Broker::start_due), or a reader, starts or joins it
//!    ([`SingleFlight`](broker::refresh::SingleFlight)).
//! 2. Admission: the provider's [`Gate`](broker::limits::Gate).
//! 3. Reload: [`Store::record_by_id`](store::Store::record_by_id).
//! 4. Plan: [`plan`](broker::refresh::plan::plan), pure, decides whether a refresh token may be
//!    presented, as far as the record tells.
//! 5. Request: [`Store::is_spent`](store::Store::is_spent) knows the spent tokens;
//!    [`provider::request::refresh`] makes the request.
//! 6. Claim: a reservation in the [`spool`], then [`Store::claim`](store::Store::claim).
//! 7. Send: [`ProviderCalls::token`](broker::provider_calls::ProviderCalls::token) sends it once,
//!    [`provider::read_grant`] reads the answer leniently.
//! 8. Commit: [`Committer::persist_grant`](broker::refresh::commit::Committer::persist_grant) writes
//!    the grant to the spool and stores it by compare-and-set on the generation
//!    ([`DurableStore::commit_grant`](store::DurableStore::commit_grant)). Where another grant was
//!    stored first, [`domain::grant_conflict`] decides between the two, and the other one is kept as a
//!    fallback grant.
//! 9. Publish: [`Cache::reload`](broker::cache::Cache::reload). Readers have the grant.
//!
//! A failure is judged ([`Outcome`](broker::refresh::outcome::Outcome), pure) and recorded
//! ([`DurableStore::record_failure`](store::DurableStore::record_failure)).
//!
//! A crash in between is made good at the next start: [`Broker::recover`](broker::Broker::recover).
//!
//! # Consent
//!
//! 1. [`Broker::make_link`](broker::Broker::make_link) makes a one-time URL. Opening it shows a page
//!    and changes nothing.
//! 2. Pressing its button calls [`Broker::begin_consent`](broker::Broker::begin_consent), which binds
//!    the browser and redirects to the provider.
//! 3. The callback calls [`Broker::finish_consent`](broker::Broker::finish_consent): the attempt is
//!    taken from the store in one statement
//!    ([`Store::take_consent`](store::Store::take_consent)).
//! 4. [`CodeExchange`](broker::consent::CodeExchange) exchanges the code once, looks the account up,
//!    and stores the grant: live if the account is the one that was meant, otherwise waiting for
//!    [`Broker::confirm`](broker::Broker::confirm).

pub mod app;
pub mod audit;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod failpoint;
pub mod guide;
pub mod http;
mod os;
#[cfg(test)]
mod properties;
pub mod provider;
pub mod seal;
pub mod simulator;
pub mod spool;
pub mod store;
