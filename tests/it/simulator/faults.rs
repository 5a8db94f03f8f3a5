use std::time::Duration;

use serde_json::{Value, json};
use token_broker::simulator::{Endpoint, Fault, Simulated};

use super::{Answer, World, read, send};

const CLIENT: [(&str, &str); 3] = [
    ("grant_type", "client_credentials"),
    ("client_id", "simulated-avito-client"),
    ("client_secret", "simulated-avito-secret"),
];

async fn world() -> World {
    World::new(Simulated::Avito, |_| ()).await
}

impl World {
    async fn spoiled(&self, fault: &Fault) -> reqwest::Result<Answer> {
        self.simulator().fault(fault, 1);
        read(self.post("127.0.0.1", "/token").form(&CLIENT).send().await?).await
    }

    fn issued(&self) -> usize {
        self.simulator().oracle().known.len()
    }
}

#[tokio::test]
async fn an_answer_in_place_of_the_true_one_hides_whether_a_token_was_issued() {
    let world = world().await;
    for (processed, issued) in [(false, 0), (true, 4)] {
        let html = world.spoiled(&Fault::Html { processed }).await.unwrap();
        assert_eq!((html.status, html.content_type.as_str()), (200, "text/html; charset=utf-8"));
        let empty = world.spoiled(&Fault::Empty { processed }).await.unwrap();
        assert_eq!((empty.status, empty.text.as_str()), (200, ""));
        let error = world.spoiled(&Fault::ErrorInOk { processed }).await.unwrap();
        assert_eq!((error.status, &error.json()["error"]), (200, &json!("server_error")));
        let failure = world.spoiled(&Fault::ServerError { processed }).await.unwrap();
        assert_eq!(failure.status, 500);
        assert_eq!(world.issued(), issued);
    }
    assert_eq!(world.simulator().oracle().requests[&Endpoint::Token], 8);
}

#[tokio::test]
async fn a_dropped_connection_gives_no_byte_of_answer() {
    let world = world().await;
    for (processed, issued) in [(false, 0), (true, 1)] {
        assert!(world.spoiled(&Fault::Drop { processed }).await.is_err());
        assert_eq!(world.issued(), issued);
    }
}

#[tokio::test]
async fn an_answer_can_be_cut_in_its_json_or_in_its_transfer() {
    let world = world().await;
    let cut = world.spoiled(&Fault::CutJson).await.unwrap();
    assert!(cut.text.starts_with('{') && serde_json::from_str::<Value>(&cut.text).is_err());

    world.simulator().fault(&Fault::CutBody, 1);
    let mut cut = world.post("127.0.0.1", "/token").form(&CLIENT).send().await.unwrap();
    assert_eq!(cut.status(), 200);
    assert!(cut.chunk().await.unwrap().is_some_and(|part| part.starts_with(b"{")));
    assert!(cut.chunk().await.is_err());
    assert_eq!(world.issued(), 2);
}

#[tokio::test]
async fn single_fields_of_the_answer_can_be_wrong() {
    let world = world().await;
    let answer = world.spoiled(&Fault::NoAccessToken).await.unwrap().json();
    assert_eq!(answer, json!({"expires_in": 86_400, "token_type": "Bearer"}));
    for value in [json!("86400"), json!(1.5), json!(-1), json!(1e300), json!(null)] {
        let fault = Fault::ExpiresIn { value: value.clone() };
        let answer = world.spoiled(&fault).await.unwrap().json();
        assert_eq!(answer["expires_in"], value);
        assert!(answer["access_token"].is_string());
    }
}

#[tokio::test]
async fn a_slow_answer_is_late_although_the_token_is_issued() {
    let world = world().await;
    world.simulator().fault(&Fault::Slow { milliseconds: 60_000 }, 1);
    let request = world.post("127.0.0.1", "/token").form(&CLIENT);
    let late = request.timeout(Duration::from_millis(200)).send().await;
    assert!(late.is_err_and(|error| error.is_timeout()));
    assert_eq!(world.issued(), 1);
}

#[tokio::test]
async fn oracle_clock_and_faults_are_there_over_http_on_every_host() {
    let world = world().await;
    let order = json!({"fault": {"kind": "expires_in", "value": "soon"}, "times": 2});
    for host in ["localhost", "127.0.0.1", "anything.example"] {
        let ordered = send(world.post(host, "/_simulator/faults").json(&order)).await;
        assert_eq!(ordered.status, 204);
    }
    let advance = json!({"advance_seconds": 3_600});
    let before = world.simulator().oracle().now;
    assert_eq!(send(world.post("localhost", "/_simulator/clock").json(&advance)).await.status, 204);
    assert!(world.simulator().oracle().now.duration_since(before).as_secs() >= 3_600);

    for expected in [
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!(86_400),
    ] {
        let answer = send(world.post("127.0.0.1", "/token").form(&CLIENT)).await;
        assert_eq!(answer.json()["expires_in"], expected);
    }
    let oracle = world.get("localhost", "/_simulator/oracle").await.json();
    assert_eq!(oracle["requests"], json!({"token": 7}));
    assert_eq!(
        (&oracle["known"][0]["kind"], &oracle["known"][0]["alive"]),
        (&json!("access"), &json!(true))
    );

    for nonsense in [json!({"fault": {"kind": "gremlin"}}), json!({"fault": {"kind": "drop"}})] {
        let refused = send(world.post("localhost", "/_simulator/faults").json(&nonsense)).await;
        assert_eq!(refused.status, 422);
    }
}

#[tokio::test]
async fn a_stopped_simulator_frees_its_port() {
    let world = world().await;
    let port = world.simulator().port();
    world.simulators.shutdown().await;
    tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
}
