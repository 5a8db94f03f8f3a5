//! Divar's token endpoint: Hydra's checks in Hydra's order, and the parameters Divar documents.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::Divar;
use crate::{
    seal::secret::Digest,
    simulator::{
        hydra::OAuthError,
        ledger::{Authorisation, Pair, Refusal},
        oracle::End,
        request::{self, Params, TokenRequest},
        settings::{Hydra, RefreshParameters},
        shape,
    },
};

pub(super) async fn token(
    State(divar): State<Arc<Divar>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    request::token(&divar.core, &headers, body, |request| {
        divar.grant(request).unwrap_or_else(OAuthError::into_response)
    })
    .await
}

impl Divar {
    fn grant(&self, request: &TokenRequest) -> Result<Response, OAuthError> {
        // Hydra reads a form and nothing else: JSON is an empty form to it.
        let none = Params::default();
        let params = match request.encoding {
            request::Encoding::Form => &request.params,
            _ => &none,
        };
        if params.is_empty() {
            return Err(OAuthError::invalid_request("The POST body can not be empty."));
        }
        let grant_type = params.get("grant_type").ok_or_else(|| {
            OAuthError::invalid_request("Request parameter 'grant_type' is missing")
        })?;
        self.check_client(request)?;
        match grant_type {
            "authorization_code" => self.redeem(params),
            "refresh_token" => self.refresh(params),
            "client_credentials" => Err(OAuthError::unauthorized_client(
                "The OAuth 2.0 Client is not allowed to use authorization grant \
                 'client_credentials'.",
            )),
            _ => Err(OAuthError::invalid_request("")),
        }
    }

    /// The client is registered for `client_secret_post`, and Hydra ties it to that one method.
    pub(super) fn check_client(&self, request: &TokenRequest) -> Result<(), OAuthError> {
        if request.basic.is_some() {
            return Err(OAuthError::invalid_client(
                "The OAuth 2.0 Client supports client authentication method 'client_secret_post', \
                 but method 'client_secret_basic' was requested. You must configure the OAuth 2.0 \
                 client's 'token_endpoint_auth_method' value to accept 'client_secret_basic'.",
            ));
        }
        let params = &request.params;
        if !params.is("client_id", &self.settings.client_id) {
            let hint = "The requested OAuth 2.0 Client does not exist.";
            return Err(OAuthError::invalid_client(hint));
        }
        params
            .is("client_secret", &self.settings.simulated_client_secret)
            .then_some(())
            .ok_or_else(|| OAuthError::invalid_client(""))
    }

    fn redeem(&self, params: &Params) -> Result<Response, OAuthError> {
        let mut ledger = self.core.ledger();
        let now = self.core.now();
        let text = params.get("code").unwrap_or_default();
        let code = match ledger.code(text, now) {
            Ok(code) => code,
            Err(Refusal::Dead(End::Redeemed)) => {
                // Reuse: another party may hold the code, so its tokens are revoked.
                ledger.revoke_chain_of(text, End::CodeReused, now);
                let hint = "The authorization code has already been used.";
                return Err(OAuthError::invalid_grant(hint));
            }
            Err(_) => return Err(OAuthError::invalid_grant("")),
        };
        let authorisation = ledger.authorisation(code);
        check_redirect_uri(&authorisation, params)?;
        check_verifier(&authorisation, params)?;
        let (access, refresh) = (shape::ory("at"), shape::ory("rt"));
        let pair = self.pair(&authorisation, &access, &refresh);
        ledger.redeem(code, pair, now);
        Ok(Self::answer(&authorisation, pair))
    }

    fn refresh(&self, params: &Params) -> Result<Response, OAuthError> {
        let mut ledger = self.core.ledger();
        let now = self.core.now();
        let text = params.get("refresh_token").unwrap_or_default();
        let old =
            ledger.refresh(text, now).map_err(|refusal| match (refusal, self.settings.hydra) {
                (Refusal::Dead(End::Expired), _) => {
                    OAuthError::invalid_grant("The refresh token expired.")
                }
                (Refusal::Dead(End::Rotated), Hydra::Current) => {
                    OAuthError::invalid_grant("The refresh token was already used.")
                }
                (Refusal::Dead(_), Hydra::Old) => OAuthError::token_inactive(),
                (Refusal::Unknown | Refusal::Dead(_), _) => {
                    OAuthError::invalid_grant("The refresh token is malformed or not valid.")
                }
            })?;
        let authorisation = ledger.authorisation(old);
        if self.settings.refresh_parameters == RefreshParameters::Required {
            let current = params.get("code");
            if !current.is_some_and(|access| ledger.issued_together(access, old)) {
                let hint = "Parameter 'code' must be the current access token.";
                return Err(OAuthError::invalid_request(hint));
            }
            check_redirect_uri(&authorisation, params)?;
        }
        let (access, refresh) = (shape::ory("at"), shape::ory("rt"));
        let pair = self.pair(&authorisation, &access, &refresh);
        let pair = ledger.rotate(old, pair, now);
        Ok(Self::answer(&authorisation, pair))
    }

    /// The refresh token is there only with `offline_access`.
    fn pair<'t>(&self, of: &Authorisation, access: &'t str, refresh: &'t str) -> Pair<'t> {
        let offline = of.scopes.iter().any(|scope| scope == "offline_access");
        Pair {
            access: (access, self.settings.access_life),
            refresh: offline.then_some((refresh, self.settings.refresh_life)),
        }
    }

    fn answer(authorisation: &Authorisation, pair: Pair<'_>) -> Response {
        let mut body = json!({
            "access_token": pair.access.0,
            "expires_in": pair.access.1,
            "scope": authorisation.scopes.join(" "),
            "token_type": "bearer",
        });
        if let Some((refresh, _)) = pair.refresh {
            body["refresh_token"] = json!(refresh);
        }
        let headers = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
        (headers, Json(body)).into_response()
    }
}

fn check_redirect_uri(authorisation: &Authorisation, params: &Params) -> Result<(), OAuthError> {
    let same = authorisation.redirect_uri.as_deref() == params.get("redirect_uri");
    same.then_some(()).ok_or_else(|| {
        OAuthError::invalid_grant(
            "The 'redirect_uri' from this request does not match the one from the authorize \
             request.",
        )
    })
}

/// PKCE (RFC 7636), for a client that began with it.
fn check_verifier(authorisation: &Authorisation, params: &Params) -> Result<(), OAuthError> {
    let Some(challenge) = &authorisation.challenge else { return Ok(()) };
    let verifier = params.get("code_verifier").unwrap_or_default();
    let digest = Digest::of_bytes(verifier.as_bytes());
    (URL_SAFE_NO_PAD.encode(digest.as_bytes()) == *challenge).then_some(()).ok_or_else(|| {
        OAuthError::invalid_grant("The PKCE code challenge did not match the code verifier.")
    })
}
