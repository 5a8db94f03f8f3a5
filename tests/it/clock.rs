//! Clocks that are set while the broker runs, or are wrong from the start; and tokens so short-lived
//! that a second counts. The simulators go by the time that truly passes: what they take, lives.

use std::time::Duration;

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::{
    simulator::{Fault, Kind, Simulated, SimulatorSettings},
    store::EngineKind,
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
};

use crate::support::{
    api::Answer,
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
};

const NAME: &str = "avito-own";
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// A broker with one connection, whose tokens live for so many seconds.
async fn start(database: TestDatabase, life: u32) -> TestBroker {
    let mut simulated = SimulatorSettings::default();
    simulated.avito.access_life = life;
    let broker = TestBroker::start_with(database, simulated, "").await;
    broker.create(NAME, "avito").await;
    broker
}

/// Fetches the token and sees that the provider takes it.
async fn lives(broker: &TestBroker) -> Value {
    let answer = broker.token(NAME).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let token = answer.json();
    let used = broker.use_token(&token, "/core/v1/accounts/self").await;
    assert_eq!(used.status, StatusCode::OK, "{token} {used:?}");
    token
}

/// The provider fails once: nothing but the token at hand can be served then.
fn fail_next(broker: &TestBroker) {
    broker.simulator(Simulated::Avito).fault(&Fault::ServerError { processed: false }, 1);
}

async fn refresh(broker: &TestBroker) {
    let answer = broker.refresh(NAME).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

/// How often the provider gave an access token, and the shortest time between two.
fn given(broker: &TestBroker) -> (usize, Duration) {
    let known = broker.simulator(Simulated::Avito).oracle().known;
    let given = known.iter().filter(|known| known.kind == Kind::Access);
    let at: Vec<_> = given.map(|known| known.issued_at).collect();
    let apart = at.windows(2).map(|two| two[1].duration_since(two[0]).unsigned_abs());
    (at.len(), apart.min().unwrap_or(Duration::MAX))
}

/// Sets the database's clock a day back, as a failover to a wrong one does.
async fn set_database_back(broker: &TestBroker) {
    broker
        .execute(match broker.broker().store().engine() {
            EngineKind::Postgres => {
                "CREATE OR REPLACE VIEW clock (now_ms) AS
                SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint - 86400000"
            }
            EngineKind::Sqlite => {
                "DROP VIEW clock; CREATE VIEW clock (now_ms) AS
                SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) - 86400000"
            }
        })
        .await;
}

#[apply(on_both_engines!)]
async fn a_clock_set_back_serves_nothing_that_ended(database: TestDatabase) {
    let broker = start(database, 3_600).await;
    for (by, database_too) in [(-HOUR, false), (-HOUR * 24, false), (-HOUR * 24, true)] {
        refresh(&broker).await;
        fail_next(&broker);
        broker.clock.step_wall(by);
        if database_too {
            set_database_back(&broker).await;
        }
        // Twice, for the first reads the row anew.
        broker.advance(Duration::from_mins(1)).await;
        broker.advance(Duration::from_mins(53)).await;
        let left = lives(&broker).await["expires_in"].as_u64().unwrap();
        assert!((300..=360).contains(&left), "{by} {database_too}: {left}");
        broker.advance(Duration::from_mins(6)).await;
        let ended = broker.token(NAME).await;
        assert_eq!(ended.status, StatusCode::SERVICE_UNAVAILABLE, "{by} {database_too}: {ended:?}");
        broker.advance(Duration::from_mins(5)).await;
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_wall_clock_set_forward_ends_tokens_early_and_once(database: TestDatabase) {
    let broker = start(database, 3_600).await;
    lives(&broker).await;
    broker.clock.step_wall(HOUR * 24);
    for _ in 0..5 {
        assert_eq!(lives(&broker).await["generation"], 2);
        broker.broker().sync().await.unwrap();
        assert_eq!(broker.refresh_due().await, 0);
    }
    let token = lives(&broker).await;
    assert!(token["expires_in"].as_u64().unwrap() > 3_500, "{token}");
    assert_eq!(given(&broker).0, 2);

    // The wall clock is put right: the token ends no later for that.
    broker.clock.step_wall(-HOUR * 24);
    fail_next(&broker);
    broker.advance(Duration::from_hours(1)).await;
    let ended = broker.token(NAME).await;
    assert_eq!(ended.status, StatusCode::SERVICE_UNAVAILABLE, "{ended:?}");
    broker.stop().await;
}

/// Starts the broker anew on a machine whose wall clock is wrong.
async fn restart_elsewhere(broker: &mut TestBroker, wrong_by: SignedDuration) {
    broker.clock = broker.clock.of_another_process();
    broker.clock.step_wall(wrong_by);
    broker.restart(|_| {}).await;
}

#[apply(on_both_engines!)]
async fn a_restart_with_a_slow_clock_goes_by_the_database(database: TestDatabase) {
    let mut broker = start(database, 3_600).await;
    broker.advance(Duration::from_mins(30)).await;
    assert_eq!(broker.health().await["status"], "ok");
    restart_elsewhere(&mut broker, -HOUR).await;
    let token = lives(&broker).await;
    assert!(token["expires_in"].as_u64().unwrap() <= 1_800, "{token}");
    let told = broker.health().await;
    assert_eq!(told["status"], "degraded", "{told}");
    let notes = told["notes"].to_string();
    assert!(notes.contains("the database's clock is 3600 s ahead of this machine's"), "{notes}");

    broker.advance(Duration::from_mins(31)).await;
    for _ in 0..5 {
        broker.refresh_due().await;
        assert_eq!(lives(&broker).await["generation"], 2);
    }
    assert_eq!(given(&broker).0, 2, "what comes is not due at once");
    broker.advance(Duration::from_mins(50)).await;
    assert_eq!(broker.refresh_due().await, 1, "and becomes due when it should");

    broker.clock.step_wall(HOUR);
    broker.broker().sync().await.unwrap();
    lives(&broker).await;
    let told = broker.health().await;
    assert_eq!(told["status"], "ok", "{told}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_restart_with_a_fast_clock_ends_tokens_early_and_once(database: TestDatabase) {
    let mut broker = start(database, 3_600).await;
    restart_elsewhere(&mut broker, HOUR * 2).await;
    let notes = broker.health().await["notes"].to_string();
    assert!(notes.contains("this machine's clock is 7200 s ahead of the database's"), "{notes}");
    for _ in 0..5 {
        assert_eq!(lives(&broker).await["generation"], 2);
        assert_eq!(broker.refresh_due().await, 0);
    }
    assert_eq!(given(&broker).0, 2);

    // Another machine, whose clock is right, is not misled by what this one stored.
    restart_elsewhere(&mut broker, SignedDuration::ZERO).await;
    fail_next(&broker);
    broker.advance(Duration::from_hours(1)).await;
    let ended = broker.token(NAME).await;
    assert_eq!(ended.status, StatusCode::SERVICE_UNAVAILABLE, "{ended:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refresh_that_is_held_up_sends_nothing(database: TestDatabase) {
    let mut broker = start(database, 3_600).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let provider = socket.listen(1).unwrap();
    let address = provider.local_addr().unwrap();
    // The queue is full: whoever dials now is not let in before these are gone.
    let queue = [TcpStream::connect(address).await, TcpStream::connect(address).await];
    broker
        .restart(|settings| {
            let url = format!("http://{address}/token");
            settings["providers"]["profiles"]["avito"]["token"]["url"] = url.into();
        })
        .await;
    let mut arrived = Vec::new();
    let hold_up = async {
        let store = broker.broker().store();
        while store.record(NAME).await.unwrap().unwrap().open_attempts == 0 {}
        broker.clock.advance(Duration::from_secs(5));
        drop(queue);
        loop {
            let (mut stream, _) = provider.accept().await.unwrap();
            stream.read_buf(&mut arrived).await.unwrap();
        }
    };
    let answer = tokio::select! {
        answer = broker.refresh(NAME) => answer,
        () = hold_up => unreachable!(),
    };
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert!(arrived.is_empty(), "{}", String::from_utf8_lossy(&arrived));
    let view = broker.view(NAME).await;
    assert_eq!(view["last_error"]["code"], "send_window_over", "{view}");
    assert_eq!(view["state"], "backing_off", "{view}");
    broker.stop().await;
}

/// Reads a token of such a life so often, with a step of time between; sees that the provider was
/// asked for no more than one per half life.
async fn read_on(broker: &TestBroker, life: Duration, min_ttl: u64, step: Duration) -> Vec<Answer> {
    let path = format!("/v1/connections/{NAME}/token?min_ttl={min_ttl}");
    let (started, before) = (broker.clock.since_boot(), given(broker).0);
    let mut answers = Vec::new();
    for _ in 0..50 {
        for _ in 0..3 {
            answers.push(broker.ask(&broker.service_key, Method::GET, &path, None).await);
        }
        broker.idle().await;
        assert_eq!(broker.refresh_due().await, 0, "a short life is never scheduled");
        broker.advance(step).await;
    }
    let half_lives = broker.clock.since_boot().since(started).as_millis() / (life / 2).as_millis();
    let times = u128::try_from(given(broker).0 - before).unwrap();
    assert!((2..=half_lives + 1).contains(&times), "{times} in {half_lives} half lives");
    answers
}

#[apply(on_both_engines!)]
async fn a_token_of_30_seconds_is_refreshed_once_per_half_life(database: TestDatabase) {
    let broker = start(database, 30).await;
    for min_ttl in [0, 15] {
        let (life, step) = (Duration::from_secs(30), Duration::from_secs(1));
        for answer in read_on(&broker, life, min_ttl, step).await {
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        }
    }
    let (_, apart) = given(&broker);
    assert!(apart >= Duration::from_secs(14), "{apart:?}");

    // It is served while it lives, and not a moment longer.
    refresh(&broker).await;
    fail_next(&broker);
    broker.advance(Duration::from_secs(20)).await;
    lives(&broker).await;
    broker.idle().await;
    assert_eq!(lives(&broker).await["stale"], true, "a refresh has failed");
    fail_next(&broker);
    broker.advance(Duration::from_secs(10)).await;
    let ended = broker.token(NAME).await;
    assert_eq!(ended.status, StatusCode::SERVICE_UNAVAILABLE, "{ended:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_token_of_a_second_never_loops(database: TestDatabase) {
    let broker = start(database, 3_600).await;
    let life = Fault::ExpiresIn { value: json!(1) };
    broker.simulator(Simulated::Avito).fault(&life, 1_000);
    refresh(&broker).await;
    let (life, step) = (Duration::from_secs(1), Duration::from_millis(100));
    let answers = read_on(&broker, life, 0, step).await;
    assert!(answers.iter().any(|answer| answer.status == StatusCode::OK), "{answers:?}");
    broker.stop().await;
}
