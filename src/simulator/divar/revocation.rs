//! Hydra's revocation endpoint (RFC 7009), for users whose provider has one: Divar's documents do not
//! mention it, so it is off unless a setting offers it.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};

use super::{Divar, problem};
use crate::simulator::{
    hydra::OAuthError,
    oracle::{End, Endpoint},
    request::{Encoding, TokenRequest},
    settings::RevocationEndpoint,
};

pub(super) async fn revoke(
    State(divar): State<Arc<Divar>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if divar.settings.revocation == RevocationEndpoint::Absent {
        return problem(StatusCode::NOT_FOUND, "There is no such page.");
    }
    let request = TokenRequest::read(&headers, &body);
    divar.core.count_call(Endpoint::Revocation, request.params.get("token"));
    let answer = || divar.revoke(&request).unwrap_or_else(OAuthError::into_response);
    match divar.core.next_revocation_fault() {
        None => answer(),
        Some((fault, cleared)) if fault.is_before_processing() => {
            fault.apply(Response::default(), cleared).await
        }
        Some((fault, cleared)) => fault.apply(answer(), cleared).await,
    }
}

impl Divar {
    /// 200 with nothing in it, whether the token was known or not.
    fn revoke(&self, request: &TokenRequest) -> Result<Response, OAuthError> {
        if request.encoding != Encoding::Form {
            return Err(OAuthError::invalid_request("The POST body can not be empty."));
        }
        self.check_client(request)?;
        let token = request.params.get("token").unwrap_or_default();
        let mut ledger = self.core.ledger();
        let now = self.core.now();
        ledger.revoke_chain_of(token, End::Revoked, now);
        Ok(StatusCode::OK.into_response())
    }
}
