//! The wiring: each owner gets what it may touch.

use std::sync::Arc;

use dashmap::DashMap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Broker, Parts,
    access::Access,
    audit::AuditLog,
    cache::Cache,
    clients::Clients,
    clock_skew::ClockSkew,
    connections::Connections,
    consent::{ApiKeys, CodeExchange, Confirmations, ConsentFlow, Consents, Links, PublicUrls},
    deletion::Deletions,
    health::HealthReporter,
    limits::Limits,
    process::Process,
    provider_calls::ProviderCalls,
    recovery::Recovery,
    refresh::{Refresher, SingleFlight, commit::Committer},
    sync::Sync,
    token::TokenReader,
    vault::Vault,
};

/// Puts the broker together.
#[expect(clippy::too_many_lines, reason = "a list of owners")]
pub(super) fn broker(parts: Parts) -> Broker {
    let Parts { store, spool, clock, .. } = parts;
    let process = Arc::new(Process {
        replica: parts.replica,
        clock: clock.clone(),
        failpoints: parts.failpoints.clone(),
        draining: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    let clients = Arc::new(Clients::new(parts.clients));
    let vault = Arc::new(Vault::new(parts.keyring));
    let calls = Arc::new(ProviderCalls::new(parts.outbound, parts.failpoints));
    let limits = Arc::new(Limits::new(&clients, &clock));
    let audit = Arc::new(AuditLog::new(
        parts.trail,
        store.clone(),
        clients.clone(),
        clock.clone(),
        parts.keep_events,
    ));
    let cache = Arc::new(Cache::new(
        store.clone(),
        vault.clone(),
        clients.clone(),
        audit.clone(),
        process.clone(),
    ));
    let access = Arc::new(Access::new(
        store.clone(),
        cache.clone(),
        clients.clone(),
        audit.clone(),
        process.clone(),
    ));
    let committer = Arc::new(Committer::new(
        store.clone(),
        vault.clone(),
        cache.clone(),
        spool.clone(),
        process.clone(),
    ));
    let recovery = Arc::new(Recovery::new(
        store.clone(),
        vault.clone(),
        cache.clone(),
        spool.clone(),
        committer.clone(),
        audit.clone(),
        process.clone(),
        parts.watermark,
    ));
    let refresher = Arc::new(Refresher {
        store: store.clone(),
        vault: vault.clone(),
        cache: cache.clone(),
        clients: clients.clone(),
        limits: limits.clone(),
        calls: calls.clone(),
        committer: committer.clone(),
        recovery: recovery.clone(),
        audit: audit.clone(),
        process: process.clone(),
    });
    let flights = Arc::new(SingleFlight::new(
        refresher,
        store.clone(),
        clients.clone(),
        limits.clone(),
        process.clone(),
    ));
    let tokens = TokenReader {
        store: store.clone(),
        cache: cache.clone(),
        clients: clients.clone(),
        access: access.clone(),
        flights: flights.clone(),
        audit: audit.clone(),
        clock: clock.clone(),
    };
    let connections = Arc::new(Connections {
        store: store.clone(),
        cache: cache.clone(),
        clients: clients.clone(),
        access: access.clone(),
        flights: flights.clone(),
        audit: audit.clone(),
        clock: clock.clone(),
    });
    let deletions = Arc::new(Deletions {
        store: store.clone(),
        vault: vault.clone(),
        cache: cache.clone(),
        clients: clients.clone(),
        limits: limits.clone(),
        calls: calls.clone(),
        spool: spool.clone(),
        audit: audit.clone(),
        process: process.clone(),
        revoking: DashMap::new(),
    });
    let links = Arc::new(Links {
        store: store.clone(),
        access: access.clone(),
        clients: clients.clone(),
        limits: limits.clone(),
        connections: connections.clone(),
        audit: audit.clone(),
        clock: clock.clone(),
        urls: PublicUrls { public: parts.public_url, return_to: parts.return_to },
    });
    let exchange = Arc::new(CodeExchange {
        store: store.clone(),
        vault: vault.clone(),
        cache: cache.clone(),
        calls: calls.clone(),
        committer: committer.clone(),
        recovery: recovery.clone(),
        clock: clock.clone(),
    });
    let consents = Arc::new(ConsentFlow {
        store: store.clone(),
        vault: vault.clone(),
        cache: cache.clone(),
        access: access.clone(),
        clients: clients.clone(),
        limits: limits.clone(),
        links: links.clone(),
        exchange: exchange.clone(),
        audit: audit.clone(),
        process: process.clone(),
    });
    let confirmations = Confirmations {
        store: store.clone(),
        vault: vault.clone(),
        cache: cache.clone(),
        access: access.clone(),
        clients: clients.clone(),
        committer,
        recovery: recovery.clone(),
        connections: connections.clone(),
        audit: audit.clone(),
    };
    let api_keys = Arc::new(ApiKeys {
        store: store.clone(),
        cache: cache.clone(),
        access: access.clone(),
        clients: clients.clone(),
        limits: limits.clone(),
        calls,
        connections: connections.clone(),
        exchange,
        audit: audit.clone(),
        process: process.clone(),
    });
    let clock_skew = Arc::new(ClockSkew::new(clock));
    Broker {
        sync: Sync {
            vault: vault.clone(),
            access: access.clone(),
            cache: cache.clone(),
            recovery,
            clock_skew: clock_skew.clone(),
        },
        health: HealthReporter {
            store: store.clone(),
            vault,
            access: access.clone(),
            cache,
            clients,
            limits,
            audit: audit.clone(),
            clock_skew,
            process: process.clone(),
        },
        store,
        process,
        access,
        audit,
        tokens,
        flights,
        connections,
        deletions,
        consents: Consents { links, flow: consents, confirmations, api_keys },
    }
}
