//! amoCRM's errors: `application/problem+json` without an RFC 6749 `error`.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// An error of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Problem<'a> {
    /// 400 of the token endpoint; the hint is all that tells one from another.
    Bad { hint: &'static str },
    /// 401 of the token endpoint for a refresh token.
    Unusable { hint: &'static str },
    /// A wrong client or secret: no hint at all.
    Client,
    /// The API without a live token of this account.
    Unauthorized,
    /// A path, or an account's host, that does not exist.
    NotFound(&'a str),
    /// Too soon after the last one.
    TooManyRequests,
}

impl Problem<'_> {
    pub(super) fn bad(hint: &'static str) -> Self {
        Self::Bad { hint }
    }
}

impl IntoResponse for Problem<'_> {
    fn into_response(self) -> Response {
        let (status, body) = match self {
            Self::Bad { hint } => oauth(StatusCode::BAD_REQUEST, hint),
            Self::Unusable { hint } => oauth(StatusCode::UNAUTHORIZED, hint),
            Self::Client => (
                StatusCode::UNAUTHORIZED,
                json!({
                    "title": "Некорректный клиент",
                    "type": "https://developers.amocrm.ru/v3/errors/OAuthProblemJson",
                    "status": 401,
                    "detail": "Авторизация клиента не прошла",
                }),
            ),
            Self::Unauthorized => {
                api(StatusCode::UNAUTHORIZED, "Unauthorized", "Invalid user name or password")
            }
            Self::NotFound(path) => {
                api(StatusCode::NOT_FOUND, "Not Found", &format!("Cannot GET {path}"))
            }
            Self::TooManyRequests => {
                let (status, mut body) =
                    api(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests", "Once in 5 minutes");
                body["retry_after"] = json!(300);
                (status, body)
            }
        };
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, content_type, body.to_string()).into_response()
    }
}

fn oauth(status: StatusCode, hint: &str) -> (StatusCode, Value) {
    let body = json!({
        "hint": hint,
        "title": "Некорректный запрос",
        "type": "https://developers.amocrm.ru/v3/errors/OAuthProblemJson",
        "status": status.as_u16(),
        "detail": "В запросе отсутствует ряд параметров или параметры невалидны",
    });
    (status, body)
}

fn api(status: StatusCode, title: &str, detail: &str) -> (StatusCode, Value) {
    let body = json!({
        "title": title,
        "type": format!("https://httpstatus.es/{}", status.as_u16()),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, body)
}
