//! `healthcheck`: for containers.

use std::{net::Ipv4Addr, path::Path};

use reqwest::{Method, StatusCode};
use url::Url;

use super::{
    CliError,
    args::Healthcheck,
    environment,
    running::{ApiClient, stranger},
    say,
};
use crate::config::Config;

pub(crate) async fn healthcheck(config: Option<&Path>, args: &Healthcheck) -> Result<(), CliError> {
    let url = if let Some(url) = &args.url {
        url.clone()
    } else {
        // The listener, not the URL: a container checks itself.
        let mut listen = Config::load(config, environment())?.internal_listen;
        if listen.ip().is_unspecified() {
            listen.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Url::parse(&format!("http://{listen}")).map_err(CliError::internal)?
    };
    let asked = ApiClient::at(&url)?.send(Method::GET, &["health", "ready"], &[], None).await?;
    match asked.0 {
        StatusCode::NO_CONTENT => say("ready"),
        StatusCode::SERVICE_UNAVAILABLE => {
            Err(CliError::unavailable(format!("the broker at {url} is not ready; see {url}health")))
        }
        _ => Err(stranger(&url)),
    }
}
