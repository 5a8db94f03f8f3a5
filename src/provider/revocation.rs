//! Reading the answer to a revocation (RFC 7009 section 2.2).

use super::{
    error::{ProviderError, Verdict},
    reply::Reply,
};

/// Reads the answer to a revocation. Success means revoked, also for a token that the provider no
/// longer knows.
///
/// # Errors
///
/// [`Verdict::Refused`] when asking again would change nothing: a person has to look. Any other
/// verdict means that the token may be alive, and that it must be tried again.
pub fn read_revocation(reply: &Reply) -> Result<(), ProviderError> {
    let status = reply.status;
    let code = format!("http_{status}");
    let (verdict, message) = match status {
        200..300 => return Ok(()),
        // "The client must assume the token still exists and may retry after a reasonable delay."
        429 | 503 => {
            let busy = Verdict::Busy { retry_after: reply.retry_after };
            (busy, "The provider asks us to revoke the token later.")
        }
        400..500 if status != 408 => {
            let refused = Verdict::Refused { reason: "revocation_refused".to_owned() };
            (refused, "The provider refuses to revoke the token.")
        }
        300..400 => {
            let refused = Verdict::Refused { reason: "revocation_refused".to_owned() };
            (refused, "The provider redirects elsewhere: the revocation URL is out of date.")
        }
        _ => (Verdict::Ambiguous, "The provider failed to answer."),
    };
    Err(ProviderError::new(verdict, status, code, message))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(status: u16, retry_after: Option<Duration>) -> Result<(), Verdict> {
        let reply = Reply { status, retry_after, body: Vec::new().into() };
        read_revocation(&reply).map_err(|error| error.verdict)
    }

    #[test]
    fn success_is_done_whatever_the_token_was() {
        for status in [200, 204] {
            assert_eq!(read(status, None), Ok(()));
        }
    }

    #[test]
    fn a_refusal_is_final_and_everything_else_is_tried_again() {
        for status in [301, 400, 401, 403, 404, 405] {
            assert!(matches!(read(status, None), Err(Verdict::Refused { .. })), "{status}");
        }
        for status in [100, 408, 500, 502, 504] {
            assert_eq!(read(status, None), Err(Verdict::Ambiguous), "{status}");
        }
        let minute = Some(Duration::from_mins(1));
        for status in [429, 503] {
            assert_eq!(read(status, minute), Err(Verdict::Busy { retry_after: minute }));
        }
    }
}
