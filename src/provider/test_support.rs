//! Profiles and clients for this room's tests.

use std::{collections::BTreeMap, sync::Arc};

use super::{Catalogue, Profile, client::Client};
use crate::domain::connection::GrantType;

pub(super) fn profile(name: &str) -> Arc<Profile> {
    Arc::clone(Catalogue::load(None, &BTreeMap::new()).unwrap().get(name).unwrap())
}

/// A client in which every value shows its origin.
pub(super) fn client(provider: &str) -> Client {
    of(profile(provider))
}

pub(super) fn of(profile: Arc<Profile>) -> Client {
    let settings = profile.client.keys();
    Client {
        name: profile.name.clone(),
        settings: settings.map(|name| (name.clone(), format!("«{name}»").into())).collect(),
        profile,
        client_id: "«client_id»".to_owned(),
        client_secret: "«client_secret»".into(),
        scopes: Vec::new(),
        services: Vec::new(),
        grant_type: GrantType::AuthorizationCode,
        redirect_uri: "https://broker.example/callback/main".to_owned(),
    }
}
