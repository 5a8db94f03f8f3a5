//! The audit trail: every token that leaves has its record, and none leaves without.

use std::{collections::BTreeMap, fs, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;
use token_broker::{
    audit::{Actor, AuditEvent, EventKind},
    simulator::{Fault, Simulated, SimulatorSettings},
};

use crate::support::{
    api::Answer,
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    deployment::Deployment,
    http::client,
    person::Person,
};

const TOKEN: &str = "/v1/connections/avito-own/token";

/// All that was recorded until now, read page by page.
async fn events(broker: &TestBroker) -> Vec<Value> {
    broker.broker().ship_events().await.unwrap();
    page_through(broker).await
}

async fn page_through(broker: &TestBroker) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = page(broker, &format!("?after={after}&limit=7")).await.json();
        let events = page["events"].as_array().unwrap();
        after = page["next_after"].as_i64().unwrap();
        if events.is_empty() {
            return all;
        }
        all.extend(events.iter().cloned());
    }
}

async fn page(broker: &TestBroker, query: &str) -> Answer {
    broker.operator(Method::GET, &format!("/v1/events{query}"), None).await
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

async fn oauth2(broker: &TestBroker) -> Answer {
    let form = [("grant_type", "client_credentials"), ("scope", "avito-own")];
    let url = format!("{}/oauth2/token", broker.internal_url);
    let answer = broker.http.post(url).basic_auth("reader", Some(&broker.service_key)).form(&form);
    Answer::read(answer.send().await.unwrap()).await
}

async fn rejected(broker: &TestBroker) -> Answer {
    let body = json!({ "fingerprint": "0000000000000000" });
    broker.ask(&broker.service_key, Method::POST, &format!("{TOKEN}/rejected"), Some(body)).await
}

#[apply(on_both_engines!)]
async fn every_token_handed_out_has_one_record(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    broker.create("admitad-own", "admitad").await;
    let other = broker.service("other", json!(["admitad-*"]), json!(["token"])).await;
    let mut handed_out: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    let mut count = |actor: &str, connection: &str, token: &Answer| {
        assert_eq!(token.status, StatusCode::OK, "{token:?}");
        let fingerprint = token.json()["fingerprint"].as_str().unwrap_or_default().to_owned();
        *handed_out.entry((actor.to_owned(), connection.to_owned(), fingerprint)).or_default() += 1;
    };
    for token in join_all((0..50).map(|_| broker.token("avito-own"))).await {
        count("service reader", "avito-own", &token);
    }
    let refreshed = broker.refresh("avito-own").await;
    assert_eq!(refreshed.status, StatusCode::OK);
    for _ in 0..3 {
        count("service reader", "avito-own", &broker.token("avito-own").await);
        count("service reader", "avito-own", &rejected(&broker).await);
        let path = "/v1/connections/admitad-own/token";
        count("service other", "admitad-own", &broker.ask(&other, Method::GET, path, None).await);
    }
    // RFC 6749 has no fingerprint; it is the same token.
    let fingerprint = broker.token("avito-own").await;
    count("service reader", "avito-own", &fingerprint);
    let token = oauth2(&broker).await;
    assert_eq!(token.json()["access_token"], fingerprint.json()["access_token"]);
    count("service reader", "avito-own", &fingerprint);
    // Nothing leaves, and nothing is recorded.
    for (key, connection) in
        [(&other, "avito-own"), (&broker.service_key, "nowhere"), (&"x".to_owned(), "avito-own")]
    {
        let path = format!("/v1/connections/{connection}/token");
        assert_ne!(broker.ask(key, Method::GET, &path, None).await.status, StatusCode::OK);
    }

    let events = events(&broker).await;
    let mut recorded = BTreeMap::new();
    for event in of_kind(&events, "token_issued") {
        assert_eq!(event["peer"], "127.0.0.1", "{event}");
        let connection = event["connection"].as_str().unwrap();
        assert_eq!(event["provider"], connection.split('-').next().unwrap());
        assert!(event["generation"].as_i64() > Some(0) && event["connection_id"].is_string());
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let which = (text("actor"), connection.to_owned(), text("fingerprint"));
        *recorded.entry(which).or_default() += 1;
    }
    assert_eq!(recorded, handed_out);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_is_done_is_on_record(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    assert_eq!(broker.refresh("amocrm-shop").await.status, StatusCode::OK);
    broker.simulator(Simulated::Amocrm).fault(&Fault::ServerError { processed: false }, 1);
    assert_ne!(broker.refresh("amocrm-shop").await.status, StatusCode::OK);
    // An account that nobody expected is confirmed.
    broker.consent("avito-shop", "avito", json!({})).await;
    let account = json!({ "account": broker.account(Simulated::Avito) });
    let path = "/v1/connections/avito-shop/confirm";
    assert_eq!(broker.operator(Method::POST, path, Some(account)).await.status, StatusCode::OK);
    broker.service("billing", json!(["*"]), json!(["token"])).await;
    let made = broker.operator(Method::POST, "/v1/services/billing/keys", None).await.json();
    let id = made["keys"][1]["id"].as_str().unwrap().to_owned();
    broker.operator(Method::DELETE, &format!("/v1/services/billing/keys/{id}"), None).await;
    broker.operator(Method::DELETE, "/v1/services/billing", None).await;
    broker.delete("avito-shop").await;

    let events = events(&broker).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| {
            let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
            let detail = text("detail");
            // Ids are not known beforehand.
            let detail = if detail == format!("service billing, key {id}") {
                "service billing, second key".to_owned()
            } else {
                detail.split(" 01").next().unwrap().split(", key").next().unwrap().to_owned()
            };
            [text("kind"), text("actor"), text("peer"), text("connection"), detail].join(" | ")
        })
        .collect();
    let expected = [
        "configuration | broker | - | - | first",
        "operator_made | command line | - | - | operator tester",
        "service_made | operator tester | 127.0.0.1 | - | service reader",
        "connection_made | operator tester | 127.0.0.1 | amocrm-shop | -",
        "link_made | operator tester | 127.0.0.1 | amocrm-shop | link",
        "consent_begun | browser | 127.0.0.1 | amocrm-shop | link",
        "consent_finished | browser | 127.0.0.1 | amocrm-shop | connected",
        "refresh_asked | operator tester | 127.0.0.1 | amocrm-shop | -",
        "refresh_granted | broker | - | amocrm-shop | operator",
        "refresh_asked | operator tester | 127.0.0.1 | amocrm-shop | -",
        "refresh_failed | broker | - | amocrm-shop | ambiguous, http_500, uncertain",
        "connection_made | operator tester | 127.0.0.1 | avito-shop | -",
        "link_made | operator tester | 127.0.0.1 | avito-shop | link",
        "consent_begun | browser | 127.0.0.1 | avito-shop | link",
        "consent_finished | browser | 127.0.0.1 | avito-shop | pending_confirm",
        "account_confirmed | operator tester | 127.0.0.1 | avito-shop | -",
        "service_made | operator tester | 127.0.0.1 | - | service billing",
        "key_made | operator tester | 127.0.0.1 | - | service billing, second key",
        "key_deleted | operator tester | 127.0.0.1 | - | service billing, second key",
        "service_deleted | operator tester | 127.0.0.1 | - | service billing",
        "connection_deleted | operator tester | 127.0.0.1 | avito-shop | manual",
    ];
    assert_eq!(told, expected, "{told:#?}");
    let grants: Vec<_> = events.iter().filter(|event| event["fingerprint"].is_string()).collect();
    let grants: Vec<_> = grants.iter().map(|event| &event["generation"]).collect();
    assert_eq!(grants, [&Value::Null, &json!(1), &json!(2), &json!(1)], "and the configuration");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_refused_consent_is_on_record_with_its_reason(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let expected = json!({ "expected_account": "somebody-else" });
    let link = broker.link("avito-shop", "avito", expected).await;
    let (mut first, mut second) = (Person::new(&broker), Person::new(&broker));
    let provider = first.start(&link).await;
    assert_eq!(second.press(&link).await.status, StatusCode::GONE);
    let callback = first.decide(&provider, "allow").await;
    // Another browser brings the callback, then one with a cookie of its own.
    assert_eq!(second.get(&callback).await.status, StatusCode::BAD_REQUEST);
    let other = broker.link("amocrm-shop", "amocrm", json!({})).await;
    second.start(&other).await;
    assert_eq!(second.get(&callback).await.status, StatusCode::BAD_REQUEST);
    // The right one does, and it was another account; the second time nobody knows it.
    for status in [StatusCode::SEE_OTHER, StatusCode::BAD_REQUEST] {
        assert_eq!(first.get(&callback).await.status, status);
    }
    for path in ["/callback/avito", "/callback/nobody", "/callback/amocrm?from_exchange=1&code=x"] {
        let url = format!("{}{path}", broker.public_url);
        assert_eq!(first.get(&url).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(first.press(&link.replace("/connect/", "/connect/x")).await.status, 410);
    first.consent(&link, "deny").await;
    // From another site, one parameter twice, and while the connection is frozen.
    let crossed = [("sec-fetch-site", "cross-site")];
    let crossed = first.send(Method::POST, &link, &crossed, None).await;
    assert_eq!(crossed.status, StatusCode::FORBIDDEN);
    let provider = first.start(&link).await;
    let callback = first.decide(&provider, "allow").await;
    assert_eq!(first.get(&format!("{callback}&code=b")).await.status, StatusCode::BAD_REQUEST);
    let freeze = json!({ "kind": "connection", "name": "avito-shop", "reason": "a leaked key" });
    broker.operator(Method::POST, "/v1/freezes", Some(freeze)).await;
    assert_eq!(first.press(&link).await.status, StatusCode::CONFLICT);
    assert_eq!(first.get(&callback).await.status, StatusCode::SEE_OTHER);

    let events = events(&broker).await;
    let told: Vec<_> = events
        .iter()
        .filter(|event| {
            ["consent_refused", "consent_denied", "account_mismatch"]
                .contains(&event["kind"].as_str().unwrap())
        })
        .map(|event| {
            assert_eq!((&event["actor"], &event["peer"]), (&json!("browser"), &json!("127.0.0.1")));
            let detail = event["detail"].as_str().unwrap().split(", link").next().unwrap();
            let connection = event["connection"].as_str().unwrap_or("-");
            format!("{} {connection} {detail}", event["kind"].as_str().unwrap())
        })
        .collect();
    let expected = [
        "consent_refused avito-shop other browser",
        "consent_refused avito-shop other browser or client, or late",
        "consent_refused avito-shop other browser or client, or late",
        "account_mismatch avito-shop wrong_account",
        "consent_refused - unknown state",
        "consent_refused - no state",
        "consent_refused - unknown client",
        "consent_refused - no API-key exchange",
        "consent_denied avito-shop denied",
        "consent_refused - pressed on another site",
        "consent_refused - a parameter that comes twice",
        "consent_refused avito-shop frozen",
        "consent_refused avito-shop frozen",
    ];
    assert_eq!(told, expected, "{told:#?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn nothing_secret_is_on_record(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let expected = json!({ "expected_account": broker.account(Simulated::Divar) });
    let link = broker.link("divar-shop", "divar", expected).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    person.get(&callback).await;
    let first = broker.token("divar-shop").await.json();
    broker.refresh("divar-shop").await;
    let second = broker.token("divar-shop").await.json();
    // What a provider says in an error, and what a stranger sends, is no line of its own either.
    let forged = "%0a{\"kind\":\"forged\"}";
    let stranger = format!("{}/callback/divar?state={forged}&code=canary", broker.public_url);
    person.get(&stranger).await;
    let events = events(&broker).await;
    assert!(events.len() > 8, "{events:#?}");

    let mut secrets = vec![
        broker.operator_key.clone(),
        broker.service_key.clone(),
        link.rsplit('/').next().unwrap().to_owned(),
        "simulated-divar-secret".to_owned(),
        "ory_rt_".to_owned(),
        "canary".to_owned(),
        "forged".to_owned(),
    ];
    for token in [&first, &second] {
        secrets.push(token["access_token"].as_str().unwrap().to_owned());
    }
    let url: url::Url = callback.parse().unwrap();
    secrets.extend(url.query_pairs().filter(|(name, _)| name != "scope").map(|(_, v)| v.into()));
    assert!(secrets.iter().all(|secret| secret.len() > 5), "{secrets:?}");
    let mut said = format!("{events:?}");
    for file in fs::read_dir(broker.state("audit")).unwrap() {
        said.push_str(&fs::read_to_string(file.unwrap().path()).unwrap());
    }
    for secret in secrets {
        assert!(!said.contains(&secret), "{secret}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_file_that_cannot_be_written_withholds_tokens(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    assert_eq!(broker.token("avito-own").await.status, StatusCode::OK);
    let folder = broker.state("audit");
    fs::rename(&folder, broker.state("elsewhere")).unwrap();
    fs::write(&folder, b"").unwrap();
    for _ in 0..2 {
        for answer in [broker.token("avito-own").await, rejected(&broker).await] {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
            assert_eq!(answer.json()["code"], "audit_unavailable");
            assert_eq!(answer.header("retry-after"), "1");
            assert!(!answer.text.contains("access_token"));
        }
        let answer = oauth2(&broker).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        assert_eq!(answer.json()["error"], "temporarily_unavailable");
        assert_eq!(answer.header("retry-after"), "1");
    }
    let health = broker.health().await;
    assert_eq!((&health["status"], &health["audit"]["file"]), (&json!("down"), &json!("failing")));
    // Refreshes go on: what a provider gives is kept, and its record is in the log.
    let refreshed = broker.refresh("avito-own").await;
    assert_eq!(refreshed.json()["generation"], 2, "{refreshed:?}");

    fs::remove_file(&folder).unwrap();
    let token = broker.token("avito-own").await;
    assert_eq!((token.status, &token.json()["generation"]), (StatusCode::OK, &json!(2)));
    let health = broker.health().await;
    assert_eq!(
        (&health["status"], &health["audit"]["file"]),
        (&json!("ok"), &json!("ok")),
        "{health}"
    );
    let issued = events(&broker).await;
    assert_eq!(of_kind(&issued, "token_issued").len(), 1, "the first lies elsewhere: {issued:#?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn what_was_shipped_before_a_crash_is_kept_once(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    for _ in 0..5 {
        broker.token("avito-own").await;
    }
    let before = events(&broker).await;
    // A crash came after the insert and before the cursor: the next start knows nothing of it.
    fs::remove_file(broker.state("audit/cursor")).unwrap();
    assert_eq!(events(&broker).await, before);
    broker.token("avito-own").await;
    fs::remove_file(broker.state("audit/cursor")).unwrap();
    broker.restart(|_| {}).await;
    let after = events(&broker).await;
    assert_eq!(after[..before.len()], before);
    let added = &after[before.len()..];
    let kinds: Vec<_> = added.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["token_issued", "configuration"]);
    let health = broker.health().await;
    assert_eq!(health["audit"]["unshipped"], 0, "{health}");
    // One file is left: the one that may still be written to.
    let files = fs::read_dir(broker.state("audit")).unwrap().map(|file| file.unwrap().file_name());
    let files = files.filter(|name| name.to_string_lossy().ends_with(".jsonl")).count();
    assert_eq!(files, 1);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn records_wait_for_a_database_that_does_not_take_them(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let before = events(&broker).await.len();
    broker.execute("ALTER TABLE events RENAME TO events_elsewhere").await;
    for _ in 0..1_100 {
        assert_eq!(broker.token("avito-own").await.status, StatusCode::OK);
    }
    assert!(broker.broker().ship_events().await.is_err());
    let health = broker.health().await;
    assert_eq!(health["audit"], json!({ "file": "ok", "unshipped": 1_100 }));
    // They outlast the process, too.
    broker.restart(|_| {}).await;
    assert!(broker.broker().ship_events().await.is_err());
    let health = broker.health().await;
    assert_eq!(health["audit"]["unshipped"], 1_101, "and the start");
    broker.execute("ALTER TABLE events_elsewhere RENAME TO events").await;
    assert_eq!(broker.broker().ship_events().await.unwrap(), 1_101);
    assert_eq!(
        page(&broker, "?limit=1000").await.json()["events"].as_array().unwrap().len(),
        1_000
    );
    let all = page_through(&broker).await;
    assert_eq!(all.len(), before + 1_101);
    assert_eq!(of_kind(&all, "token_issued").len(), 1_100);
    let health = broker.health().await;
    assert_eq!(health["audit"]["unshipped"], 0);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_changed_configuration_is_told(database: TestDatabase) {
    let mut broker = TestBroker::start(database).await;
    broker.restart(|_| {}).await;
    broker
        .restart(|settings| {
            settings["clients"].as_table_mut().unwrap().remove("kommo").unwrap();
        })
        .await;
    let events = events(&broker).await;
    let starts = of_kind(&events, "configuration");
    let details: Vec<_> = starts.iter().map(|start| start["detail"].as_str().unwrap()).collect();
    assert_eq!(details, ["first", "unchanged", "changed"]);
    assert_eq!(starts[0]["fingerprint"], starts[1]["fingerprint"]);
    assert_ne!(starts[1]["fingerprint"], starts[2]["fingerprint"]);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_key_that_expires_is_on_record_once(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let end = broker.clock.now() + Duration::from_hours(1);
    let body = json!({ "name": "brief", "connections": ["*"], "expires_at": end });
    assert_eq!(broker.operator(Method::POST, "/v1/services", Some(body)).await.status, 201);
    for _ in 0..3 {
        broker.advance(Duration::from_mins(40)).await;
    }
    let events = events(&broker).await;
    let expired = of_kind(&events, "key_expired");
    assert_eq!(expired.len(), 1, "{expired:?}");
    assert!(expired[0]["detail"].as_str().unwrap().starts_with("service brief, key "));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn the_trail_is_for_operators_and_paged(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let answer = broker.ask(&broker.service_key, Method::GET, "/v1/events", None).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(broker.ask("", Method::GET, "/v1/events", None).await.status, 401);
    for query in [
        "?limit=0",
        "?limit=1001",
        "?after=-1",
        "?after=x",
        "?before=1",
        "?after=9999999999999999999",
    ] {
        let answer = page(&broker, query).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}: {answer:?}");
    }
    let all = events(&broker).await;
    assert_eq!(all.len(), 3, "{all:#?}");
    let first = page(&broker, "?limit=2").await;
    assert_eq!(first.header("cache-control"), "no-store");
    let first = first.json();
    assert_eq!(first["events"].as_array().unwrap(), &all[..2]);
    let next = page(&broker, &format!("?after={}", first["next_after"])).await.json();
    assert_eq!(next["events"].as_array().unwrap(), &all[2..]);
    let end = page(&broker, &format!("?after={}", next["next_after"])).await.json();
    assert_eq!(end, json!({ "events": [], "next_after": next["next_after"] }));
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn old_events_are_purged_as_the_settings_say(database: TestDatabase) {
    let settings = "[audit]\nkeep_days = 2";
    let broker = TestBroker::start_with(database, SimulatorSettings::default(), settings).await;
    assert_eq!(events(&broker).await.len(), 3);
    broker.advance(Duration::from_hours(47)).await;
    broker.broker().purge().await.unwrap();
    assert_eq!(events(&broker).await.len(), 3);
    broker.advance(Duration::from_hours(2)).await;
    broker.broker().purge().await.unwrap();
    assert!(events(&broker).await.is_empty());
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_commits_late_is_not_skipped() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    let replica = broker.replica().await;
    replica.broker().ship_events().await.unwrap();
    let before = events(&broker).await.len();
    // Somebody has been given places and does not commit.
    let mut late = broker.hold("UPDATE events_head SET seq = seq + 1").await;
    let record = AuditEvent::new(EventKind::TokenIssued, &Actor::broker(), broker.clock.now());
    assert!(broker.broker().store().insert_events(std::slice::from_ref(&record)).await.is_err());
    assert_eq!(page_through(&broker).await.len(), before, "nothing with a higher place is there");
    sqlx::raw_sql(
        "INSERT INTO events (seq, id, happened_at, kind, actor)
         SELECT seq, 'b0000000-0000-7000-8000-000000000000', 1, 'late', 'x' FROM events_head; COMMIT",
    )
    .execute(&mut late)
    .await
    .unwrap();
    late.close().await.unwrap();
    let all = page_through(&broker).await;
    assert_eq!(all[before]["kind"], "late");
    broker.broker().store().insert_events(&[record]).await.unwrap();
    let after = all[before]["seq"].as_i64().unwrap();
    let next = page(&broker, &format!("?after={after}")).await.json();
    assert_eq!(next["events"][0]["kind"], "token_issued", "{next}");
    replica.stop().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_that_left_lacks_its_record_after_a_kill() {
    let (_deployment, mut broker) =
        Deployment::start_process(TestDatabase::sqlite().await, "").await;
    broker.create("avito-own", "avito").await;
    let mut received = 0;
    for round in 0_u64..3 {
        let url = format!("{}/v1/connections/avito-own/token", broker.internal_url);
        let (http, reader) = (client(), broker.service_key.clone());
        let read = || async {
            let mut received = 0;
            loop {
                let answer = http.get(&url).bearer_auth(&reader).send().await;
                // A token is received when it is here whole.
                let Ok(answer) = answer else { break received };
                let Ok(text) = answer.text().await else { break received };
                assert!(text.contains("access_token"), "{text}");
                received += 1;
            }
        };
        let kill = async {
            // Some reads, and then at any moment.
            let url = format!("{}/health", broker.internal_url);
            for _ in 0..20 + round * 17 {
                client().get(&url).send().await.unwrap();
            }
            broker.kill().await;
        };
        let readers = join_all((0..8).map(|_| read()));
        let (all, ()) = tokio::join!(readers, kill);
        received += all.into_iter().sum::<usize>();
        broker.start_again().await;
    }
    assert!(received > 100, "{received}");
    broker.stop().await;
    // The last records are shipped at the end.
    broker.start_again().await;
    let (mut recorded, mut after) = (0, 0);
    loop {
        let path = format!("/v1/events?limit=1000&after={after}");
        let page = broker.operator(Method::GET, &path, None).await.json();
        let events = page["events"].as_array().unwrap();
        if events.is_empty() {
            break;
        }
        recorded += of_kind(events, "token_issued").len();
        after = page["next_after"].as_i64().unwrap();
    }
    assert!(recorded >= received, "{recorded} records of {received} tokens");
    assert!(recorded <= received + 3 * 8, "a reader lost one at most with each kill: {recorded}");
}
