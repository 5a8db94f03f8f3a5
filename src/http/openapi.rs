//! The OpenAPI document, generated from the handlers.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use utoipa::openapi::{
    InfoBuilder, LicenseBuilder, OpenApi,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

/// The description of the internal listener's API, as OpenAPI 3.1.
pub fn openapi() -> OpenApi {
    complete(super::api_router().into_openapi())
}

/// Adds the title and the security schemes, which the handlers cannot express.
pub(crate) fn complete(mut api: OpenApi) -> OpenApi {
    api.info = InfoBuilder::new()
        .title("token-broker")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Fresh OAuth2 access tokens for internal services. Errors are RFC 9457 problems with a \
             stable `code`; those of the token endpoint follow RFC 6749.",
        ))
        .license(Some(LicenseBuilder::new().name(env!("CARGO_PKG_LICENSE")).build()))
        .build();
    let components = api.components.get_or_insert_default();
    for (name, about) in [
        ("service_key", "A service's key (`tbs_…`)"),
        ("operator_key", "An operator's key (`tbo_…`)"),
    ] {
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(about)).build();
        components.add_security_scheme(name, SecurityScheme::Http(scheme));
    }
    api
}

pub(crate) fn answer(document: &OpenApi) -> Response {
    Json(document).into_response()
}
