use std::{io, time::Duration};

use serde_json::{Value, json};
use token_broker::simulator::{Endpoint, Fault, Simulated};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Answer, SimulatedProvider, read, send};

const CLIENT: [(&str, &str); 3] = [
    ("grant_type", "client_credentials"),
    ("client_id", "simulated-avito-client"),
    ("client_secret", "simulated-avito-secret"),
];

/// How long to see whether something still comes that must not come.
const A_MOMENT: Duration = Duration::from_millis(200);
/// How long to wait for what must come.
const AT_MOST: Duration = Duration::from_secs(10);

async fn provider() -> SimulatedProvider {
    SimulatedProvider::new(Simulated::Avito, |_| ()).await
}

impl SimulatedProvider {
    async fn spoiled(&self, fault: &Fault) -> reqwest::Result<Answer> {
        self.simulator().fault(fault, 1);
        read(self.post("127.0.0.1", "/token").form(&CLIENT).send().await?).await
    }

    fn issued(&self) -> usize {
        self.simulator().oracle().known.len()
    }

    /// A spoiled token request on a socket of its own, which hides nothing of what happens to it.
    async fn spoiled_by_hand(&self, fault: &Fault) -> TcpStream {
        self.simulator().fault(fault, 1);
        let form =
            url::form_urlencoded::Serializer::new(String::new()).extend_pairs(CLIENT).finish();
        let mut stream = TcpStream::connect(("127.0.0.1", self.simulator().port())).await.unwrap();
        let head = format!(
            "POST /token HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\
             content-type: application/x-www-form-urlencoded\r\n\r\n",
            form.len()
        );
        stream.write_all((head + &form).as_bytes()).await.unwrap();
        stream
    }

    /// The pieces of a spoiled body, until it ends in an error or nothing more comes.
    async fn spoiled_body(&self, fault: &Fault) -> (Vec<u8>, Ended) {
        self.simulator().fault(fault, 1);
        let request = self.post("127.0.0.1", "/token").form(&CLIENT);
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = Vec::new();
        loop {
            match timeout(A_MOMENT, answer.chunk()).await {
                Ok(Ok(Some(part))) => body.extend(part),
                Ok(Ok(None)) => return (body, Ended::Whole),
                Ok(Err(_)) => return (body, Ended::Cut),
                Err(_) => return (body, Ended::Waiting),
            }
        }
    }
}

/// How the reading of a body ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    Whole,
    Cut,
    Waiting,
}

/// Everything that still comes, until the simulator closes the connection.
async fn rest(mut stream: TcpStream) -> io::Result<String> {
    let mut text = String::new();
    timeout(AT_MOST, stream.read_to_string(&mut text)).await.expect("the connection ends")?;
    Ok(text)
}

#[tokio::test]
async fn an_answer_in_place_of_the_true_one_hides_whether_a_token_was_issued() {
    let provider = provider().await;
    for (processed, issued) in [(false, 0), (true, 4)] {
        let html = provider.spoiled(&Fault::Html { processed }).await.unwrap();
        assert_eq!((html.status, html.content_type.as_str()), (200, "text/html; charset=utf-8"));
        let empty = provider.spoiled(&Fault::Empty { processed }).await.unwrap();
        assert_eq!((empty.status, empty.text.as_str()), (200, ""));
        let error = provider.spoiled(&Fault::ErrorInOk { processed }).await.unwrap();
        assert_eq!((error.status, &error.json()["error"]), (200, &json!("server_error")));
        let failure = provider.spoiled(&Fault::ServerError { processed }).await.unwrap();
        assert_eq!(failure.status, 500);
        assert_eq!(provider.issued(), issued);
    }
    assert_eq!(provider.simulator().oracle().requests[&Endpoint::Token], 8);
}

#[tokio::test]
async fn a_dropped_connection_gives_no_byte_of_answer() {
    let provider = provider().await;
    for (processed, issued) in [(false, 0), (true, 1)] {
        let dropped = provider.spoiled_by_hand(&Fault::Drop { processed }).await;
        assert_eq!(rest(dropped).await.unwrap(), "");
        assert_eq!(provider.issued(), issued);
    }
}

#[tokio::test]
async fn a_reset_connection_gives_no_byte_and_no_orderly_end() {
    let provider = provider().await;
    for (processed, issued) in [(false, 0), (true, 1)] {
        let reset = provider.spoiled_by_hand(&Fault::Reset { processed }).await;
        assert_eq!(rest(reset).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(provider.issued(), issued);
    }
}

#[tokio::test]
async fn a_request_can_be_held_without_a_byte_until_the_client_hangs_up() {
    let provider = provider().await;
    for (processed, issued) in [(false, 0), (true, 1)] {
        let mut held = provider.spoiled_by_hand(&Fault::Hold { processed }).await;
        assert!(timeout(A_MOMENT, held.read_u8()).await.is_err());
        assert_eq!(provider.issued(), issued);
        // The server closes its side only if it let the request go.
        held.shutdown().await.unwrap();
        assert_eq!(rest(held).await.unwrap(), "");
        assert_eq!(provider.issued(), issued);
    }
    assert_eq!(provider.simulator().oracle().requests[&Endpoint::Token], 2);
}

#[tokio::test]
async fn a_held_request_does_not_outlive_the_simulator() {
    let provider = provider().await;
    let held = provider.spoiled_by_hand(&Fault::Hold { processed: false }).await;
    let stalled = provider.spoiled_by_hand(&Fault::Stall { at: 1 }).await;
    stalled.readable().await.unwrap();
    timeout(AT_MOST, provider.simulators.shutdown()).await.unwrap();
    assert_eq!(rest(held).await.unwrap(), "");
    assert!(rest(stalled).await.unwrap().starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_body_can_end_or_stall_after_any_byte() {
    let provider = provider().await;
    let true_length = send(provider.post("127.0.0.1", "/token").form(&CLIENT)).await.text.len();
    for at in [0, 1, 40, true_length, usize::MAX] {
        let (body, ended) = provider.spoiled_body(&Fault::CutBody { at }).await;
        assert_eq!((body.len(), ended), (at.min(true_length), Ended::Cut));
        let (body, ended) = provider.spoiled_body(&Fault::Stall { at }).await;
        assert_eq!((body.len(), ended), (at.min(true_length), Ended::Waiting));
    }
    assert_eq!(provider.issued(), 11);
}

#[tokio::test]
async fn a_stalled_answer_is_let_go_when_the_client_hangs_up() {
    let provider = provider().await;
    let mut stalled = provider.spoiled_by_hand(&Fault::Stall { at: 2 }).await;
    stalled.readable().await.unwrap();
    stalled.shutdown().await.unwrap();
    let answer = rest(stalled).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("{\"") && !answer.contains("access_token"), "{answer}");
}

#[tokio::test]
async fn an_answer_can_be_cut_in_its_json_or_in_its_transfer() {
    let provider = provider().await;
    let cut = provider.spoiled(&Fault::CutJson).await.unwrap();
    assert!(cut.text.starts_with('{') && serde_json::from_str::<Value>(&cut.text).is_err());

    provider.simulator().fault(&Fault::CutBody { at: 20 }, 1);
    let mut cut = provider.post("127.0.0.1", "/token").form(&CLIENT).send().await.unwrap();
    assert_eq!(cut.status(), 200);
    assert!(cut.chunk().await.unwrap().is_some_and(|part| part.starts_with(b"{")));
    assert!(cut.chunk().await.is_err());
    assert_eq!(provider.issued(), 2);
}

#[tokio::test]
async fn single_fields_of_the_answer_can_be_wrong() {
    let provider = provider().await;
    let answer = provider.spoiled(&Fault::NoAccessToken).await.unwrap().json();
    assert_eq!(answer, json!({"expires_in": 86_400, "token_type": "Bearer"}));
    for value in [json!("86400"), json!(1.5), json!(-1), json!(1e300), json!(null)] {
        let fault = Fault::ExpiresIn { value: value.clone() };
        let answer = provider.spoiled(&fault).await.unwrap().json();
        assert_eq!(answer["expires_in"], value);
        assert!(answer["access_token"].is_string());
    }
}

#[tokio::test]
async fn a_slow_answer_is_late_although_the_token_is_issued() {
    let provider = provider().await;
    provider.simulator().fault(&Fault::Slow { milliseconds: 60_000 }, 1);
    let request = provider.post("127.0.0.1", "/token").form(&CLIENT);
    let late = request.timeout(Duration::from_millis(200)).send().await;
    assert!(late.is_err_and(|error| error.is_timeout()));
    assert_eq!(provider.issued(), 1);
}

#[tokio::test]
async fn oracle_clock_and_faults_are_there_over_http_on_every_host() {
    let provider = provider().await;
    let order = json!({"fault": {"kind": "expires_in", "value": "soon"}, "times": 2});
    for host in ["localhost", "127.0.0.1", "anything.example"] {
        let ordered = send(provider.post(host, "/_simulator/faults").json(&order)).await;
        assert_eq!(ordered.status, 204);
    }
    let advance = json!({"advance_seconds": 3_600});
    let before = provider.simulator().oracle().now;
    assert_eq!(
        send(provider.post("localhost", "/_simulator/clock").json(&advance)).await.status,
        204
    );
    assert!(provider.simulator().oracle().now.duration_since(before).as_secs() >= 3_600);

    for expected in [
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!("soon"),
        json!(86_400),
    ] {
        let answer = send(provider.post("127.0.0.1", "/token").form(&CLIENT)).await;
        assert_eq!(answer.json()["expires_in"], expected);
    }
    let oracle = provider.get("localhost", "/_simulator/oracle").await.json();
    assert_eq!(oracle["requests"], json!({"token": 7}));
    assert_eq!(
        (&oracle["known"][0]["kind"], &oracle["known"][0]["alive"]),
        (&json!("access"), &json!(true))
    );

    for (fault, status) in [
        (json!({"kind": "cut_body", "at": 1}), 204),
        (json!({"kind": "hold", "processed": false}), 204),
        (json!({"kind": "reset", "processed": true}), 204),
        (json!({"kind": "stall", "at": 0}), 204),
        (json!({"kind": "cut_body"}), 422),
        (json!({"kind": "drop"}), 422),
        (json!({"kind": "gremlin"}), 422),
        (json!({"kind": "stall", "at": -1}), 422),
    ] {
        let order = json!({"fault": fault});
        let answer = send(provider.post("localhost", "/_simulator/faults").json(&order)).await;
        assert_eq!(answer.status, status, "{fault}");
    }
}

#[tokio::test]
async fn a_stopped_simulator_frees_its_port() {
    let provider = provider().await;
    let port = provider.simulator().port();
    provider.simulators.shutdown().await;
    tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
}
