//! That tables which strangers can make grow have a bound, and are emptied without a look at all of
//! them.

use std::time::Duration;

use token_broker::{
    domain::{
        caller::{Holder, Operator, new_key},
        consent::MAX_LINKS,
        slug::Slug,
    },
    seal::secret::Digest,
    store::{PURGES, Purged},
};

use super::{consents, stored};
use crate::support::database::{TestDatabase, apply, on_both_engines};

/// Twenty thousand rows in each of the tables, all of which end in a day and in no order of time.
async fn fill(db: &TestDatabase) {
    let id = stored(db, "avito-main").await.id;
    consents::started(db, id).await;
    for sql in [
        "INSERT INTO consent_links (id, secret_hash, connection_id, requested_by, scopes,
            own_browser, created_at, expires_at)
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         SELECT 'link-' || i, 'secret-' || i, connection_id, requested_by, scopes, 0, created_at,
            created_at + 86400000 + i * 7919 % 20000 FROM n, consent_links",
        "INSERT INTO consents (state_hash, browser_hash, link_id, connection_id, client,
            redirect_uri, token_url, scopes, link_secret, started_at, expires_at)
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         SELECT 'state-' || i, 'browser', 'link-' || i, connection_id, client, redirect_uri,
            token_url, scopes, link_secret, started_at, started_at + 86400000 + i * 7919 % 20000
         FROM n, consents",
        "INSERT INTO code_exchanges (state_hash, connection_id, ends_at)
         SELECT state_hash, connection_id, expires_at FROM consents",
        "INSERT INTO key_exchanges (id, connection_id, client, account_host, requested_at,
            expires_at)
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         SELECT 'exchange-' || i, connection_id, client, 'host', started_at, started_at + 86400000 + i * 7919 % 20000
         FROM n, consents WHERE client = 'avito' AND browser_hash <> 'browser'",
        "INSERT INTO fallback_grants (id, connection_id, generation, access, refresh, refresh_hash, scopes,
            received_at, expires_at, stored_at)
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         SELECT 'escrow-' || i, connection_id, 1, 'access', 'refresh', 'hash-' || i, '[]',
            started_at, started_at, started_at + i * 7919 % 20000
         FROM n, consents WHERE browser_hash <> 'browser'",
        "INSERT INTO connections (id, name, client, grant_type, scopes, state, vars, created_at,
            failures, changed_at)
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         SELECT '00000000-0000-4000-8000-' || (100000000000 + i), 'name-' || i, client, grant_type, scopes, state, vars,
            created_at + i * 7919 % 20000, 0, 0 FROM n, connections",
        "INSERT INTO pending_grants (connection_id, access, scopes, received_at, expires_at, vars)
         SELECT id, 'access', '[]', created_at, created_at, '{}' FROM connections
         WHERE name LIKE 'name-%'",
        "INSERT INTO spent_tokens (refresh_hash, connection_id, marked_at)
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         SELECT 'spent-' || i, id, created_at + i * 7919 % 20000 FROM n, connections
         WHERE name = 'avito-main'",
        "INSERT INTO deleted_connections (id, name, deleted_at)
         SELECT 'gone-' || name, name, created_at FROM connections WHERE name LIKE 'name-%'",
        "INSERT INTO keys (id, holder, owner, digest, created_at, expires_at)
         SELECT name, 'service', 'billing', name, created_at, created_at + 86400000
         FROM connections WHERE name LIKE 'name-%'",
        "ANALYZE",
    ] {
        db.execute(sql).await;
    }
}

#[apply(on_both_engines!)]
async fn what_has_ended_is_found_by_index(db: TestDatabase) {
    fill(&db).await;
    for sql in PURGES {
        let sql = sql.replace("$1", "0").replace("$2", "0").replace("$3", "50");
        let plan = db.plan(&sql).await;
        assert!(plan.contains("_by_"), "{sql}:\n{plan}");
        for table in [
            "consents",
            "code_exchanges",
            "consent_links",
            "key_exchanges",
            "fallback_grants",
            "pending_grants",
            "spent_tokens",
            "deleted_connections",
            "keys",
        ] {
            for scan in [format!("Seq Scan on {table}"), format!("SCAN {table}")] {
                assert!(!plan.contains(&scan), "{sql}:\n{plan}");
            }
        }
    }
}

#[apply(on_both_engines!)]
async fn a_backlog_is_forgotten_whole(db: TestDatabase) {
    fill(&db).await;
    assert_eq!(db.store.purge_expired().await.unwrap(), Purged::default());
    db.clock.advance(Duration::from_mins(11));
    assert_eq!(
        db.store.purge_expired().await.unwrap(),
        Purged { consents: 1, ..Purged::default() },
        "only the one that was begun lives for ten minutes"
    );
    db.clock.advance(Duration::from_hours(25));
    db.execute(
        "DELETE FROM pending_grants
         WHERE connection_id NOT LIKE '%33' AND connection_id NOT LIKE '%77'",
    )
    .await;
    let waiting = db.number("SELECT count(*) FROM pending_grants").await;
    assert!(waiting > 200, "{waiting}");
    assert_eq!(
        db.store.purge_expired().await.unwrap(),
        Purged {
            consents: 20_000,
            exchanges: 20_000,
            pending_grants: waiting.unsigned_abs(),
            ..Purged::default()
        }
    );
    for table in [
        "SELECT count(*) FROM consents",
        "SELECT count(*) FROM code_exchanges",
        "SELECT count(*) FROM key_exchanges",
        "SELECT count(*) FROM pending_grants",
    ] {
        assert_eq!(db.number(table).await, 0, "{table}");
    }
}

#[apply(on_both_engines!)]
async fn what_is_long_buried_is_forgotten(db: TestDatabase) {
    let id = stored(&db, "avito-main").await.id;
    let [spent, refused] = [b"spent".as_slice(), b"refused"].map(Digest::of_bytes);
    db.store.durable().mark_spent(id, &refused).await.unwrap();
    db.execute("UPDATE grants SET attempt_refresh_hash = (SELECT refresh_hash FROM spent_tokens)")
        .await;
    db.store.durable().mark_spent(id, &spent).await.unwrap();
    let gone = stored(&db, "avito-gone").await.id;
    assert!(db.store.delete_ungranted(gone).await.unwrap());

    db.clock.advance(Duration::from_hours(179 * 24));
    assert_eq!(db.store.purge_expired().await.unwrap(), Purged::default());
    db.clock.advance(Duration::from_hours(2 * 24));
    assert_eq!(
        db.store.purge_expired().await.unwrap(),
        Purged { spent_tokens: 1, deleted: 1, ..Purged::default() }
    );
    assert!(!db.store.is_spent(&spent).await.unwrap());
    assert!(db.store.is_spent(&refused).await.unwrap(), "it is what would be presented again");
    assert!(!db.store.was_deleted("avito-gone").await.unwrap());
}

#[apply(on_both_engines!)]
async fn a_key_that_ended_long_ago_is_forgotten(db: TestDatabase) {
    let name: Slug = "alice".parse().unwrap();
    let now = db.clock.now();
    let operator = Operator { name: name.clone(), created_at: now };
    let key = |end| new_key(Holder::Operator, name.clone(), now, end).1;
    db.store.create_operator(&operator, &key(None)).await.unwrap();
    assert!(db.store.add_key(&key(Some(now + Duration::from_hours(24))), 2).await.unwrap());
    db.clock.advance(Duration::from_hours(90 * 24));
    assert_eq!(db.store.purge_expired().await.unwrap(), Purged::default());
    db.clock.advance(Duration::from_hours(25));
    assert_eq!(db.store.purge_expired().await.unwrap(), Purged { keys: 1, ..Purged::default() });
    assert_eq!(db.store.keys().await.unwrap().len(), 1, "a key without an end is kept");
}

#[apply(on_both_engines!)]
async fn links_and_attempts_have_a_bound(db: TestDatabase) {
    assert!(!db.store.has_room_for_links(0).await.unwrap());
    assert!(db.store.has_room_for_links(1).await.unwrap());
    consents::started(&db, stored(&db, "avito-main").await.id).await;
    assert!(!db.store.has_room_for_links(1).await.unwrap());
    assert!(db.store.has_room_for_links(2).await.unwrap());
    assert!(db.store.has_room_for_links(MAX_LINKS).await.unwrap());
    assert!(!db.store.has_room_for_consents(1).await.unwrap());
    assert!(db.store.has_room_for_consents(2).await.unwrap());
}
