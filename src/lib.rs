//! # token-broker
//!
//! Keeps OAuth2 access tokens alive for many accounts at many providers and hands a fresh one to
//! any internal service in one HTTP call. This page is the map: the rooms, then the journeys
//! through them.
//!
//! # Rooms
//!
//! Direction is always down: [`http`] knows [`broker`], [`broker`] knows [`store`] and
//! [`provider`]; those two do not know each other.
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`] | the commands, and their exit codes |
//! | [`app`] | wiring: settings to a running broker, and back down in order |
//! | [`config`] | the settings, checked before anything starts |
//! | [`http`] | the two listeners, what each offers, the pages a person sees |
//! | [`broker`] | the use cases, one method each; memory; the refresh |
//! | [`background`] | the loops: starts what is due, keeps memory in step, revokes, forgets, ships |
//! | [`connection`], [`consent`], [`caller`] | the rules, pure: `now` is an argument |
//! | [`guard`] | whether the database is the one last seen, and no older; pure |
//! | [`freeze`] | what operators have stopped serving, and what that covers; pure |
//! | [`client`] | our registration at a provider |
//! | [`provider`] | profiles as data, requests and answers as pure functions, the way out |
//! | [`throttle`], [`refusals`], [`rotation`] | pure rules of the refresh: when a provider is left alone, what its refusals are worth, which of two grants stays |
//! | [`store`] | SQLite and PostgreSQL behind one SQL text, in whole steps |
//! | [`spool`] | received grants on disk, on their way into the store |
//! | [`audit`] | who had what and when: records in a file, then in the database |
//! | [`seal`], [`secret`] | secrets at rest; random secrets and digests |
//! | [`state_dir`] | this replica's own folder, its lock, its name and its watermark |
//! | [`simulator`] | strict imitations of the built-in providers |
//! | [`clock`], [`slug`], [`words`], [`telemetry`] | time, names, enums as words, logging |
//! | [`replace`], [`core_dump`] | small files that are replaced whole; memory that no crash writes to a disk |
//! | [`failpoint`] | named points at which tests hold a refresh |
//!
//! # Fetch
//!
//! A service asks for `GET /v1/connections/{connection}/token`. The handler checks the key with
//! [`Broker::authenticate`](broker::Broker::authenticate) and calls
//! [`Broker::token`](broker::Broker::token). A live token is answered from memory. Without one, the
//! call starts or joins the refresh of that connection and waits for it; the refresh itself is a
//! task that goes on when the caller hangs up.
//!
//! # Refresh
//!
//! There is one function that refreshes, whoever asks: it claims the connection
//! ([`Store::claim`](store::Store::claim), a row with a lease and the intent, committed), builds
//! the request from the profile ([`provider::request::refresh`]), sends it once
//! ([`Outbound::send`](provider::Outbound::send)), reads the answer leniently
//! ([`provider::read_grant`]), puts the grant on disk ([`spool`]), stores it by compare-and-set on
//! the generation ([`Store::commit_grant`](store::Store::commit_grant)), and only then publishes it
//! to memory. Where another grant was stored first, [`rotation::keep`] decides between the two, and
//! the other one waits in [escrow](store::FallbackGrant). Before all that stands the provider's gate: its
//! pace, and the breakers of [`throttle`]. What a crash leaves behind is taken up at the next start
//! ([`Broker::recover`](broker::Broker::recover)).
//! [`background::run`] comes through the same door with what is due.
//!
//! # Consent
//!
//! [`Broker::make_link`](broker::Broker::make_link) makes a one-time URL. Opening it shows a page
//! and changes nothing; pressing its button calls
//! [`Broker::begin_consent`](broker::Broker::begin_consent), which binds the browser and redirects
//! to the provider. The callback calls
//! [`Broker::finish_consent`](broker::Broker::finish_consent): the attempt is taken from the store
//! in one statement, the code is exchanged once, the account is looked up, and the grant is stored
//! live if the account is the one that was meant, or waiting for
//! [`Broker::confirm`](broker::Broker::confirm).

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
