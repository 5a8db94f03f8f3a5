//! Error answers of every provider as they were seen or documented, and what each must mean.

use std::time::Duration;

use strum::VariantArray as _;

use super::replies::reply;
use crate::{
    domain::broker_code,
    provider::{Profile, Verdict, error::ErrorCode, read_grant, test_support},
};

const BUSY: Verdict = Verdict::Busy { retry_after: None };

fn refused(reason: &str) -> Verdict {
    Verdict::Refused { reason: reason.to_owned() }
}

/// A provider's answers: status, body, verdict.
type Transcript = Vec<(u16, String, Verdict)>;

fn amocrm() -> Transcript {
    let hint = |status: u16, hint: &str, verdict| {
        let body = format!(
            r#"{{"hint":"{hint}","title":"Некорректный запрос","type":"https://developers.amocrm.ru/v3/errors/OAuthProblemJson","status":{status},"detail":"В запросе отсутствует ряд параметров или параметры невалидны"}}"#
        );
        (status, body, verdict)
    };
    let no_hint = r#"{"title":"Некорректный клиент","type":"https://developers.amocrm.ru/v3/errors/OAuthProblemJson","status":401,"detail":"Авторизация клиента не прошла"}"#;
    let limited = r#"{"title":"Too Many Requests","type":"https://httpstatus.es/429","status":429,"detail":"x","retry_after":300}"#;
    let wait = Some(Duration::from_mins(5));
    vec![
        hint(401, "Token has been revoked", refused("revoked")),
        hint(401, "Token is not linked to client", refused("foreign_token")),
        hint(401, "Token has expired", refused("idle_expired")),
        hint(401, "Cannot decrypt the refresh token", refused("damaged_token")),
        hint(400, "Authorization code has expired", refused("code_expired")),
        hint(401, "Authorization code has expired", refused("code_expired")),
        hint(400, "Authorization code has been revoked", refused("code_used")),
        hint(400, "Cannot decrypt the authorization code", refused("code_damaged")),
        hint(400, "Check the `client_id` parameter", Verdict::Misconfigured),
        hint(400, "Check the `client_secret` parameter", Verdict::Misconfigured),
        hint(400, "Redirect URI is not associated with client", Verdict::Misconfigured),
        hint(400, "Invalid account", Verdict::Misconfigured),
        hint(400, "A hint that nobody has seen", Verdict::Retry),
        hint(401, "A hint that nobody has seen", Verdict::Retry),
        hint(500, "Token has been revoked", Verdict::Ambiguous),
        (401, no_hint.to_owned(), Verdict::Misconfigured),
        (403, "<html><head><title>403 Forbidden</title></head></html>".to_owned(), BUSY),
        (404, "<html>".to_owned(), Verdict::Ambiguous),
        (429, limited.to_owned(), Verdict::Busy { retry_after: wait }),
        (500, r#"{"title":"ErrInternalServer","status":500}"#.to_owned(), Verdict::Ambiguous),
        (504, String::new(), Verdict::Ambiguous),
    ]
}

fn avito() -> Transcript {
    let answer = |status, body: &str, verdict| (status, body.to_owned(), verdict);
    vec![
        answer(404, r#"{"message":"no Route matched with those values"}"#, Verdict::Misconfigured),
        // Not documented: both shapes must do.
        answer(400, r#"{"error":"invalid_grant"}"#, refused("revoked")),
        answer(200, r#"{"error":"invalid_grant"}"#, refused("revoked")),
        answer(401, r#"{"error":"invalid_client"}"#, Verdict::Misconfigured),
        answer(200, r#"{"error":"invalid_client"}"#, Verdict::Misconfigured),
        answer(401, r#"{"error":{"code":401,"message":"Unauthorized"}}"#, Verdict::Retry),
        answer(403, r#"{"error":{"code":403,"message":"Forbidden"}}"#, Verdict::Retry),
        answer(
            403,
            r#"{"result":{"status":false,"message":"invalid access token"}}"#,
            Verdict::Retry,
        ),
        answer(402, r#"{"error":{"code":402,"message":"Payment required"}}"#, Verdict::Retry),
        answer(429, r#"{"error":{"code":429,"message":"x"}}"#, BUSY),
        answer(503, r#"{"error":{"code":503,"message":"x"}}"#, Verdict::Ambiguous),
    ]
}

fn admitad() -> Transcript {
    let error = |status, code: u8, error: &str, verdict| {
        let body = format!(r#"{{"error":"{error}","error_description":"x","error_code":{code}}}"#);
        (status, body, verdict)
    };
    vec![
        error(401, 0, "invalid_token", Verdict::Retry),
        error(401, 1, "invalid_token", Verdict::Retry),
        error(403, 2, "insufficient_scope", Verdict::Misconfigured),
        error(400, 3, "invalid_request", Verdict::Misconfigured),
        error(503, 4, "request_limit", BUSY),
        error(400, 5, "unavailable", refused("revoked")),
        error(401, 5, "invalid_grant", refused("revoked")),
        error(503, 5, "unavailable", Verdict::Ambiguous),
        error(400, 6, "too_many_tokens", BUSY),
        (
            401,
            r#"{"error":"invalid_client","error_description":"client_id x doesn't exist"}"#.into(),
            Verdict::Misconfigured,
        ),
        (503, "<html>down</html>".to_owned(), Verdict::Ambiguous),
    ]
}

fn divar() -> Transcript {
    let error = |status, error: &str, description: &str, verdict| {
        let body = format!(r#"{{"error":"{error}","error_description":"{description}"}}"#);
        (status, body, verdict)
    };
    let gone = || refused("revoked");
    vec![
        error(401, "invalid_client", "Client authentication failed (x)", Verdict::Misconfigured),
        error(400, "invalid_grant", "The provided authorization grant is invalid.", gone()),
        error(400, "invalid_grant", "The authorization code has already been used.", gone()),
        error(400, "invalid_grant", "The refresh token is malformed or not valid.", gone()),
        error(400, "invalid_grant", "The refresh token expired.", gone()),
        error(400, "invalid_grant", "The refresh token was already used.", gone()),
        error(401, "token_inactive", "Token is inactive.", gone()),
        error(400, "invalid_scope", "The client is not allowed it.", Verdict::Misconfigured),
        error(400, "invalid_request", "Please retry the request.", Verdict::Retry),
        error(500, "server_error", "x", Verdict::Ambiguous),
        error(500, "error", "two refreshes at once, in older versions", Verdict::Ambiguous),
        error(503, "temporarily_unavailable", "x", Verdict::Ambiguous),
        error(429, "rate_limited", "x", BUSY),
    ]
}

fn transcripts() -> Vec<(&'static str, Transcript)> {
    vec![
        ("admitad", admitad()),
        ("amocrm", amocrm()),
        ("avito", avito()),
        ("divar", divar()),
        ("kommo", amocrm()),
    ]
}

fn verdict(profile: &Profile, status: u16, body: &str) -> Verdict {
    read_grant(profile, &reply(status, body)).unwrap_err().verdict
}

#[test]
fn every_known_refusal_means_what_it_should() {
    for (provider, transcript) in transcripts() {
        let profile = test_support::profile(provider);
        for (status, body, expected) in transcript {
            assert_eq!(verdict(&profile, status, &body), expected, "{provider} {status} {body}");
        }
    }
}

#[test]
fn no_rule_can_be_taken_away_unnoticed() {
    for (provider, transcript) in transcripts() {
        let profile = test_support::profile(provider);
        for number in 0..profile.errors.len() {
            let mut without = (*profile).clone();
            let rule = without.errors.remove(number);
            let noticed = transcript
                .iter()
                .any(|(status, body, expected)| verdict(&without, *status, body) != *expected);
            assert!(noticed, "{provider}: nothing needs {rule:?}");
        }
    }
}

#[test]
fn what_nobody_listed_is_never_a_refusal() {
    for (provider, _) in transcripts() {
        let profile = test_support::profile(provider);
        for status in (300..600).chain([200]) {
            for body in ["", "<html>", "{}", r#"{"error":"something"}"#, r#"{"message":"x"}"#] {
                let verdict = verdict(&profile, status, body);
                assert!(!matches!(verdict, Verdict::Refused { .. }), "{provider} {status} {body}");
            }
        }
        for status in [429, 500, 502, 503, 504, 520] {
            let verdict = verdict(&profile, status, r#"{"error":"invalid_grant","error_code":5}"#);
            assert!(!matches!(verdict, Verdict::Refused { .. }), "{provider} {status}");
        }
    }
}

#[test]
fn no_provider_is_quoted_with_a_word_of_ours() {
    let profile = test_support::profile("divar");
    let read = |status, word: &str| {
        let body = format!(r#"{{"error":"{word}"}}"#);
        read_grant(&profile, &reply(status, body)).unwrap_err()
    };
    for status in [200, 400, 401, 403, 429, 500, 503] {
        assert_eq!(read(status, "slow_down").code, "slow_down");
        let ours = ErrorCode::VARIANTS.iter().map(<&str>::from).chain(broker_code::ALL);
        for word in ours.chain(["http_200", "http_401"]) {
            let error = read(status, word);
            let ours = if status == 200 { "no_access_token" } else { &*format!("http_{status}") };
            assert_eq!((&*error.code, error.status), (ours, Some(status)), "{word}");
            assert_eq!(error.verdict, read(status, "slow_down").verdict, "{word}");
        }
    }
}

#[test]
fn http_alone_says_what_it_can() {
    let profile = test_support::profile("divar");
    for status in [301, 302, 303, 307, 308] {
        assert_eq!(verdict(&profile, status, ""), Verdict::Misconfigured, "{status}");
    }
    for (status, body) in [(408, "{}"), (404, "<html>"), (400, ""), (403, "denied")] {
        assert_eq!(verdict(&profile, status, body), Verdict::Ambiguous, "{status}");
    }
    let mut overloaded = reply(503, "");
    overloaded.retry_after = Some(Duration::from_secs(7));
    let error = read_grant(&profile, &overloaded).unwrap_err();
    assert_eq!(error.verdict, Verdict::Busy { retry_after: overloaded.retry_after });
    assert_eq!((error.status, &*error.code), (Some(503), "http_503"));
}
