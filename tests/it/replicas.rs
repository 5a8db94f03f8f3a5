//! Several brokers on one PostgreSQL, straight and through a pooler in transaction mode.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all, stream};
use reqwest::StatusCode;
use secrecy::SecretString;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use token_broker::{
    app::background::sync_cache,
    clock::Clock,
    seal::secret,
    simulator::{Fault, Kind, Simulated},
    store::{SchemaStatus, Store},
};
use tokio::task::JoinSet;

use crate::support::{
    broker::{Replica, TestBroker},
    database::TestDatabase,
    wait::until,
};

/// Long enough for no tick to come twice in a test.
const NO_TICK: Duration = Duration::from_hours(1);

/// The one number that a statement gives, without preparing it.
async fn number(session: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::raw_sql(sql).fetch_one(session).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_journey_goes_through_a_pooler() {
    let mut broker = TestBroker::start(TestDatabase::behind_pooler().await).await;
    broker.create("avito-own", "avito").await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    for name in ["avito-own", "amocrm-shop"] {
        assert_eq!(broker.token(name).await.json()["generation"], 1);
    }
    broker.advance(Duration::from_hours(24)).await;
    assert_eq!(broker.refresh_due().await, 2);
    broker.restart(|_| {}).await;
    for name in ["avito-own", "amocrm-shop"] {
        let token = broker.token(name).await;
        assert_eq!((token.status, &token.json()["generation"]), (StatusCode::OK, &json!(2)));
    }
    broker.broker().purge().await.unwrap();
    let gone = broker.delete("avito-own").await;
    assert_eq!(gone.status, StatusCode::OK, "{gone:?}");
    assert_eq!(broker.token("avito-own").await.status, StatusCode::GONE);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_behind_a_pooler_refresh_each_due_connection_once() {
    let name = |number| format!("admitad-{number}");
    let broker = TestBroker::start(TestDatabase::behind_pooler().await).await;
    let create = async |number| drop(broker.create(&name(number), "admitad").await);
    stream::iter(0..200).for_each_concurrent(8, create).await;
    let replica = broker.replica().await;
    broker.advance(Duration::from_hours(24 * 8)).await;
    let ours = async { while broker.refresh_due().await > 0 {} };
    let theirs = async { while replica.refresh_due().await > 0 {} };
    tokio::join!(ours, theirs);
    assert_eq!(broker.presented(Simulated::Admitad, Kind::Refresh), (200, 1));
    replica.broker().sync().await.unwrap();
    for number in 0..200 {
        let token = replica.token(&name(number)).await;
        assert_eq!(token.json()["generation"], 2, "{token:?}");
    }
    replica.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_migrate_in_turn() {
    for database in [TestDatabase::postgres().await, TestDatabase::behind_pooler().await] {
        database
            .execute(
                "DO $$ DECLARE name text := current_schema(); BEGIN
                     EXECUTE format('DROP SCHEMA %I CASCADE', name);
                     EXECUTE format('CREATE SCHEMA %I', name);
                 END $$",
            )
            .await;
        let migrating = (0..6).map(async |_| {
            let store = Store::connect(&database.url, Clock::system()).await.unwrap();
            store.migrate().await.unwrap();
            assert_eq!(store.schema_status().await.unwrap(), SchemaStatus::Current);
        });
        join_all(migrating).await;
        leaves_nothing_behind(&database).await;
    }
}

/// What outlives a transaction on a pooler's server meets the next one who comes there.
async fn leaves_nothing_behind(database: &TestDatabase) {
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let mut session = database.session().await;
        sqlx::raw_sql("BEGIN").execute(&mut session).await.unwrap();
        let named = "SELECT count(*) FROM pg_prepared_statements";
        assert_eq!(number(&mut session, named).await, 0);
        sessions.push(session);
    }
    // Other tests migrate as well, but not for ever.
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    until("no lock is left", async || number(&mut sessions[0], held).await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_on_one_replica_is_hinted_to_the_others() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let replica = broker.replica().await;
    let story = async {
        // Of the first change the look at the start may know; of the others it cannot.
        for generation in 2..5 {
            refresh(&broker).await;
            sees(&replica, generation).await;
        }
        // A key is a change, too.
        let key = broker.service("late", json!(["*"]), json!(["token"])).await;
        until("the key is known", async || {
            replica.token_for("amocrm-shop", &key).await.status == StatusCode::OK
        })
        .await;
    };
    Box::pin(beside_keeping_in_step(&replica, NO_TICK, story)).await;
    replica.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hints_polling_finds_every_change() {
    let mute = TestDatabase::postgres().await;
    mute.execute(
        "ALTER TABLE connections DISABLE TRIGGER ALL; ALTER TABLE keys DISABLE TRIGGER ALL",
    )
    .await;
    for database in [mute, TestDatabase::behind_pooler().await] {
        let broker = TestBroker::start(database).await;
        broker.connect("amocrm-shop", Simulated::Amocrm).await;
        let replica = broker.replica().await;
        let story = async {
            for generation in 2..5 {
                refresh(&broker).await;
                sees(&replica, generation).await;
            }
        };
        Box::pin(beside_keeping_in_step(&replica, Duration::from_millis(200), story)).await;
        replica.stop().await;
        broker.stop().await;
    }
}

async fn refresh(broker: &TestBroker) {
    // On a busy machine the few connections behind a pooler may be taken for longer than a step waits.
    until("it is refreshed", async || broker.refresh("amocrm-shop").await.status == StatusCode::OK)
        .await;
}

async fn sees(replica: &Replica, generation: i64) {
    until("the replica sees the new grant", async || {
        replica.token("amocrm-shop").await.json()["generation"].as_i64() >= Some(generation)
    })
    .await;
}

async fn beside_keeping_in_step(
    replica: &Replica,
    tick: Duration,
    story: impl Future<Output = ()>,
) {
    tokio::select! {
        () = sync_cache(replica.broker(), tick) => {}
        () = story => {}
    }
}

/// How many sessions wait for what this one holds.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_gets_through_when_all_other_connections_are_busy() {
    const STEPS: usize = 60;
    let database = TestDatabase::postgres().await;
    let watcher = database.store.clone();
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    broker.create("avito-own", "avito").await;
    let busy = watcher.record("avito-own").await.unwrap().unwrap().connection.id;
    broker.simulator(Simulated::Amocrm).fault(&Fault::Late, 1);
    let rogue = async {
        sent(&broker, 1).await;
        let sql = "SELECT 1 FROM connections WHERE name = 'avito-own' FOR UPDATE";
        let mut rogue = broker.hold(sql).await;
        let mut steps = JoinSet::new();
        for _ in 0..STEPS {
            let (store, until) = (broker.broker().store().clone(), broker.clock.now());
            steps.spawn(async move { store.defer_refresh(busy, until).await });
        }
        until("they wait", async || number(&mut rogue, WAITING).await > 0).await;
        broker.simulator(Simulated::Amocrm).clear_faults();
        until("the grant is stored", async || {
            watcher.record("amocrm-shop").await.unwrap().unwrap().generation() == 2
        })
        .await;
        let ended = std::iter::from_fn(|| steps.try_join_next()).count();
        assert!(ended < STEPS * 2 / 3, "the grant waited for {ended} steps that came before it");
        steps.join_all().await;
        drop(rogue);
    };
    // What comes after the commit waits for its turn like everything else, and may not get it in time.
    tokio::join!(broker.refresh("amocrm-shop"), rogue);
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (1, 1));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_lock_holds_up_is_not_lost() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    broker.simulator(Simulated::Amocrm).fault(&Fault::Late, 1);
    let rogue = async {
        sent(&broker, 1).await;
        let mut rogue = broker.hold("SELECT 1 FROM connections FOR UPDATE").await;
        broker.simulator(Simulated::Amocrm).clear_faults();
        // It waits, gives up, and comes again.
        for waiting in [1, 0, 1] {
            until("the commit is tried", async || number(&mut rogue, WAITING).await == waiting)
                .await;
        }
    };
    tokio::join!(refresh(&broker), rogue);
    assert_eq!(broker.view("amocrm-shop").await["generation"], 2);
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (1, 1));
    broker.stop().await;
}

/// Waits until refresh tokens were presented so often.
async fn sent(broker: &TestBroker, times: u64) {
    until("the refresh is sent", async || {
        broker.presented(Simulated::Amocrm, Kind::Refresh).0 == times
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_while_the_server_takes_no_writes() {
    let mut database = TestDatabase::postgres().await;
    let mut admin = database.session().await;
    let role = secret::random_bytes::<8>().map(|byte| format!("{byte:02x}")).concat();
    let role = format!("test_{role}");
    let run = async |admin: &mut PgConnection, sql: String| {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(admin).await.unwrap();
    };
    run(&mut admin, format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{role}'")).await;
    database.url = as_role(&database, &role);
    // As in a failover: the old sessions end, the new ones are told.
    let turn = async |admin: &mut PgConnection, how: &str| {
        run(admin, format!("ALTER ROLE {role} SET default_transaction_read_only = {how}")).await;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename";
        run(admin, format!("{end} = '{role}'")).await;
    };
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    turn(&mut admin, "on").await;
    let refused = broker.refresh("amocrm-shop").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    assert_eq!(broker.token("amocrm-shop").await.json()["generation"], 1);
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (0, 0));
    turn(&mut admin, "off").await;
    refresh(&broker).await;
    assert_eq!(broker.presented(Simulated::Amocrm, Kind::Refresh), (1, 1));
    broker.stop().await;
    run(&mut admin, format!("DROP ROLE {role}")).await;
}

fn as_role(database: &TestDatabase, role: &str) -> SecretString {
    let mut url: url::Url = database.plain_url().parse().unwrap();
    url.set_username(role).unwrap();
    url.set_password(Some(role)).unwrap();
    url.to_string().into()
}
