//! The store, each test on both engines.

mod callers;
mod connections;
mod consents;
mod events;
mod grants;
mod reencryption;
mod retention;
mod revocations;
mod transitions;

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use token_broker::domain::grant::{GrantSlot, PendingGrant, SealedGrant};
use token_broker::{
    clock::Clock,
    domain::connection::{Account, Connection, ConnectionId, GrantType, State, Vars},
    seal::Sealed,
    store::{EngineKind, SchemaStatus, Store, StoreError},
};

use crate::support::database::{TestDatabase, apply, on_both_engines};

/// A connection with every field in use, in the state of one that refreshes.
fn connection(db: &TestDatabase, name: &str) -> Connection {
    Connection {
        id: ConnectionId::new(),
        name: name.parse().unwrap(),
        client: "avito".parse().unwrap(),
        grant_type: GrantType::AuthorizationCode,
        scopes: vec!["messenger:read".to_owned(), "user:read".to_owned()],
        state: State::Active,
        reason: None,
        account: None,
        expected_account: Some("1234".to_owned()),
        vars: Vars::from([("region".to_owned(), "eu".to_owned())]),
        created_at: db.clock.now(),
        refresh_at: Some(db.clock.now()),
        failures: 0,
        last_error: None,
    }
}

/// A connection that the store holds.
async fn stored(db: &TestDatabase, name: &str) -> Connection {
    let connection = connection(db, name);
    db.store.create(&connection).await.unwrap();
    connection
}

fn grant(db: &TestDatabase, generation: i64) -> SealedGrant {
    SealedGrant {
        slot: GrantSlot::Live { generation },
        access: Sealed::from_stored(format!("v1.k1.sealed-access-{generation}")),
        refresh: Some(Sealed::from_stored(format!("v1.k1.sealed-refresh-{generation}"))),
        scopes: vec!["messenger:read".to_owned()],
        received_at: db.clock.now(),
        expires_at: db.clock.now() + Duration::from_hours(1),
        origin: None,
    }
}

fn pending(db: &TestDatabase, mark: &str) -> PendingGrant {
    let grant = SealedGrant {
        slot: GrantSlot::Pending,
        access: Sealed::from_stored(format!("v1.k1.sealed-pending-access-{mark}")),
        refresh: Some(Sealed::from_stored(format!("v1.k1.sealed-pending-refresh-{mark}"))),
        scopes: Vec::new(),
        ..grant(db, 0)
    };
    PendingGrant {
        grant,
        account: Some(account()),
        vars: Vars::new(),
        token_url: Some("https://provider.example/token".to_owned()),
    }
}

fn account() -> Account {
    Account {
        id: "1234".to_owned(),
        name: Some("Flower shop".to_owned()),
        aliases: vec!["flowers".to_owned()],
    }
}

#[apply(on_both_engines!)]
async fn a_fresh_database_is_migrated_once(db: TestDatabase) {
    assert_eq!(db.store.schema_status().await.unwrap(), SchemaStatus::Current);
    db.store.ping().await.unwrap();
    db.store.migrate().await.unwrap();
    let expected = if format!("{:?}", db.store).contains("Sqlite") {
        EngineKind::Sqlite
    } else {
        EngineKind::Postgres
    };
    assert_eq!(db.store.engine(), expected);

    db.execute("DROP TABLE _sqlx_migrations").await;
    assert_eq!(db.store.schema_status().await.unwrap(), SchemaStatus::Fresh);
    // The tables are there, so the migration fails: it says so, and leaves no half of itself.
    let error = db.store.migrate().await.unwrap_err();
    assert!(matches!(error, StoreError::Migration(_)), "{error:?}");
    assert_eq!(db.store.schema_status().await.unwrap(), SchemaStatus::Fresh);
}

#[apply(on_both_engines!)]
async fn an_older_schema_is_told(db: TestDatabase) {
    db.execute("UPDATE _sqlx_migrations SET version = -version").await;
    let status = db.store.schema_status().await.unwrap();
    assert!(matches!(status, SchemaStatus::Older { found: -1, .. }), "{status:?}");
}

#[apply(on_both_engines!)]
async fn a_newer_schema_is_refused(db: TestDatabase) {
    db.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'from the future', TRUE, '', 0)",
    )
    .await;
    let status = db.store.schema_status().await.unwrap();
    assert!(matches!(status, SchemaStatus::Newer { found: 99, .. }), "{status:?}");
    let error = db.store.migrate().await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error:?}");
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[apply(on_both_engines!)]
async fn the_schema_of_an_earlier_build_is_refused(db: TestDatabase) {
    // The first migration had this number in all builds, and another text.
    db.execute("UPDATE _sqlx_migrations SET checksum = 'another text' WHERE version = 1").await;
    assert_eq!(db.store.schema_status().await.unwrap(), SchemaStatus::EarlierBuild);
    let error = db.store.migrate().await.unwrap_err();
    assert!(matches!(error, StoreError::EarlierBuild), "{error:?}");
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[apply(on_both_engines!)]
async fn replicas_that_start_together_migrate_in_turn(db: TestDatabase) {
    db.execute(
        "DROP VIEW IF EXISTS connections_readable; DROP VIEW clock; DROP TABLE consents;
         DROP TABLE code_exchanges;
         DROP TABLE consent_links; DROP TABLE key_exchanges; DROP TABLE pending_grants; DROP TABLE spent_tokens;
         DROP TABLE fallback_grants; DROP TABLE grants; DROP TABLE connections; DROP TABLE deleted_connections;
         DROP TABLE services; DROP TABLE operators; DROP TABLE keys; DROP TABLE meta;
         DROP TABLE identity; DROP TABLE events; DROP TABLE events_head; DROP TABLE freezes;
         DROP TABLE _sqlx_migrations",
    )
    .await;
    let (one, two) = (db.store.clone(), db.store.clone());
    let (one, two) = tokio::join!(one.migrate(), two.migrate());
    one.unwrap();
    two.unwrap();
    assert_eq!(db.store.schema_status().await.unwrap(), SchemaStatus::Current);
}

#[apply(on_both_engines!)]
async fn meta_keeps_the_first_value(db: TestDatabase) {
    assert_eq!(db.store.meta("id").await.unwrap(), None);
    assert_eq!(db.store.put_meta_if_absent("id", "first").await.unwrap(), "first");
    assert_eq!(db.store.put_meta_if_absent("id", "second").await.unwrap(), "first");
    assert_eq!(db.store.meta("id").await.unwrap().as_deref(), Some("first"));
}

#[apply(on_both_engines!)]
async fn a_closed_store_is_unreachable(db: TestDatabase) {
    db.store.close().await;
    let error = db.store.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
}

#[apply(on_both_engines!)]
async fn the_database_clock_follows_the_tests(db: TestDatabase) {
    let before = db.store.changed_since(Timestamp::UNIX_EPOCH).await.unwrap().mark;
    db.clock.advance(Duration::from_hours(1));
    let after = db.store.changed_since(Timestamp::UNIX_EPOCH).await.unwrap().mark;
    let passed = Duration::try_from(after.duration_since(before)).unwrap();
    assert!((Duration::from_hours(1)..Duration::from_mins(61)).contains(&passed), "{passed:?}");
    let lag = Duration::try_from(db.clock.now().duration_since(after)).unwrap();
    assert!(lag < Duration::from_mins(1), "the engine's clock is not the machine's: {lag:?}");
}

#[tokio::test]
async fn a_locked_row_on_postgres_does_not_hold_up_the_store() {
    let db = TestDatabase::postgres().await;
    let id = stored(&db, "avito-main").await.id;
    let held = db.hold("UPDATE connections SET failures = 1").await;
    let started = db.clock.stopwatch();
    let error = db.store.suspect_reports(id).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the lock is given up before the statement"
    );
    drop(held);
}

#[tokio::test]
async fn people_can_read_times_on_postgres() {
    let db = TestDatabase::postgres().await;
    stored(&db, "avito-main").await;
    db.execute(
        "DO $$ BEGIN ASSERT (SELECT now() - created_at < interval '1 minute'
             FROM connections_readable WHERE name = 'avito-main' AND generation = 0); END $$",
    )
    .await;
}

#[tokio::test]
async fn a_new_sqlite_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.db");
    let url = SecretString::from(path.to_str().unwrap());
    let store = Store::connect(&url, Clock::system()).await.unwrap();
    store.migrate().await.unwrap();
    let mut files = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.path().display());
        files += 1;
    }
    assert_eq!(files, 3, "the database, its log and the index of the log");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_told_in_one_line_without_the_password() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let connect = async |url: &str| {
        let error = Store::connect(&SecretString::from(url), Clock::system()).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("pass-word") && !error.to_string().contains('\n'), "{text}");
        error
    };
    let error = connect(&format!("postgres://user:pass-word@{closed}/broker")).await;
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
    let error = connect("sqlite:/nowhere/at/all/broker.db").await;
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
    for url in [
        "",
        "sqlite:",
        "sqlite::memory:",
        "sqlite:a.db?mode=ro",
        "mysql://user:pass-word@host/x",
        "postgres://user:pass-word@host:port",
    ] {
        let error = connect(url).await;
        assert!(matches!(error, StoreError::InvalidUrl), "{url}: {error:?}");
    }
}
