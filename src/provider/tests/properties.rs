//! Properties of every possible answer, callback and profile. Payloads of provider hooks belong
//! here as soon as there are hooks.

use std::{collections::BTreeMap, fs};

use proptest::prelude::*;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use super::replies::reply;
use crate::{
    properties::cases,
    provider::{
        Authorization, Catalogue, CurrentTokens, MAX_TOKEN, Profile, Verdict, read_account,
        read_grant, request, salvage, test_support,
    },
};

const PROVIDERS: [&str; 5] = ["admitad", "amocrm", "avito", "divar", "kommo"];

#[expect(clippy::disallowed_methods, reason = "the secrets of these tests are made up")]
fn shown(secret: Option<&SecretString>) -> Option<&str> {
    secret.map(SecretString::expose_secret)
}

/// The members that are read, and some that are not.
fn member() -> impl Strategy<Value = String> {
    const KNOWN: [&str; 15] = [
        "access_token",
        "error",
        "error_code",
        "error_description",
        "expires_in",
        "hint",
        "id",
        "name",
        "retry_after",
        "scope",
        "status",
        "subdomain",
        "token_type",
        "user_id",
        "username",
    ];
    prop_oneof![4 => prop::sample::select(&KNOWN[..]).prop_map(str::to_owned), 1 => ".{0,8}"]
}

/// A text that somebody may have put where another belongs.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9._-]{1,40}",
        ".{0,20}",
        "[\\x00-\\x20\\x7f-\\u{a0}\\u{202a}-\\u{202e}\\u{2066}-\\u{2069}a-z]{0,20}",
        "-?[0-9]{1,25}(\\.[0-9]{1,3})?",
        Just("Bearer".to_owned()),
        Just("x".repeat(MAX_TOKEN + 1)),
        Just("é".repeat(300)),
    ]
}

/// JSON in which no object has a refresh token.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(20, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((member(), inner), 0..8)
                .prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

/// A token answer with anything in the place of anything.
fn answer() -> impl Strategy<Value = Value> {
    prop::collection::vec((member(), value()), 0..10)
        .prop_map(|members| members.into_iter().collect::<Map<_, _>>().into())
}

/// A good answer, altered byte by byte.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3);
    prop::collection::vec(change, 1..6).prop_map(|changes| {
        let mut body = good().to_string().into_bytes();
        for (at, byte, what) in changes {
            let at = at.index(body.len());
            match what {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => body.truncate(at.max(1)),
            }
        }
        body
    })
}

fn good() -> Value {
    json!({
        "token_type": "Bearer", "expires_in": 3600, "access_token": "at-1", "scope": "a b",
        "refresh_token": "rt-1",
    })
}

fn check_grant(provider: &str, status: u16, body: &[u8]) -> Result<(), TestCaseError> {
    let profile = test_support::profile(provider);
    match read_grant(&profile, &reply(status, body)) {
        Ok(grant) => {
            let access = shown(Some(&grant.access)).unwrap();
            prop_assert!((1..=MAX_TOKEN).contains(&access.len()));
            prop_assert!(access.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(grant.expires_in.as_secs() >= 1);
            prop_assert!(grant.expires_in <= profile.tokens.max_access_life);
            if let Some(refresh) = shown(grant.refresh.as_ref()) {
                prop_assert!((1..=MAX_TOKEN).contains(&refresh.len()));
                prop_assert!(!refresh.contains(char::is_control));
            }
            prop_assert!((200..300).contains(&status));
        }
        Err(error) => {
            prop_assert!(!error.message.contains(char::is_control));
            prop_assert!(error.code.len() <= 64);
            if let Verdict::Busy { retry_after: Some(wait) } = error.verdict {
                prop_assert!((1..=900).contains(&wait.as_secs()));
            }
        }
    }
    Ok(())
}

/// True if the profile or RFC 6749 refuses with this answer: the rule of `judge`, written in
/// another way.
fn is_listed(profile: &Profile, status: u16, json: &Value) -> bool {
    let by_rfc = json["error"] == "invalid_grant";
    let by_rule = profile.errors.iter().filter(|rule| rule.reason.is_some()).any(|rule| {
        rule.matches.keys().all(|pointer| json.pointer(pointer).is_some())
            && rule.status.is_none_or(|wanted| wanted == status)
    });
    (by_rfc || by_rule) && status != 429 && status < 500
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_bytes_are_a_usable_grant_or_an_error(
        provider in prop::sample::select(&PROVIDERS[..]), status in 100..600_u16,
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        check_grant(provider, status, &body)?;
    }

    #[test]
    fn a_damaged_answer_is_a_usable_grant_or_an_error(
        provider in prop::sample::select(&PROVIDERS[..]), body in damaged(),
    ) {
        check_grant(provider, 200, &body)?;
    }

    #[test]
    fn any_json_is_a_usable_grant_or_an_error(
        provider in prop::sample::select(&PROVIDERS[..]), ok: bool, status in 100..600_u16,
        body in answer(), access in prop::option::of(text()),
    ) {
        let mut body = body;
        if let Some(access) = access {
            body["access_token"] = access.into();
        }
        check_grant(provider, if ok { 200 } else { status }, body.to_string().as_bytes())?;
    }

    /// T31: if the bytes hold one well-formed refresh token, it comes out of them.
    #[test]
    fn one_refresh_token_anywhere_in_an_answer_is_kept(
        provider in prop::sample::select(&PROVIDERS[..]), around in answer(), beside in value(),
        token in "[!-~]{1,60}", depth in 0..6, twice: bool, cut: bool, granted: bool,
    ) {
        let mut holder = json!({ "a": beside, "refresh_token": token });
        for _ in 0..depth {
            holder = json!({ "b": [holder] });
        }
        let mut whole = around;
        if granted {
            whole["access_token"] = "at-1".into();
            whole["token_type"] = "bearer".into();
        }
        whole.as_object_mut().unwrap().extend(holder.as_object().unwrap().clone());
        let mut body = whole.to_string();
        if twice {
            // Said again, as nothing: JSON lets the last one count.
            body.pop();
            body.push_str(r#","refresh_token":null}"#);
        }
        if cut {
            body.pop();
        }
        let read = read_grant(&test_support::profile(provider), &reply(200, body));
        let kept = match &read {
            Ok(grant) => grant.refresh.as_ref(),
            Err(error) => error.salvaged_refresh.as_ref(),
        };
        prop_assert_eq!(shown(kept), Some(&*token));
    }

    #[test]
    fn a_cut_after_the_token_keeps_it_and_a_cut_within_takes_no_half(
        before in value(), token in "[!-~é]{1,60}", after in value(), at: prop::sample::Index,
    ) {
        let head = format!(r#"{{"a":{before},"refresh_token":{}"#, Value::from(token.as_str()));
        let body = format!(r#"{head},"b":{after}}}"#).into_bytes();
        let at = at.index(body.len());
        let found = salvage::refresh_token(&body[..at]);
        let expected = (at >= head.len()).then_some(token.as_str());
        prop_assert_eq!(shown(found.as_ref()), expected);
    }

    #[test]
    fn a_form_without_a_space_is_read_too(token in ".{1,60}", more in "[a-z=&%]{0,20}") {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("refresh_token", &token)
            .finish();
        let found = salvage::refresh_token(format!("{form}&{more}").as_bytes());
        let sound = (!token.contains(char::is_control)).then_some(&*token);
        prop_assert_eq!(shown(found.as_ref()), sound);
    }

    #[test]
    fn what_is_not_listed_is_never_a_refusal(
        provider in prop::sample::select(&PROVIDERS[..]), body in answer(),
        status in prop_oneof![100..600_u16, prop::sample::select(&[400, 401, 429, 500, 503][..])],
        (place, word) in prop::sample::select(&[
            ("error", "invalid_grant"), ("error", "invalid_client"), ("error", "token_inactive"),
            ("error_description", "invalid_grant"), ("hint", "Token has expired"),
            ("hint", "Authorization code has expired"),
        ][..]),
    ) {
        let mut body = body;
        body[place] = word.into();
        body.as_object_mut().unwrap().remove("access_token");
        let profile = test_support::profile(provider);
        let error = read_grant(&profile, &reply(status, body.to_string())).unwrap_err();
        if matches!(error.verdict, Verdict::Refused { .. }) {
            prop_assert!(is_listed(&profile, status, &body), "{} {}", status, body);
        }
    }

    #[test]
    fn an_account_has_an_id_and_nothing_that_does_not_print(
        provider in prop::sample::select(&PROVIDERS[..]), body in answer(), id in prop_oneof![value(), text().prop_map(Value::from)],
    ) {
        let mut body = body;
        body["id"] = id.clone();
        body["user_id"] = id;
        let read = read_account(&test_support::profile(provider), &reply(200, body.to_string()));
        if let Ok(account) = read {
            prop_assert!(!account.id.is_empty());
            for text in account.aliases.iter().chain([&account.id]).chain(&account.name) {
                prop_assert!(text.chars().count() <= 200);
                prop_assert!(!text.contains(char::is_control));
            }
        }
    }

    /// T24: what a callback names is one label under the suffix, as the client that connects
    /// reads it too.
    #[test]
    fn an_accepted_host_is_one_label_under_the_suffix(
        host in "([a-zA-Z0-9-]{0,4}|\\.|amocrm\\.ru|\\.amocrm\\.ru|@|/|\\\\|#|\\?|:|%2e|%00|xn--|\\PC){1,6}(\\.amocrm\\.ru)?",
    ) {
        let client = test_support::client("amocrm");
        if let Ok(vars) = client.profile.capture(|_| Some(&host)) {
            let base = request::api_base_url(&client, &vars).unwrap();
            let url = url::Url::parse(&base).unwrap();
            let label = url.host_str().unwrap().strip_suffix(".amocrm.ru").unwrap();
            prop_assert!(!label.is_empty() && !label.contains('.'));
            prop_assert_eq!(url.host_str().unwrap(), host.to_ascii_lowercase());
            prop_assert_eq!(base, format!("https://{}", host.to_ascii_lowercase()));
        }
    }
}

/// A profile's text in a folder, read as at start.
fn load(text: &str) -> Result<std::sync::Arc<Profile>, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine.toml"), text).unwrap();
    let catalogue = Catalogue::load(Some(folder.path()), &BTreeMap::new());
    catalogue.map(|all| all.get("mine").unwrap().clone()).map_err(|error| error.to_string())
}

/// Every request that a profile which was loaded may be asked to make.
fn use_it(profile: std::sync::Arc<Profile>) {
    let client = test_support::of(profile);
    let access = SecretString::from("at");
    let vars: BTreeMap<_, _> = client
        .profile
        .vars
        .iter()
        .filter_map(|(name, var)| {
            let listed = var.allow.first().cloned();
            let value = listed.or_else(|| Some(format!("x.{}", var.suffixes.first()?)))?;
            Some((name.clone(), value))
        })
        .collect();
    let asked = Authorization { state: &access, scopes: &[], challenge: None, vars: &vars };
    let _ = request::authorize_url(&client, &asked);
    let _ = request::code_exchange(&client, &access, None, "https://b.example/c", &vars);
    let _ = request::client_credentials(&client, &[], &vars);
    let tokens = CurrentTokens { refresh: &access, access: &access };
    let _ = request::refresh(&client, tokens, "https://b.example/c", &vars);
    let _ = request::account(&client, &access, &vars);
    let _ = request::api_base_url(&client, &vars);
    let _ = request::resource_headers(&client, &access, &vars);
}

const WRITTEN: [&str; 3] = [
    include_str!("../../../config/providers/admitad.toml"),
    include_str!("../../../config/providers/amocrm.toml"),
    include_str!("../../../config/providers/divar.toml"),
];

/// A built-in profile after a bad day: lines lost, doubled, moved, or written anew.
fn mutated() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("\"{\"".to_owned()),
        Just("\"https://{account_host}.evil.com/x\"".to_owned()),
        Just("\"javascript:alert(1)\"".to_owned()),
        Just("\"//x\"".to_owned()),
        Just("[]".to_owned()),
        Just("{ a = 1 }".to_owned()),
        Just("-1".to_owned()),
        Just("\"0s\"".to_owned()),
        Just("\"999999999999999d\"".to_owned()),
        Just("9223372036854775807".to_owned()),
        Just("nan".to_owned()),
        ".{0,12}",
        "\"[^\"\\\\\\x00-\\x1f]{0,16}\"",
    ];
    let change = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5, value);
    (prop::sample::select(&WRITTEN[..]), prop::collection::vec(change, 1..4)).prop_map(
        |(text, changes)| {
            let comment = |line: &&str| !line.is_empty() && !line.starts_with('#');
            let mut lines: Vec<_> = text.lines().filter(comment).map(str::to_owned).collect();
            for (at, to, what, value) in changes {
                let (at, to) = (at.index(lines.len()), to.index(lines.len()));
                match (what, lines[at].split_once(" = ")) {
                    (0, _) if lines.len() > 1 => drop(lines.remove(at)),
                    (1, _) => lines.insert(to, lines[at].clone()),
                    (2, _) => lines.swap(at, to),
                    (_, Some((key, _))) => lines[at] = format!("{key} = {value}"),
                    _ => lines[at] = value,
                }
            }
            lines.join("\n")
        },
    )
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn any_text_is_a_profile_or_refused_in_one_line(
        text in "([a-z]{1,6}|=|\\[|\\]|\\{|\\}|\"|'|\n|#|\\.| |[0-9]|\\PC){0,60}",
    ) {
        if let Err(line) = load(&text) {
            prop_assert!(!line.contains('\n'), "{}", line);
        }
    }

    #[test]
    fn a_mutated_profile_makes_requests_or_is_refused_in_one_line(text in mutated()) {
        match load(&text) {
            Ok(profile) => {
                prop_assert!(profile.check().is_ok());
                use_it(profile);
            }
            Err(line) => {
                prop_assert!(!line.contains('\n') && !line.contains('\r'), "{}", line);
                prop_assert!(line.contains("mine.toml"), "{}", line);
                prop_assert!(line.len() < 1_000, "{}", line.len());
            }
        }
    }
}

/// T64: the tolerant reader looks at each byte a fixed number of times, whatever they are.
#[test]
fn the_largest_body_is_salvaged_in_one_pass() {
    for unit in [
        r#""refresh_token""#,
        r#""refresh_token":""#,
        r#""refresh_token":"\"#,
        r#""refresh_token":"\""#,
        r#""refresh_token":"a","#,
        "\"",
        "\\",
        "[",
        "{\"a\":",
        "refresh_token=",
    ] {
        let body = unit.repeat(crate::provider::MAX_BODY / unit.len());
        let _ = salvage::refresh_token(body.as_bytes());
        let _ = read_grant(&test_support::profile("avito"), &reply(200, &body));
    }
}
