//! The internal listener: who may do what, and what a wrong request meets.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use token_broker::simulator::Simulated;

use crate::support::{
    broker::TestBroker,
    database::{TestDatabase, apply, on_both_engines},
    person::Person,
};

#[apply(on_both_engines!)]
async fn a_service_sees_its_own_connections_and_no_others(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    broker.create("admitad-own", "admitad").await;
    let key = broker.service("avito-only", json!(["avito-*"]), json!(["token"])).await;
    let list = broker.ask(&key, Method::GET, "/v1/connections", None).await.json();
    let names: Vec<_> =
        list["connections"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["avito-own"]);
    // Not yours looks like not there, to the letter but for the name.
    for path in ["/v1/connections/NAME", "/v1/connections/NAME/token"] {
        let foreign = path.replace("NAME", "admitad-own");
        let foreign = broker.ask(&key, Method::GET, &foreign, None).await;
        let unknown = path.replace("NAME", "nowhere-own");
        let unknown = broker.ask(&key, Method::GET, &unknown, None).await;
        assert_eq!(foreign.status, StatusCode::NOT_FOUND);
        assert_eq!(foreign.text.replace("admitad-own", "nowhere-own"), unknown.text);
    }
    let body = json!({ "connection": "admitad-own" });
    let link = broker.ask(&key, Method::POST, "/v1/consent-links", Some(body)).await;
    assert_eq!(link.status, StatusCode::NOT_FOUND, "{link:?}");
    let body = json!({ "connection": "avito-own" });
    let link = broker.ask(&key, Method::POST, "/v1/consent-links", Some(body)).await;
    assert_eq!(link.status, StatusCode::FORBIDDEN, "{link:?}");
    // A service without the verb fetches nothing.
    let asker = broker.service("asker", json!(["*"]), json!(["consent"])).await;
    let token = broker.ask(&asker, Method::GET, "/v1/connections/avito-own/token", None).await;
    assert_eq!(token.status, StatusCode::NOT_FOUND, "{token:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn keys_are_checked_whole_and_end(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let good = broker.service_key.clone();
    let unknown = format!("tbs_000000000000_{}", &good[17..]);
    let mut altered = good.clone();
    altered.replace_range(20..21, if &good[20..21] == "A" { "B" } else { "A" });
    let mut answers = Vec::new();
    for bad in
        [String::new(), "x".to_owned(), good[..59].to_owned(), format!("{good}x"), unknown, altered]
    {
        let answer = broker.ask(&bad, Method::GET, "/v1/connections", None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{bad}");
        answers.push((answer.text.clone(), answer.header("www-authenticate").to_owned()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "nothing tells which part is wrong");

    let end = broker.clock.now() + jiff::SignedDuration::from_mins(10);
    let body = json!({ "name": "short", "connections": ["*"], "expires_at": end });
    let made = broker.operator(Method::POST, "/v1/services", Some(body)).await.json();
    let key = made["key"].as_str().unwrap();
    assert_eq!(broker.ask(key, Method::GET, "/v1/connections", None).await.status, StatusCode::OK);
    broker.advance(std::time::Duration::from_secs(601)).await;
    let ended = broker.ask(key, Method::GET, "/v1/connections", None).await;
    assert_eq!(ended.status, StatusCode::UNAUTHORIZED);

    // Without any operator left their routes are gone again.
    let deleted = broker.command(&["operators", "delete", "tester"]).await;
    assert!(deleted.status.success(), "{deleted:?}");
    broker.broker().sync().await.unwrap();
    let gone = broker.operator(Method::GET, "/v1/services", None).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_service_has_two_live_keys_at_most(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let first = broker.service("billing", json!(["*"]), json!(["token"])).await;
    let path = "/v1/services/billing/keys";
    let made = broker.operator(Method::POST, path, Some(json!({}))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let second = made.json()["key"].as_str().unwrap().to_owned();
    for key in [&first, &second] {
        let listed = broker.ask(key, Method::GET, "/v1/connections", None).await;
        assert_eq!(listed.status, StatusCode::OK);
    }
    let third = broker.operator(Method::POST, path, Some(json!({}))).await;
    assert_eq!(third.status, StatusCode::CONFLICT, "{third:?}");
    let shown = broker.operator(Method::GET, "/v1/services/billing", None).await;
    assert!(!shown.text.contains(&first) && !shown.text.contains(&second));
    let old = format!("{path}/{}", &first[4..16]);
    let deleted = broker.operator(Method::DELETE, &old, None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    let listed = broker.ask(&first, Method::GET, "/v1/connections", None).await;
    assert_eq!(listed.status, StatusCode::UNAUTHORIZED);
    let deleted = broker.operator(Method::DELETE, "/v1/services/billing", None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    let listed = broker.ask(&second, Method::GET, "/v1/connections", None).await;
    assert_eq!(listed.status, StatusCode::UNAUTHORIZED);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_key_that_was_made_is_shown_whatever_fails_then(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    // The record of it cannot be kept.
    broker.execute("ALTER TABLE events RENAME TO broken_events").await;
    let made = broker.command(&["operators", "create", "alice"]).await;
    assert_eq!(made.status.code(), Some(69), "{made:?}");
    broker.broker().sync().await.unwrap();
    let listed = broker.ask(&made.stdout.concat(), Method::GET, "/v1/services", None).await;
    assert_eq!(listed.status, StatusCode::OK, "{made:?}");
    // The broker that made it cannot read it back.
    broker.execute("ALTER TABLE services RENAME TO broken_services").await;
    let made = broker.broker().create_operator("bob".parse().unwrap()).await.unwrap();
    broker.execute("ALTER TABLE broken_services RENAME TO services").await;
    broker.execute("ALTER TABLE broken_events RENAME TO events").await;
    broker.broker().sync().await.unwrap();
    assert!(broker.broker().authenticate(&made).is_ok());
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn operators_routes_are_for_operators(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for (method, path) in [
        (Method::POST, "/v1/connections"),
        (Method::DELETE, "/v1/connections/x"),
        (Method::POST, "/v1/connections/x/refresh"),
        (Method::GET, "/v1/services"),
        (Method::POST, "/v1/services"),
        (Method::GET, "/v1/services/reader"),
        (Method::DELETE, "/v1/services/reader"),
        (Method::POST, "/v1/services/reader/keys"),
        (Method::DELETE, "/v1/services/reader/keys/x"),
    ] {
        let as_service = broker.ask(&broker.service_key, method.clone(), path, None).await;
        assert_eq!(as_service.status, StatusCode::FORBIDDEN, "{method} {path}");
        let as_nobody = broker.ask("", method.clone(), path, None).await;
        assert_eq!(as_nobody.status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    let token = broker.operator(Method::GET, "/v1/connections/x/token", None).await;
    assert_eq!(token.status, StatusCode::FORBIDDEN, "tokens are for services");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn bad_input_is_one_sentence_and_a_code(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    let post = |path: &'static str, body: Value| broker.operator(Method::POST, path, Some(body));
    for (answer, status, code, words) in [
        (post("/v1/connections", json!({})).await, 400, "invalid_request", "missing field `name`"),
        (post("/v1/connections", json!([])).await, 400, "invalid_request", "a JSON object"),
        (
            post("/v1/connections", json!({ "name": "x", "client": "nope" })).await,
            400,
            "invalid_request",
            "there is no client `nope`",
        ),
        (
            post("/v1/connections", json!({ "name": "No Slug", "client": "avito" })).await,
            400,
            "invalid_request",
            "a value is not a name: use 1 to 63",
        ),
        (
            post("/v1/connections", json!({ "name": "x", "client": "avito", "extra": 1 })).await,
            400,
            "invalid_request",
            "unknown field `extra`",
        ),
        (
            post("/v1/connections", json!({ "name": "avito-own", "client": "avito" })).await,
            409,
            "conflict",
            "taken",
        ),
        (
            post(
                "/v1/connections",
                json!({ "name": "x", "client": "amocrm", "grant_type": "client_credentials" }),
            )
            .await,
            400,
            "invalid_request",
            "amoCRM does not offer client_credentials",
        ),
        (
            post("/v1/consent-links", json!({ "connection": "new" })).await,
            404,
            "not_found",
            "name a `client`",
        ),
        (
            post("/v1/consent-links", json!({ "connection": "avito-own" })).await,
            409,
            "conflict",
            "client credentials",
        ),
        (
            post("/v1/connections/avito-own/confirm", json!({ "account": "1" })).await,
            409,
            "conflict",
            "nothing to confirm",
        ),
        (
            post("/v1/services", json!({ "name": "s", "connections": [] })).await,
            400,
            "invalid_request",
            "`connections` is empty",
        ),
        (
            post("/v1/services", json!({ "name": "s", "connections": ["a*b"] })).await,
            400,
            "invalid_request",
            "a value is not a pattern",
        ),
        (
            post("/v1/services", json!({ "name": "s", "connections": ["*"], "verbs": ["tbs_x"] }))
                .await,
            400,
            "invalid_request",
            "the body does not fit: expected one of",
        ),
        (
            post("/v1/connections/avito-own/nothing", json!({})).await,
            404,
            "not_found",
            "no such route",
        ),
        (
            broker.operator(Method::PUT, "/v1/connections", None).await,
            405,
            "method_not_allowed",
            "does not take PUT",
        ),
    ] {
        let problem = answer.json();
        assert_eq!(answer.status.as_u16(), status, "{problem}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{problem}");
        assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)));
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words) && !detail.contains('\n'), "{detail}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_bad_query_is_refused_and_a_large_one_bounded(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.create("avito-own", "avito").await;
    for query in ["min_ttl=soon", "min_ttl=-1", "other=1", "min_ttl=1&min_ttl=2"] {
        let path = format!("/v1/connections/avito-own/token?{query}");
        let answer = broker.ask(&broker.service_key, Method::GET, &path, None).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}: {answer:?}");
        assert_eq!(answer.json()["code"], "invalid_request");
    }
    let path = "/v1/connections/avito-own/token?min_ttl=18446744073709551615";
    let answer = broker.ask(&broker.service_key, Method::GET, path, None).await;
    assert_eq!(answer.status, StatusCode::OK, "half of its life is the most: {answer:?}");
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn whatever_stands_in_a_path_is_answered_in_kind(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for path in ["/v1/connections/%ff/token", "/v1/connections/%ff", "/v1/connections/%00/token"] {
        let answer = broker.ask(&broker.service_key, Method::GET, path, None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
    }
    for (path, status) in [
        ("/connect/%ff", StatusCode::GONE),
        ("/callback/%ff?state=x", StatusCode::BAD_REQUEST),
        ("/nowhere/%ff", StatusCode::NOT_FOUND),
    ] {
        let answer = Person::alone().get(&format!("{}{path}", broker.public_url)).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.header("content-type").starts_with("text/html"), "{path}");
    }
    // Nothing that only looks may count as a callback.
    let callback = format!("{}/callback/avito?code=x&state=y", broker.public_url);
    let looked = Person::alone().send(Method::HEAD, &callback, &[], None).await;
    assert_eq!(looked.status, StatusCode::METHOD_NOT_ALLOWED);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn a_problem_repeats_no_value(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let service = |verbs: Value, connections: Value| json!({ "name": "s", "verbs": verbs, "connections": connections });
    for body in [
        service(json!(["canary"]), json!(["*"])),
        service(json!(["x, expected canary"]), json!(["*"])),
        service(json!("canary at line 2"), json!(["*"])),
        service(json!(["token"]), json!("canary, expected")),
        json!({ "name": "s", "connections": ["*"], "expires_at": "canary" }),
    ] {
        let refused = broker.operator(Method::POST, "/v1/services", Some(body.clone())).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}: {refused:?}");
        assert!(!refused.text.contains("canary"), "{body}: {refused:?}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn the_token_endpoint_speaks_oauth(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("divar-shop", Simulated::Divar).await;
    let url = format!("{}/oauth2/token", broker.internal_url);
    let key = broker.service_key.as_str();
    let send = |basic: Option<(&'static str, &str)>, form: Vec<(&'static str, String)>| {
        let mut request = broker.http.post(&url).form(&form);
        if let Some((id, secret)) = basic {
            request = request.basic_auth(id, Some(secret));
        }
        async move {
            let response = request.send().await.unwrap();
            let (status, headers) = (response.status(), response.headers().clone());
            let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert_eq!(headers["cache-control"], "no-store");
            (status.as_u16(), body)
        }
    };
    let grant = || ("grant_type", "client_credentials".to_owned());
    let name = || ("scope", "divar-shop".to_owned());
    let resource = ("resource", format!("{}/v1/connections/divar-shop", broker.internal_url));
    let secret = ("client_secret", key.to_owned());
    let id = ("client_id", "reader".to_owned());
    for (basic, form) in [
        (Some(("reader", key)), vec![grant(), name()]),
        (Some(("reader", key)), vec![grant(), resource.clone()]),
        (None, vec![grant(), name(), id.clone(), secret.clone()]),
        (None, vec![grant(), resource, id.clone(), secret.clone()]),
    ] {
        let (status, body) = send(basic, form).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!((&body["token_type"], &body["scope"]), (&json!("Bearer"), &json!("divar-shop")));
        assert_eq!(body["access_token"], broker.token("divar-shop").await.json()["access_token"]);
    }
    for (basic, form, status, error) in [
        (None, vec![grant(), name()], 401, "invalid_client"),
        (Some(("reader", "wrong")), vec![grant(), name()], 401, "invalid_client"),
        (Some(("other", key)), vec![grant(), name()], 401, "invalid_client"),
        (Some(("reader", key)), vec![name()], 400, "invalid_request"),
        (Some(("reader", key)), vec![grant()], 400, "invalid_request"),
        (Some(("reader", key)), vec![grant(), name(), name()], 400, "invalid_request"),
        (Some(("reader", key)), vec![grant(), name(), secret], 400, "invalid_request"),
        (
            Some(("reader", key)),
            vec![("grant_type", "password".to_owned()), name()],
            400,
            "unsupported_grant_type",
        ),
        (
            Some(("reader", key)),
            vec![grant(), ("scope", "nowhere".to_owned())],
            400,
            "invalid_target",
        ),
        (Some(("reader", key)), vec![grant(), ("scope", "a b".to_owned())], 400, "invalid_scope"),
    ] {
        let (was, body) = send(basic, form.clone()).await;
        assert_eq!((was, &body["error"]), (status, &json!(error)), "{form:?}: {body}");
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn no_route_is_on_both_listeners_but_liveness(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    let document = broker.ask("", Method::GET, "/openapi.json", None).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert!(paths.len() > 12, "{paths:?}");
    let known = ["/openapi.json".to_owned()];
    for path in paths.iter().chain(&known).filter(|path| *path != "/health/live") {
        let path = path.replace(['{', '}'], "");
        for method in [Method::GET, Method::POST] {
            let request = broker.http.request(method, format!("{}{path}", broker.public_url));
            let answer = request.bearer_auth(&broker.operator_key).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path} on the public listener");
        }
    }
    for path in ["/connect/x", "/callback/avito"] {
        let answer = broker.ask("", Method::GET, path, None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path} on the internal listener");
    }
    for base in [&broker.public_url, &broker.internal_url] {
        let live = broker.http.get(format!("{base}/health/live")).send().await.unwrap();
        assert_eq!(live.status(), StatusCode::NO_CONTENT);
    }
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn health_tells_how_things_are(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    broker.connect("amocrm-shop", Simulated::Amocrm).await;
    let health = broker.health().await;
    assert_eq!(health["status"], "ok", "{health}");
    assert_eq!(health["database"]["reachable"], true);
    assert_eq!(health["clients"]["amocrm"]["states"]["active"], 1);
    assert_eq!(health["clients"]["amocrm"]["provider"], "amocrm");
    assert!(health["clients"]["amocrm"]["next_expiry"].is_string());
    // Overdue, then dead.
    broker.advance(std::time::Duration::from_hours(24 * 100)).await;
    let health = broker.health().await;
    assert_eq!(
        (&health["status"], &health["refresher"]["overdue"]),
        (&json!("degraded"), &json!(1))
    );
    broker.refresh_due().await;
    let answer = broker.ask("", Method::GET, "/health", None).await;
    let health = answer.json();
    assert_eq!(health["status"], "degraded", "{health}");
    assert_eq!(health["clients"]["amocrm"]["states"]["needs_consent"], 1);
    assert!(!answer.text.contains("amocrm-shop") && !answer.text.contains("20000001"), "{health}");
    let ready = broker.ask("", Method::GET, "/health/ready", None).await;
    assert_eq!(ready.status, StatusCode::NO_CONTENT);
    broker.stop().await;
}

#[apply(on_both_engines!)]
async fn nothing_that_leaves_holds_a_refresh_token_or_client_secret(database: TestDatabase) {
    let broker = TestBroker::start(database).await;
    for which in Simulated::ALL {
        broker.connect(&format!("{which}-shop"), which).await;
    }
    let mut texts = Vec::new();
    for path in ["/v1/connections", "/v1/services", "/health", "/openapi.json"] {
        texts.push(broker.operator(Method::GET, path, None).await.text);
    }
    for which in Simulated::ALL {
        texts.push(broker.token(&format!("{which}-shop")).await.text);
        texts.push(broker.view(&format!("{which}-shop")).await.to_string());
    }
    let said = texts.concat();
    for secret in [
        "simulated-avito-secret",
        "simulated-integration-secret",
        "simulated-admitad-secret",
        "simulated-divar-secret",
        "def50200",
        "ory_rt_",
    ] {
        assert!(!said.contains(secret), "{secret}");
    }
    // Only the routes that hand out tokens hold one.
    let token =
        broker.token("avito-shop").await.json()["access_token"].as_str().unwrap().to_owned();
    assert!(!texts[..4].concat().contains(&token));
    broker.stop().await;
}
