//! amoCRM's token endpoint, on the account's own host.

use axum::{
    Json,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use uuid::Uuid;

use super::{Amocrm, Product, problem::Problem};
use crate::{
    seal::secret::random_bytes,
    simulator::{
        ledger::{Id, Ledger, Pair, Refusal},
        oracle::End,
        request::{Params, TokenRequest},
        settings::AmocrmAccount,
        shape,
    },
};

/// The grant that a request names, checked but not yet spent.
enum Presented {
    Code(Id),
    Refresh(Id),
}

impl Amocrm {
    /// JSON and form bodies are read alike; HTTP Basic is not read at all.
    pub(super) fn answer(&self, account: &AmocrmAccount, request: &TokenRequest) -> Response {
        self.grant(account, &request.params).unwrap_or_else(Problem::into_response)
    }

    fn grant(
        &self,
        account: &AmocrmAccount,
        params: &Params,
    ) -> Result<Response, Problem<'static>> {
        let mut ledger = self.core.ledger();
        let now = self.core.now();
        let presented = match params.get("grant_type") {
            Some("authorization_code") => {
                self.check_client(params)?;
                Presented::Code(self.code(&ledger, params)?)
            }
            Some("refresh_token") => {
                self.check_client(params)?;
                Presented::Refresh(self.refresh(&mut ledger, params)?)
            }
            // The library's answer to a grant that it does not offer.
            _ => return Err(Problem::bad("Check that all required parameters have been provided")),
        };
        let (Presented::Code(id) | Presented::Refresh(id)) = presented;
        if ledger.authorisation(id).account != account.id.to_string() {
            return Err(Problem::bad("Invalid account"));
        }

        let access = self.access_token(account);
        let refresh = format!("def50200{}", shape::hex::<492>());
        let pair = Pair {
            access: (&access, self.settings.access_life),
            refresh: Some((&refresh, self.settings.refresh_life)),
        };
        let pair = match presented {
            Presented::Code(code) => {
                ledger.redeem(code, pair, now);
                pair
            }
            Presented::Refresh(old) => ledger.rotate(old, pair, now),
        };
        let mut body = json!({
            "token_type": "Bearer",
            "expires_in": pair.access.1,
            "access_token": pair.access.0,
        });
        if let Some((refresh, _)) = pair.refresh {
            body["refresh_token"] = json!(refresh);
        }
        if self.product == Product::Kommo {
            body["server_time"] = json!(now.as_second() + self.settings.server_time_skew);
        }
        Ok(Json(body).into_response())
    }

    fn check_client(&self, params: &Params) -> Result<(), Problem<'static>> {
        let client_id = params
            .get("client_id")
            .filter(|id| Uuid::try_parse(id).is_ok())
            .ok_or(Problem::bad("Check the `client_id` parameter"))?;
        let client_secret = params
            .get("client_secret")
            .ok_or(Problem::bad("Check the `client_secret` parameter"))?;
        let ours = client_id == self.settings.client_id
            && client_secret == self.settings.simulated_client_secret;
        ours.then_some(()).ok_or(Problem::Client)
    }

    /// Byte for byte: a trailing slash is enough to fail.
    fn check_redirect_uri(&self, params: &Params) -> Result<(), Problem<'static>> {
        let sent =
            params.get("redirect_uri").ok_or(Problem::bad("Check the `redirect_uri` parameter"))?;
        (self.settings.redirect_uri.as_deref() == Some(sent))
            .then_some(())
            .ok_or(Problem::bad("Redirect URI is not associated with client"))
    }

    fn code(&self, ledger: &Ledger, params: &Params) -> Result<Id, Problem<'static>> {
        let text = params.get("code").ok_or(Problem::bad("Check the `code` parameter"))?;
        let code = ledger.code(text, self.core.now()).map_err(|refusal| match refusal {
            Refusal::Unknown => Problem::bad("Cannot decrypt the authorization code"),
            Refusal::Dead(End::Expired) => Problem::bad("Authorization code has expired"),
            Refusal::Dead(_) => Problem::bad("Authorization code has been revoked"),
        })?;
        self.check_redirect_uri(params).map(|()| code)
    }

    fn refresh(&self, ledger: &mut Ledger, params: &Params) -> Result<Id, Problem<'static>> {
        self.check_redirect_uri(params)?;
        let text = params
            .get("refresh_token")
            .ok_or(Problem::bad("Check the `refresh_token` parameter"))?;
        ledger.refresh(text, self.core.now()).map_err(|refusal| {
            let hint = match refusal {
                Refusal::Unknown => "Cannot decrypt the refresh token",
                Refusal::Dead(End::Expired) => "Token has expired",
                Refusal::Dead(_) => "Token has been revoked",
            };
            Problem::Unusable { hint }
        })
    }

    /// A JWT of about a kilobyte. Its signature is noise: clients cannot verify the real one either.
    fn access_token(&self, account: &AmocrmAccount) -> String {
        let now = self.core.now().as_second();
        let id = shape::hex::<40>();
        let domain = self.product.suffix().trim_start_matches('.');
        let mut claims = json!({
            "aud": self.settings.client_id,
            "jti": id,
            "iat": now,
            "nbf": now,
            "exp": now + i64::from(self.settings.access_life),
            "sub": account.user_id.to_string(),
            "grant_type": "",
            "account_id": account.id,
            "base_domain": domain,
            "version": 2,
            "scopes": self.settings.scopes,
            "hash_uuid": Uuid::from_bytes(random_bytes()).to_string(),
            "user_flags": 0,
        });
        if self.settings.api_domain {
            claims["api_domain"] = json!(format!("api-b.{domain}"));
        }
        let header = json!({"typ": "JWT", "alg": "RS256", "jti": id});
        let part = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let (header, claims) = (header.to_string(), claims.to_string());
        let signature = part(&random_bytes::<256>());
        format!("{}.{}.{signature}", part(header.as_bytes()), part(claims.as_bytes()))
    }
}
