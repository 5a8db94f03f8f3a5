//! The public listener under many requests that lead to nothing.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;
use token_broker::{
    domain::consent::{LINK_LIFE, MAX_LINKS, MAX_LIVE_LINKS_EACH},
    simulator::Simulated,
};

use crate::{
    callbacks::{decided, param, random_looking, send, with_cookie},
    support::{
        broker::TestBroker,
        database::{TestDatabase, apply, on_both_engines},
        person::Person,
    },
};

#[apply(on_both_engines!)]
async fn a_thousand_looks_at_a_link_leave_no_trace(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({ "self": true })).await;
    let before = broker.requests();
    let looks = stream::iter(0..1_000).map(|number| {
        let agent = match number % 5 {
            0 => "TelegramBot (like TwitterBot)",
            1 => "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
            2 => "facebookexternalhit/1.1",
            3 => "Mozilla/5.0 (compatible; Barracuda Link Protection)",
            _ => "WhatsApp/2.23.20.0",
        };
        let method = if number % 7 == 0 { Method::HEAD } else { Method::GET };
        let (broker, link) = (&broker, &link);
        async move {
            let headers = [("user-agent", agent), ("purpose", "prefetch")];
            let page = Person::new(broker).send(method, link, &headers, None).await;
            assert_eq!(page.status, StatusCode::OK, "{agent}");
            assert!(page.headers.get("set-cookie").is_none(), "{agent}");
        }
    });
    looks.buffer_unordered(20).collect::<Vec<()>>().await;
    assert_eq!(broker.number("SELECT count(*) FROM consents").await, 0);
    let touched = "SELECT count(*) FROM consent_links WHERE browser_hash IS NOT NULL
        OR outcome IS NOT NULL OR spent_at IS NOT NULL";
    assert_eq!(broker.number(touched).await, 0);
    assert_eq!(broker.requests(), before, "nothing was sent to any provider");
    let page = Person::new(&broker).consent(&link, "allow").await;
    assert!(page.text.contains("Connected"), "{}", page.text);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn presses_leave_five_attempts_at_the_most(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let mut person = Person::new(&broker);
    person.start(&link).await;
    let tabs = (0..20).map(|_| {
        let (mut tab, link) = (person.clone(), &link);
        async move { tab.press(link).await.status }
    });
    let mut answers = join_all(tabs).await;
    // Strangers, each with a browser of their own.
    answers.extend(
        join_all((0..20).map(|_| async { Person::new(&broker).press(&link).await.status })).await,
    );
    let of = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!(of(StatusCode::SEE_OTHER), 4, "{answers:?}");
    assert_eq!(of(StatusCode::TOO_MANY_REQUESTS), 16, "{answers:?}");
    assert_eq!(of(StatusCode::GONE), 20, "{answers:?}");
    assert_eq!(broker.number("SELECT count(*) FROM consents").await, 5);
    broker.advance(Duration::from_mins(11)).await;
    broker.broker().purge().await.unwrap();
    assert_eq!(broker.number("SELECT count(*) FROM consents").await, 0);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn more_links_and_attempts_than_a_table_may_hold_are_refused(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({ "self": true })).await;
    let mut person = Person::new(&broker);
    let provider = person.start(&link).await;
    let callback = person.decide(&provider, "allow").await;
    assert_eq!(MAX_LINKS, 100_000, "as many as are made here");
    broker
        .execute(
            "INSERT INTO consents (state_hash, browser_hash, link_id, connection_id, client,
                redirect_uri, token_url, scopes, link_secret, started_at, expires_at)
             WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
             SELECT 'state-' || i, 'browser', link_id, connection_id, client, '', '', '[]', '',
                started_at, expires_at FROM n, consents",
        )
        .await;
    let other = broker.link("avito-else", "avito", json!({})).await;
    let full = Person::new(&broker).press(&other).await;
    assert_eq!(full.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(broker.number("SELECT count(*) FROM consents").await, 100_000);
    // Whoever is under way already comes through, and ends the other attempts of the link.
    assert_eq!(person.get(&callback).await.status, StatusCode::SEE_OTHER);
    assert_eq!(broker.view("avito-shop").await["state"], "active");
    // What was refused has not bound the link to a browser that nobody has.
    assert_eq!(Person::new(&broker).press(&other).await.status, StatusCode::SEE_OTHER);

    broker
        .execute(
            "INSERT INTO consent_links (id, secret_hash, connection_id, requested_by, scopes,
                own_browser, created_at, expires_at)
             WITH RECURSIVE n (i) AS (SELECT 3 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
             SELECT 'link-' || i, 'secret-' || i, connection_id, '', '[]', 0, 0, 0
             FROM n, consent_links WHERE spent_at IS NOT NULL",
        )
        .await;
    let body = json!({ "connection": "avito-third", "client": "avito" });
    let refused = broker.operator(Method::POST, "/v1/consent-links", Some(body.clone())).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
    assert_eq!(refused.json()["code"], "too_many_requests");
    broker.broker().purge().await.unwrap();
    let made = broker.operator(Method::POST, "/v1/consent-links", Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_service_has_so_many_links_and_locks_nobody_out(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let asker = broker.service("asker", json!(["*"]), json!(["consent"])).await;
    let other = broker.service("other", json!(["*"]), json!(["consent"])).await;
    let ask = async |key: &str, name: &str| {
        let body = json!({ "connection": name, "client": "avito" });
        broker.ask(key, Method::POST, "/v1/consent-links", Some(body)).await
    };
    assert_eq!(ask(&asker, "avito-first").await.status, StatusCode::CREATED);
    assert_eq!(MAX_LIVE_LINKS_EACH, 1_000, "as many as are made here");
    broker
        .execute(
            "INSERT INTO consent_links (id, secret_hash, connection_id, requested_by, scopes,
                own_browser, created_at, expires_at)
             WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 999)
             SELECT 'link-' || i, 'secret-' || i, connection_id, requested_by, '[]', 0, created_at,
                expires_at FROM n, consent_links",
        )
        .await;
    let last = ask(&asker, "avito-last").await;
    assert_eq!(last.status, StatusCode::CREATED, "{last:?}");
    for name in ["avito-last", "avito-more"] {
        let refused = ask(&asker, name).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
        let refused = refused.json();
        assert_eq!(refused["code"], "too_many_requests");
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.starts_with("service asker has 1000 consent links"), "{detail}");
    }
    // Nothing was made for what was refused, and the others have room.
    let path = "/v1/connections/avito-more";
    assert_eq!(broker.operator(Method::GET, path, None).await.status, StatusCode::NOT_FOUND);
    for key in [&other, &broker.operator_key] {
        let made = ask(key, "avito-last").await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    }
    // A link that is used makes room, and so does one that has ended.
    broker.execute("UPDATE consent_links SET spent_at = 0 WHERE id = 'link-2'").await;
    assert_eq!(ask(&asker, "avito-more").await.status, StatusCode::CREATED);
    assert_eq!(ask(&asker, "avito-more").await.status, StatusCode::TOO_MANY_REQUESTS);
    broker.advance(LINK_LIFE).await;
    assert_eq!(ask(&asker, "avito-more").await.status, StatusCode::CREATED);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_flood_of_junk_holds_up_no_reader(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let mut person = Person::new(&broker);
    let callback = decided(&broker, &mut person, "divar-shop", "divar").await;
    let before = broker.requests();
    let junk = stream::iter(0..2_000).map(|number| {
        let state = random_looking(number);
        let url = format!("{}/callback/avito?code=junk&state={state}", broker.public_url);
        let broker = &broker;
        async move { send(broker, &url, &with_cookie(&random_looking(number + 1))).await.status }
    });
    let junk = junk.buffer_unordered(50).collect::<Vec<_>>();
    let mut reads = 0_u32;
    let reading = async {
        loop {
            let read = broker.token("avito-shop").await;
            assert_eq!(read.status, StatusCode::OK, "{read:?}");
            reads += 1;
        }
    };
    let junk = tokio::select! {
        junk = junk => junk,
        () = reading => unreachable!("it reads for as long as the flood lasts"),
    };
    // A machine that cannot keep up says so; it never says more.
    let refused = [StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE];
    assert!(junk.iter().all(|status| refused.contains(status)), "{junk:?}");
    let looked_up = junk.iter().filter(|status| **status == refused[0]).count();
    assert!(looked_up > 1_000, "{looked_up} of 2,000");
    assert!(reads > 50, "{reads} reads");
    assert_eq!(broker.requests(), before, "nothing was sent to any provider");
    assert_eq!(person.get(&callback).await.status, StatusCode::SEE_OTHER);
    broker.stop().await;
}

/// Also from those who have seen a link, or have pressed its button.
#[apply(on_both_engines!)]
async fn a_flood_leaves_few_records(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    let mut person = Person::new(&broker);
    let callback = decided(&broker, &mut person, "avito-shop", "avito").await;
    person.start(&link).await;
    let bogus = format!("{}/connect/{}", broker.public_url, random_looking(7));
    let flood = stream::iter(0..200).map(|number| {
        let (broker, link, bogus, callback) = (&broker, &link, &bogus, &callback);
        async move {
            let mut stranger = Person::new(broker);
            assert_eq!(stranger.press(link).await.status, StatusCode::GONE);
            assert_eq!(stranger.press(bogus).await.status, StatusCode::GONE);
            let crossed = [("sec-fetch-site", "cross-site")];
            let crossed = stranger.send(Method::POST, link, &crossed, None).await;
            assert_eq!(crossed.status, StatusCode::FORBIDDEN);
            for url in [callback.clone(), format!("{callback}&code=b")] {
                let answer = send(broker, &url, &with_cookie(&random_looking(number))).await;
                assert_eq!(answer.status, StatusCode::BAD_REQUEST);
            }
        }
    });
    flood.buffer_unordered(20).collect::<Vec<()>>().await;
    // Whoever holds the link goes to and fro.
    let mut pressed = Vec::new();
    for _ in 0..100 {
        let pressed_now = person.press(&link).await;
        pressed.push(pressed_now.status);
        if pressed_now.status == StatusCode::SEE_OTHER {
            let state = param(pressed_now.header("location"), "state");
            let url =
                format!("{}/callback/avito?error=access_denied&state={state}", broker.public_url);
            assert_eq!(person.get(&url).await.status, StatusCode::SEE_OTHER);
        }
    }
    broker.broker().ship_events().await.unwrap();
    // A minute may end meanwhile, and another begin.
    for (sql, least, most) in [
        (
            "SELECT count(*) FROM events WHERE kind = 'consent_refused' AND connection IS NULL",
            60,
            120,
        ),
        (
            "SELECT count(*) FROM events WHERE kind = 'consent_refused' AND connection IS NOT NULL",
            10,
            20,
        ),
        ("SELECT count(*) FROM events WHERE kind = 'consent_begun'", 60, 121),
        ("SELECT count(*) FROM events WHERE kind = 'consent_denied'", 59, 119),
    ] {
        let recorded = broker.number(sql).await;
        assert!((least..=most).contains(&recorded), "{recorded}: {sql}");
    }
    assert!(pressed.contains(&StatusCode::TOO_MANY_REQUESTS), "{pressed:?}");
    broker.stop().await;
}

/// Those who are refused take their turn as well, until the refusal is on record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_who_are_refused_take_turns_on_postgres() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    let link = broker.link("avito-shop", "avito", json!({})).await;
    Person::new(&broker).start(&link).await;
    // The link is found, and it is another browser's; its connection is not to be had.
    let held = broker.hold("LOCK TABLE pending_grants IN ACCESS EXCLUSIVE MODE").await;
    let strangers = stream::iter(0..100).map(|_| async { Person::new(&broker).press(&link).await });
    let strangers = strangers.buffer_unordered(50).collect::<Vec<_>>();
    let count = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted
            AND relation = 'pending_grants'::regclass";
        while broker.number(waiting).await < 4 {}
        for _ in 0..50 {
            assert!(broker.number(waiting).await <= 4, "four at once, and no more");
        }
    };
    tokio::select! {
        _ = strangers => unreachable!("they wait for the lock, four at a time"),
        () = count => {}
    }
    drop(held);
    broker.stop().await;
}

/// Where every look-up of a visitor waits, a refresh still finds a connection of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_who_wait_leave_connections_to_a_refresh_on_postgres() {
    let broker = TestBroker::start(TestDatabase::postgres().await).await;
    broker.connect("avito-shop", Simulated::Avito).await;
    let held = broker.hold("LOCK TABLE consents IN ACCESS EXCLUSIVE MODE").await;
    let junk = stream::iter(0..1_000).map(|number| {
        let state = random_looking(number);
        let url = format!("{}/callback/avito?code=junk&state={state}", broker.public_url);
        let broker = &broker;
        async move { send(broker, &url, &with_cookie(&state)).await.status }
    });
    let junk = junk.buffer_unordered(100).collect::<Vec<_>>();
    let refresh = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted
            AND relation = 'consents'::regclass";
        while broker.number(waiting).await < 4 {}
        for _ in 0..3 {
            let refreshed = broker.refresh("avito-shop").await;
            assert_eq!(refreshed.status, StatusCode::OK, "{refreshed:?}");
        }
        assert!(broker.number(waiting).await <= 4, "four at once, and no more");
    };
    tokio::select! {
        _ = junk => unreachable!("they wait for the lock, four at a time"),
        () = refresh => {}
    }
    drop(held);
    let page = Person::new(&broker).get(&broker.link("divar-shop", "divar", json!({})).await).await;
    assert_eq!(page.status, StatusCode::OK);
    broker.stop().await;
}
