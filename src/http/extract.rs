//! Extractors of paths and JSON bodies. A problem says which form was expected.

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use super::{AppState, Problem};

/// The largest request body, in bytes.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// The parameters of the path.
#[derive(Debug)]
pub(crate) struct PathParam<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<AppState> for PathParam<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let Path(segment) = Path::from_request_parts(parts, state).await.map_err(|_| {
            Problem::new(StatusCode::NOT_FOUND, "not_found", "the path is not valid UTF-8")
        })?;
        Ok(Self(segment))
    }
}

/// A JSON body of the given form.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, Problem> {
        let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY).await.map_err(|_| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "the body is larger than 64 KiB or did not arrive whole",
            )
        })?;
        // A body may be left out where every member may.
        let bytes = if bytes.is_empty() { b"{}" } else { bytes.as_ref() };
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(Problem::invalid("the body does not fit: expected a JSON object"));
        }
        let mut json = serde_json::Deserializer::from_slice(bytes);
        T::deserialize(&mut json)
            .and_then(|value| json.end().map(|()| value))
            .map(Self)
            .map_err(|error| Problem::invalid(describe(&error)))
    }
}

/// The problem with a body. Unknown and missing members are named; a value is never quoted.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match error.classify() {
        serde_json::error::Category::Data => {
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
            let text = match text.rsplit_once(", expected ") {
                Some((found, expected)) if !found.starts_with("unknown field") => {
                    format!("expected {expected}")
                }
                _ if text.starts_with('`') => match text.split_once("` is not a ") {
                    // A key that was pasted into the wrong place.
                    Some((_, rule)) => format!("a value is not a {rule}"),
                    None => "a value is not allowed".to_owned(),
                },
                _ => text.chars().take(200).collect(),
            };
            format!("the body does not fit: {text}")
        }
        _ => {
            format!("the body is not valid JSON (line {}, column {})", error.line(), error.column())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::domain::slug::Slug;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only their errors are read")]
    struct Asked {
        name: Slug,
        count: Option<u32>,
    }

    /// The sentences of `serde_json` that `describe` takes apart: an upgrade may reword them.
    #[test]
    fn each_sentence_names_the_member_and_never_the_value() {
        for (body, expected) in [
            (r#"{"name":"a","nme":"secret"}"#, "unknown field `nme`, expected `name` or `count`"),
            ("{}", "missing field `name`"),
            (r#"{"name":["secret"]}"#, "expected a string"),
            (r#"{"name":"a","count":"secret"}"#, "expected u32"),
            (r#"{"name":"Not A Name"}"#, "a value is not a name"),
        ] {
            let error = serde_json::from_str::<Asked>(body).err().unwrap();
            let described = describe(&error);
            let said = described.strip_prefix("the body does not fit: ").unwrap();
            assert!(said.starts_with(expected), "{body}: {said}");
        }
        let error = serde_json::from_str::<Asked>("{\n\"name\": secret}").err().unwrap();
        assert_eq!(describe(&error), "the body is not valid JSON (line 2, column 9)");
    }
}
