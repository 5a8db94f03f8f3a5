//! Token answers, seen or possible: read without losing a refresh token.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use crate::provider::{
    Grant, ProviderError, Reply, Verdict, read_account, read_grant, read_retry_after, test_support,
};

#[expect(clippy::disallowed_methods, reason = "the secrets of these tests are made up")]
fn shown(secret: &SecretString) -> &str {
    secret.expose_secret()
}

pub(super) fn reply(status: u16, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref().to_vec().into();
    Reply { status, retry_after: None, body }
}

fn read(provider: &str, body: impl AsRef<[u8]>) -> Result<Grant, ProviderError> {
    read_grant(&test_support::profile(provider), &reply(200, body))
}

fn with(members: &str) -> Grant {
    read("divar", format!(r#"{{"access_token":"at","refresh_token":"rt",{members}}}"#)).unwrap()
}

#[test]
fn the_answers_of_the_four_providers_are_read() {
    let grant = read(
        "avito",
        r#"{"access_token":"at","expires_in":86400,"token_type":"Bearer","refresh_token":"rt","scope":"messenger:read,messenger:write"}"#,
    )
    .unwrap();
    assert_eq!((shown(&grant.access), grant.refresh.as_ref().map(shown)), ("at", Some("rt")));
    assert_eq!(grant.expires_in, Duration::from_hours(24));
    assert_eq!(grant.scopes.unwrap(), ["messenger:read", "messenger:write"]);

    let grant =
        read("avito", r#"{"access_token":"at","expires_in":86400,"token_type":"Bearer"}"#).unwrap();
    assert!(grant.refresh.is_none() && grant.scopes.is_none());

    let long = "e".repeat(1_000);
    let grant = read(
        "kommo",
        format!(
            r#"{{"token_type":"Bearer","expires_in":86400,"access_token":"{long}","refresh_token":"def50200{long}","server_time":1700000000}}"#
        ),
    )
    .unwrap();
    assert_eq!(shown(&grant.access), long);
    assert!(grant.scopes.is_none());

    let grant = read(
        "admitad",
        r#"{"username":"webmaster1","first_name":"","last_name":"","language":"en","access_token":"at","token_type":"bearer","expires_in":"604800","refresh_token":"rt","scope":"public_data advcampaigns","group":"webmaster","id":1,"code":"x"}"#,
    )
    .unwrap();
    assert_eq!(grant.expires_in, Duration::from_hours(7 * 24));
    assert_eq!(grant.scopes.unwrap(), ["public_data", "advcampaigns"]);

    let grant = read(
        "divar",
        r#"{"access_token":"ory_at_x.y","expires_in":3600,"refresh_token":"ory_rt_x.y","scope":"USER_PHONE offline_access","token_type":"bearer"}"#,
    )
    .unwrap();
    assert_eq!(grant.expires_in, Duration::from_hours(1));
}

#[test]
fn expires_in_is_a_whole_number_in_any_dress_or_the_profiles_default() {
    let default = 3_600;
    let longest = 90 * 86_400;
    for (written, seconds) in [
        ("60", 60),
        ("1", 1),
        ("60.0", 60),
        ("6e1", 60),
        (r#""60""#, 60),
        (r#""060""#, 60),
        ("7776001", longest),
        ("18446744073709551615", longest),
        (r#""18446744073709551615""#, longest),
        ("0", default),
        ("-1", default),
        ("-0.0", default),
        ("1e308", default),
        ("18446744073709551616", default),
        ("60.7", default),
        (r#""60.0""#, default),
        (r#""-60""#, default),
        (r#""+60""#, default),
        (r#""""#, default),
        (r#"" 60""#, default),
        (r#""NaN""#, default),
        (r#""99999999999999999999""#, default),
        (r#""soon""#, default),
        ("null", default),
        ("true", default),
        ("[60]", default),
        (r#"{"seconds":60}"#, default),
    ] {
        let grant = with(&format!(r#""expires_in":{written}"#));
        assert_eq!(grant.expires_in, Duration::from_secs(seconds), "{written}");
    }
    assert_eq!(with(r#""x":1"#).expires_in, Duration::from_secs(default));
}

#[test]
fn scopes_come_as_text_or_array() {
    for (provider, written, scopes) in [
        ("divar", r#""a b""#, Some(vec!["a", "b"])),
        ("divar", r#""  a   b ""#, Some(vec!["a", "b"])),
        ("divar", r#""a,b""#, Some(vec!["a,b"])),
        ("avito", r#""a,b""#, Some(vec!["a", "b"])),
        ("avito", r#""a, b""#, Some(vec!["a", "b"])),
        ("avito", r#""a b""#, Some(vec!["a", "b"])),
        ("avito", r#"["a","b"]"#, Some(vec!["a", "b"])),
        ("avito", r#"["a",1,null]"#, Some(vec!["a"])),
        ("avito", r#""""#, None),
        ("avito", "[]", None),
        ("avito", "null", None),
        ("avito", "7", None),
    ] {
        let grant =
            read(provider, format!(r#"{{"access_token":"at","scope":{written}}}"#)).unwrap();
        let found = grant.scopes.as_ref().map(|all| all.iter().map(String::as_str).collect());
        assert_eq!(found, scopes, "{provider} {written}");
    }
}

#[test]
fn the_old_refresh_token_stays_where_none_comes() {
    for members in [
        r#""expires_in":1"#,
        r#""refresh_token":"""#,
        r#""refresh_token":null"#,
        r#""refresh_token":7"#,
        r#""refresh_token":"a\nb""#,
    ] {
        let grant = read("avito", format!(r#"{{"access_token":"at",{members}}}"#)).unwrap();
        assert!(grant.refresh.is_none(), "{members}");
    }
}

#[test]
fn any_spelling_of_bearer_will_do() {
    for kind in [r#""bearer""#, r#""Bearer""#, r#""BEARER""#, r#""""#, "null"] {
        with(&format!(r#""token_type":{kind}"#));
    }
    let answer = "\u{feff}{\"access_token\":\"at\"}";
    assert_eq!(shown(&read("avito", answer).unwrap().access), "at");
}

/// Answers of status 200 that are of no use, and what follows. Each holds the refresh token `rt`.
#[test]
fn a_refresh_token_survives_whatever_else_is_wrong() {
    let many = (0..70).fold(String::new(), |text, n| text + &format!(r#""m{n}":0,"#));
    let deep = format!("{}{}", "[".repeat(20), "]".repeat(20));
    let abyss = "[".repeat(20_000);
    let huge = "x".repeat(20_000);
    let utf16: Vec<u8> =
        r#"{"refresh_token":"rt"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let rt = r#""refresh_token":"rt""#;
    let ambiguous: Vec<(&str, Vec<u8>)> = vec![
        ("no access token", format!("{{{rt}}}").into()),
        ("empty access token", format!(r#"{{"access_token":"",{rt}}}"#).into()),
        ("null access token", format!(r#"{{"access_token":null,{rt}}}"#).into()),
        ("number", format!(r#"{{"access_token":7,{rt}}}"#).into()),
        ("array", format!(r#"{{"access_token":["at"],{rt}}}"#).into()),
        ("space in it", format!(r#"{{"access_token":"a t",{rt}}}"#).into()),
        ("line break", format!(r#"{{"access_token":"a\r\nX: y",{rt}}}"#).into()),
        ("zero byte", format!(r#"{{"access_token":"a\u0000t",{rt}}}"#).into()),
        ("not ASCII", format!(r#"{{"access_token":"ät",{rt}}}"#).into()),
        ("too long", format!(r#"{{"access_token":"{huge}",{rt}}}"#).into()),
        ("cut after it", format!(r#"{{{rt},"access_token":"a"#).into()),
        ("cut in the next", format!(r#"{{"access_token":"at",{rt},"expi"#).into()),
        ("an object in an array", format!(r#"[{{"access_token":"at",{rt}}}]"#).into()),
        ("nested", format!(r#"{{"data":{{"access_token":"at",{rt}}}}}"#).into()),
        ("many members", format!(r#"{{{many}"access_token":"at",{rt}}}"#).into()),
        ("deep", format!(r#"{{"access_token":"at","x":{deep},{rt}}}"#).into()),
        ("deeper than a parser goes", format!(r#"{{"access_token":"at",{rt},"x":{abyss}"#).into()),
        ("spaces", "{ \"refresh_token\" \n:\t\"rt\" ".into()),
        ("escapes", r#"{"refresh_token":"\u0072t""#.into()),
        ("a form", "access_token=at&refresh_token=rt&token_type=bearer".into()),
        ("UTF-16", utf16),
        ("Latin-1", [b"{\"name\":\"\xe9\",".as_slice(), rt.as_bytes(), b"}"].concat()),
        ("the last of two", format!(r#"{{"refresh_token":"old",{rt},"#).into()),
        ("HTML around it", format!("<html>{{{rt}}}</html>").into()),
    ];
    for (what, body) in &ambiguous {
        let error = read("avito", body).unwrap_err();
        assert_eq!(error.verdict, Verdict::Ambiguous, "{what}");
        assert_eq!(error.salvaged_refresh.as_ref().map(shown), Some("rt"), "{what}");
    }
    let error = read("avito", format!(r#"{{"access_token":"at","token_type":"mac",{rt}}}"#));
    let error = error.unwrap_err();
    assert_eq!(error.verdict, Verdict::Misconfigured);
    assert_eq!(error.salvaged_refresh.as_ref().map(shown), Some("rt"));
}

#[test]
fn what_is_no_answer_at_all_is_ambiguous_and_holds_nothing() {
    let huge = format!(r#"{{"refresh_token":"{}"}}"#, "x".repeat(20_000));
    for body in [
        "",
        " ",
        "null",
        "[]",
        "{}",
        "7",
        r#""token""#,
        "<html><body>Maintenance</body></html>",
        r#"{"refresh_token":"cut"#,
        r#"{"refresh_token":"cut\""#,
        r#"{"refresh_token":null"#,
        r#"{"refresh_token_expires_in":"7"}"#,
        "a page with refresh_token=rt in a sentence",
        &huge,
    ] {
        let error = read("avito", body).unwrap_err();
        assert_eq!(error.verdict, Verdict::Ambiguous, "{body}");
        assert!(error.salvaged_refresh.is_none(), "{body}");
    }
}

#[test]
fn a_200_with_an_error_is_judged_as_an_error() {
    let error = read("avito", r#"{"error":"invalid_grant","error_description":"x"}"#).unwrap_err();
    assert_eq!(error.verdict, Verdict::Refused { reason: "revoked".to_owned() });
    let error = read("avito", r#"{"error":"invalid_client"}"#).unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Misconfigured, "invalid_client"));
    let error = read("avito", r#"{"error":"whatever"}"#).unwrap_err();
    assert_eq!(error.verdict, Verdict::Retry);
    let error = read("avito", r#"{"error":{"code":500,"message":"x"}}"#).unwrap_err();
    assert_eq!((error.verdict, &*error.code), (Verdict::Ambiguous, "no_access_token"));
}

#[test]
fn a_grant_wins_over_an_error_beside_it() {
    let grant = read("avito", r#"{"access_token":"at","error":"","refresh_token":"rt"}"#).unwrap();
    assert_eq!(grant.refresh.as_ref().map(shown), Some("rt"));
}

#[test]
fn an_echo_in_a_plain_refusal_is_not_salvaged() {
    let body = r#"{"error":"invalid_grant","refresh_token":"echo"}"#;
    let error = read_grant(&test_support::profile("avito"), &reply(400, body)).unwrap_err();
    assert!(error.salvaged_refresh.is_none());
    let body = r#"{"refresh_token":"rt"}"#;
    let error = read_grant(&test_support::profile("avito"), &reply(502, body)).unwrap_err();
    assert_eq!(error.salvaged_refresh.as_ref().map(shown), Some("rt"));
}

#[test]
fn nothing_of_the_providers_text_is_repeated() {
    for body in [
        r#"{"error":"<script>canary</script>","error_description":"canary"}"#,
        r#"{"error":"canary canary","hint":"canary","access_token":7,"refresh_token":"canary"}"#,
        "canary",
    ] {
        for status in [200, 400, 401, 403, 429, 500] {
            let reply = reply(status, body);
            let error = read_grant(&test_support::profile("amocrm"), &reply).unwrap_err();
            assert!(!format!("{error} {error:?} {reply:?}").contains("canary"), "{status} {body}");
        }
    }
    let grant = with(r#""expires_in":1"#);
    assert!(!format!("{grant:?}").contains("\"rt\""));
}

#[test]
fn retry_after_is_seconds_or_a_date_within_bounds() {
    let now: Timestamp = "2026-11-21T06:00:00Z".parse().unwrap();
    for (written, seconds) in [
        ("30", Some(30)),
        (" 30 ", Some(30)),
        ("0", Some(1)),
        ("315360000", Some(900)),
        ("99999999999999999999999", Some(900)),
        ("Sat, 21 Nov 2026 06:01:30 GMT", Some(90)),
        ("Sat, 21 Nov 2026 05:00:00 GMT", Some(1)),
        ("Fri, 21 Nov 2036 06:00:00 GMT", Some(900)),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("soon", None),
    ] {
        let wait = read_retry_after(written, now);
        assert_eq!(wait, seconds.map(Duration::from_secs), "{written}");
    }
}

#[test]
fn an_account_is_read_by_the_profiles_pointers() {
    let account = |provider: &str, body: &str| {
        read_account(&test_support::profile(provider), &reply(200, body))
    };
    let found = account("avito", r#"{"id":94235311,"name":"Шоп\u0007 \n","email":"x"}"#).unwrap();
    assert_eq!((&*found.id, found.name.as_deref()), ("94235311", Some("Шоп")));
    let found = account("amocrm", r#"{"id":1,"name":"A","subdomain":"example"}"#).unwrap();
    assert!(found.answers_to("example") && found.answers_to("1"));
    let found = account("divar", r#"{"user_id":"u-1"}"#).unwrap();
    assert_eq!((&*found.id, found.name), ("u-1", None));
    let long = format!(r#"{{"id":1,"username":"{}"}}"#, "é".repeat(500));
    assert_eq!(account("admitad", &long).unwrap().name.unwrap().chars().count(), 200);

    for body in ["", "{}", "<html>", r#"{"id":null}"#, r#"{"id":""}"#, r#"{"id":{"a":1}}"#] {
        assert_eq!(account("avito", body).unwrap_err().code, "no_account", "{body}");
    }
    for (status, verdict) in [
        (302, Verdict::Misconfigured),
        (401, Verdict::Misconfigured),
        (403, Verdict::Misconfigured),
        (404, Verdict::Retry),
        (429, Verdict::Busy { retry_after: None }),
        (500, Verdict::Retry),
    ] {
        let reply = reply(status, r#"{"id":1,"error":"invalid_grant"}"#);
        let error = read_account(&test_support::profile("avito"), &reply).unwrap_err();
        assert_eq!(error.verdict, verdict, "{status}");
    }
}
