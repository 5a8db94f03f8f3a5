//! Properties of the functions that first read hostile input to the two listeners.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use secrecy::ExposeSecret as _;

use super::{
    consent::{is_random, single_params},
    oauth2::{basic_credentials, credentials, plain, read_form},
    token::preferred_wait,
};
use crate::{domain::slug::Slug, properties::cases, seal::secret};

/// A header of any bytes that HTTP lets through.
fn header_value() -> impl Strategy<Value = HeaderValue> {
    let bytes = prop::collection::vec(any::<u8>(), 0..120);
    bytes.prop_filter_map("a header's value", |bytes| HeaderValue::from_bytes(&bytes).ok())
}

/// Percent-encodes every byte.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |all, byte| all + &format!("%{byte:02X}"))
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_callback_has_each_parameter_once(
        pairs in prop::collection::vec(("[a-d]{1,2}", ".{0,20}"), 0..6),
    ) {
        let query: Vec<_> =
            pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let params = single_params(&query.join("&"));
        let mut names: Vec<_> = pairs.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        match params {
            Some(params) => {
                prop_assert_eq!(params.len(), pairs.len());
                prop_assert!(pairs.iter().all(|(name, value)| params[name] == *value));
            }
            None => prop_assert!(names.len() < pairs.len()),
        }
    }

    #[test]
    fn any_query_is_read_or_refused(query in "[a-z=&%;+0-9\\PC]{0,80}") {
        let names = url::form_urlencoded::parse(query.as_bytes()).count();
        if let Some(params) = single_params(&query) {
            prop_assert_eq!(params.len(), names);
        }
    }

    #[test]
    fn a_secret_is_43_characters_and_nothing_else(
        text in "[A-Za-z0-9_-]{40,46}|.{43}|[A-Za-z0-9_ =+/-]{43}",
    ) {
        let ours = text.len() == 43
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        prop_assert_eq!(is_random(&text), ours);
    }

    #[test]
    fn any_preference_is_read_or_ignored(value in header_value(), wait in any::<u64>()) {
        let mut headers = HeaderMap::new();
        headers.append("prefer", value);
        let _ = preferred_wait(&headers);
        // One header does not hide another, unless both say the same.
        prop_assume!(preferred_wait(&headers).is_none());
        let text = headers["prefer"].to_str().unwrap_or_default().to_ascii_lowercase();
        prop_assume!(!text.contains("wait"));
        headers.append("prefer", format!("wait={wait}").parse().unwrap());
        prop_assert_eq!(preferred_wait(&headers).map(|wait| wait.as_secs()), Some(wait));
    }

    #[test]
    fn any_authorization_is_read_or_refused(value in header_value(), bytes: Vec<u8>) {
        let _ = basic_credentials(&value);
        let value = format!("Basic {}", STANDARD.encode(bytes));
        let _ = basic_credentials(&value.parse().unwrap());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the secrets of this test are made up")]
    fn basic_credentials_come_through_whole(id in ".{0,40}", key in ".{0,40}") {
        let pair = STANDARD.encode(format!("{}:{}", encoded(&id), encoded(&key)));
        let read = basic_credentials(&format!("Basic {pair}").parse().unwrap());
        let (read_id, read_key) = read.unwrap();
        prop_assert_eq!((read_id.as_str(), read_key.expose_secret()), (&*id, &*key));
    }

    #[test]
    fn a_form_names_a_connection_or_none(body in "(grant_type=|resource=|scope=|client_id=|client_secret=|&|=|%2F|%00|https?://|127\\.0\\.0\\.1:8081|/v1/connections/|[a-z]{1,5}|\\PC){0,12}") {
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded; charset=x");
        headers.insert(header::CONTENT_TYPE, kind);
        let form = futures_util::FutureExt::now_or_never(read_form(&headers, Body::from(body)));
        if let Ok(form) = form.unwrap() {
            let _ = credentials(&headers, &form);
            let internal_url = "http://127.0.0.1:8081".parse().unwrap();
            if let Ok(name) = form.connection(&internal_url) {
                prop_assert!(name.parse::<Slug>().is_ok(), "{}", name);
            }
        }
    }

    #[test]
    fn a_description_is_what_rfc_6749_allows(text in ".{0,80}") {
        let ok = |byte: u8| matches!(byte, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        prop_assert!(plain(&text).bytes().all(ok));
    }
}

/// T10: 256 bits of the operating system's generator, and neither a number nor a UUID.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test looks at what random secrets look like")]
fn random_secrets_differ_and_use_their_whole_alphabet() {
    let all: std::collections::HashSet<String> =
        (0..10_000).map(|_| secret::random().expose_secret().to_owned()).collect();
    assert_eq!(all.len(), 10_000);
    assert!(all.iter().all(|text| is_random(text) && uuid::Uuid::parse_str(text).is_err()));
    // The last character carries four bits, so 16 of the 64; every other place has them all.
    for place in 0..42 {
        let seen: std::collections::HashSet<_> =
            all.iter().map(|text| text.as_bytes()[place]).collect();
        assert_eq!(seen.len(), 64, "place {place}");
    }
}
