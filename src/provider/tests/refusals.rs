//! Profiles that no provider can have, and what their writer is told.

use std::{collections::BTreeMap, fs};

use crate::{
    domain::{connection::GrantType, slug::Slug},
    provider::{Catalogue, Network, ProfileError, Rotation},
};

const EXAMPLE: &str = r#"
title = "Example"
[authorize]
url = "https://id.example.com/authorize"
[token]
url = "https://id.example.com/token"
[grants.authorization_code]
client_auth = "basic"
[grants.refresh_token]
client_auth = "basic"
[resource]
base_url = "https://api.example.com"
"#;

fn overlays(name: &str, text: &str) -> BTreeMap<Slug, toml::Table> {
    [(name.parse().unwrap(), text.parse().unwrap())].into()
}

fn load(text: &str) -> Result<Catalogue, ProfileError> {
    Catalogue::load(None, &overlays("example", text))
}

/// Lays a few settings over the example.
fn change(text: &str) -> Result<Catalogue, ProfileError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("example.toml"), EXAMPLE).unwrap();
    Catalogue::load(Some(folder.path()), &overlays("example", text))
}

#[test]
fn the_five_built_in_profiles_load_and_offer_what_they_should() {
    let catalogue = Catalogue::load(None, &BTreeMap::new()).unwrap();
    let names: Vec<_> = catalogue.names().map(Slug::as_str).collect();
    assert_eq!(names, ["admitad", "amocrm", "avito", "divar", "kommo"]);
    for (name, credentials) in
        [("admitad", true), ("amocrm", false), ("avito", true), ("divar", false), ("kommo", false)]
    {
        let profile = catalogue.get(name).unwrap();
        assert_eq!(profile.network, Network::Public);
        assert_eq!(profile.grant(GrantType::ClientCredentials).is_some(), credentials, "{name}");
        assert!(profile.grant(GrantType::AuthorizationCode).is_some(), "{name}");
        assert!(profile.grants.refresh_token.is_some(), "{name}");
        assert!(!profile.pkce(), "{name}");
    }
    assert_eq!(catalogue.get("divar").unwrap().tokens.rotation, Rotation::Grace);
    assert!(catalogue.get("unknown").is_none());
}

#[test]
fn a_short_profile_is_a_provider() {
    let catalogue = load(EXAMPLE).unwrap();
    let profile = catalogue.get("example").unwrap();
    assert!(profile.pkce());
    assert_eq!(profile.tokens.rotation, Rotation::SingleUse);
    assert_eq!(profile.token.timeout.as_secs(), 40);
    assert_eq!(profile.resource.headers["Authorization"].as_str(), "Bearer {access_token}");
}

#[test]
fn an_overlay_changes_what_it_names_and_nothing_else() {
    let text = r#"
        network = "loopback"
        token.url = "http://{account_host}:9001/oauth2/access_token"
        vars.account_host.suffixes = ["amocrm.localhost"]
        authorize.url = "http://localhost:9001/oauth"
    "#;
    let error = Catalogue::load(None, &overlays("amocrm", "network = \"loopback\"")).is_err();
    assert!(!error, "names are judged when they resolve");
    let catalogue = Catalogue::load(None, &overlays("amocrm", text)).unwrap();
    let profile = catalogue.get("amocrm").unwrap();
    assert_eq!(profile.title, "amoCRM");
    assert_eq!(profile.token.url.as_str(), "http://{account_host}:9001/oauth2/access_token");
    assert_eq!(
        profile.check_var("account_host", "demo.amocrm.localhost").unwrap(),
        "demo.amocrm.localhost"
    );
    assert!(profile.check_var("account_host", "demo.amocrm.ru").is_err());
}

#[test]
fn a_file_replaces_a_built_in_profile_or_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("avito.toml"), EXAMPLE).unwrap();
    fs::write(folder.path().join("fifth.toml"), EXAMPLE).unwrap();
    fs::write(folder.path().join("README.md"), "not a profile").unwrap();
    let catalogue = Catalogue::load(Some(folder.path()), &BTreeMap::new()).unwrap();
    assert_eq!(catalogue.get("avito").unwrap().title, "Example");
    assert_eq!(catalogue.names().count(), 6);

    fs::write(folder.path().join("fifth.toml"), "title = \"x\"\n\n[token").unwrap();
    let error = Catalogue::load(Some(folder.path()), &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("fifth.toml: line 3:") && !error.contains('\n'), "{error}");

    fs::remove_file(folder.path().join("fifth.toml")).unwrap();
    fs::write(folder.path().join("Not_a_slug.toml"), EXAMPLE).unwrap();
    let error = Catalogue::load(Some(folder.path()), &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("Not_a_slug.toml: `Not_a_slug` is not a name"), "{error}");

    let missing = folder.path().join("missing");
    assert!(Catalogue::load(Some(&missing), &BTreeMap::new()).is_err());
}

/// Every change must be refused in one line that names provider and setting.
fn assert_refused(changes: &[(&str, &str)]) {
    for (settings, told) in changes {
        let error = change(settings).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(told), "{settings}: {error}");
        assert!(error.contains("example") && !error.contains('\n'), "{settings}: {error}");
    }
}

#[test]
fn a_setting_of_the_wrong_kind_is_refused() {
    assert_refused(&[
        ("titel = \"x\"", "unknown field `titel`"),
        ("name = \"x\"", "`name` is not a setting"),
        ("title = 7", "expected a string"),
        ("title = \" \"", "`title` must be a line of text"),
        ("network = \"internet\"", "unknown variant `internet`"),
        ("network.private.hosts = []", "missing field `networks`"),
        ("network.private = { hosts = [\"a\"], networks = [\"10\"] }", "write it as 10.0.0.0/8"),
        ("token.body = \"xml\"", "unknown variant `xml`"),
        ("token.timeout = \"soon\"", "`soon` is not a duration"),
        ("token.timeout = 40", "expected a string"),
        ("token.urll = \"x\"", "unknown field `urll`"),
        ("tokens.rotation = \"never\"", "unknown variant `never`"),
        ("grants.password = { client_auth = \"body\" }", "unknown field `password`"),
        ("grants.refresh_token.client_auth = \"jwt\"", "unknown variant `jwt`"),
        ("authorize.omit = [\"state\"]", "unknown variant `state`"),
    ]);
}

#[test]
fn a_url_outside_the_network_is_refused() {
    assert_refused(&[
        ("token.url = \"id.example.com\"", "it must begin with https://"),
        ("token.url = \"https://user:pw@id.example.com\"", "no user name or password"),
        ("token.url = \"http://id.example.com\"", "`token.url`: only https"),
        ("token.url = \"https://id.example.com:8443\"", "`token.url`: only port 443"),
        ("token.url = \"https://10.0.0.1/token\"", "`token.url`: the address is not in"),
        ("token.url = \"https://127.0.0.1/token\"", "`token.url`: the address is not in"),
        ("token.url = \"https://localhost/token\"", "`token.url`: the host is this machine"),
        ("token.url = \"https://{host/token\"", "braces must hold a name"),
        ("authorize.url = \"http://id.example.com\"", "`authorize.url`: only https"),
        ("resource.base_url = \"ftp://example.com\"", "it must begin with https://"),
        ("account = { url = \"http://example.com\", id = \"/id\" }", "`account.url`: only https"),
        ("key_exchange.url = \"https://[::1]/\"", "`key_exchange.url`: the address is not in"),
        ("network.private = { hosts = [\"a.b\"], networks = [\"10.0.0.0/8\"] }", "is not listed"),
        ("network = \"loopback\"\ntoken.url = \"http://8.8.8.8/\"", "the address is not in"),
    ]);
}

#[test]
fn a_value_that_decides_what_is_called_needs_a_list() {
    assert_refused(&[
        ("token.url = \"https://{host}/token\"", "`host` is not declared under `vars`"),
        (
            "token.url = \"https://{host}/token\"\nvars.host.from_callback = \"h\"",
            "`host` needs `vars.host.suffixes` or `vars.host.allow`",
        ),
        (
            "token.url = \"https://id.example.com/{tenant}\"\nvars.tenant.from_callback = \"t\"",
            "`tenant` needs `vars.tenant.suffixes` or `vars.tenant.allow`",
        ),
        ("vars.host.suffixes = [\"com\"]", "`vars.host`: `com` is not a domain"),
        ("vars.host.suffixes = [\".example.com\"]", "is not a domain"),
        ("vars.host.suffixes = [\"Example.com\"]", "is not a domain"),
        ("vars.host.allow = [\"a/b\"]", "`a/b` may hold only"),
        ("vars.host.allow = [\"\"]", "`` may hold only"),
        ("vars.client_id.allow = [\"a\"]", "`client_id` cannot name a value of its own"),
        ("vars.a.allow = [\"a\"]\nclient.a.about = \"x\"", "and no name twice"),
        ("client.Key.about = \"x\"", "`Key` cannot name a value of its own"),
        ("client.key = {}", "missing field `about`"),
    ]);
}

#[test]
fn a_template_or_parameter_out_of_place_is_refused() {
    assert_refused(&[
        ("authorize.params.x = \"{access_token}\"", "`authorize.params.x`: `access_token` is not"),
        (
            "authorize.params.x = \"{key}\"\nclient.key.about = \"x\"",
            "`authorize.params.x`: `key` is not known here",
        ),
        ("grants.authorization_code.params.x = \"{access_token}\"", "is not known here"),
        ("grants.refresh_token.params.x = \"{client_secret}\"", "is not known here"),
        ("resource.headers.X = \"{redirect_uri}\"", "`resource.headers.X`: `redirect_uri` is not"),
        ("authorize.params.state = \"x\"", "`authorize.params`: `state` is sent already"),
        ("authorize.params.scope = \"x\"", "`scope` is sent already"),
        ("grants.authorization_code.params.code = \"x\"", "`code` is sent already"),
        ("grants.refresh_token.params.grant_type = \"x\"", "`grant_type` is sent already"),
        (
            "grants.refresh_token = { client_auth = \"body\", params = { client_secret = \"x\" } }",
            "`client_secret` is sent already",
        ),
        ("grants.refresh_token.omit = [\"scope\"]", "`scope` is not sent here"),
        ("resource.headers.\"X Y\" = \"x\"", "`X Y` is not a header to set here"),
        (
            "resource.headers = { Authorization = \"x\", authorization = \"y\" }",
            "`authorization` is not a header to set here, or set twice",
        ),
        ("resource.headers.Host = \"x\"", "`Host` is not a header to set here"),
        (
            "account = { url = \"https://a.b/\", id = \"id\" }",
            "`account`: `id` is not a JSON pointer",
        ),
    ]);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    assert_refused(&[
        ("scope.separator = \"\"", "`scope.separator` must not be empty"),
        ("tokens.grace = \"2m\"", "need each other"),
        ("tokens.rotation = \"grace\"", "need each other"),
        ("tokens.access_life = \"91d\"", "`tokens.access_life` is longer"),
    ]);
}

#[test]
fn a_rule_that_says_too_little_or_too_much_is_refused() {
    assert_refused(&[
        (
            "errors = [{ verdict = \"retry\" }]",
            "`errors` number 1: it needs a `status` or a `match`",
        ),
        ("errors = [{ absent = [\"/a\"], verdict = \"retry\" }]", "it needs a `status`"),
        ("errors = [{ status = 400, verdict = \"refused\" }]", "needs a `reason`"),
        (
            "errors = [{ status = 400, verdict = \"refused\", reason = \"A b\" }]",
            "`reason` must be",
        ),
        ("errors = [{ status = 400, verdict = \"retry\", reason = \"x\" }]", "has a `reason`"),
        ("errors = [{ status = 429, verdict = \"refused\", reason = \"x\" }]", "429 and 5xx pass"),
        ("errors = [{ status = 500, verdict = \"refused\", reason = \"x\" }]", "429 and 5xx pass"),
        ("errors = [{ status = 42, verdict = \"retry\" }]", "from 200 to 599"),
        ("errors = [{ match = { error = \"x\" }, verdict = \"retry\" }]", "not a JSON pointer"),
        (
            "errors = [{ match = { \"/a\" = 1.5 }, verdict = \"retry\" }]",
            "expected a text, a whole",
        ),
        ("network.private = { hosts = [], networks = [], x = 1 }", "unknown field `x`"),
        ("errors = [{ status = 400, verdict = \"fatal\" }]", "unknown variant `fatal`"),
    ]);
}

#[test]
fn what_is_missing_from_a_whole_profile_is_named() {
    for (left_out, told) in [
        ("title = \"Example\"\n", "missing field `title`"),
        ("url = \"https://id.example.com/token\"\n", "missing field `url`"),
        ("[resource]\nbase_url = \"https://api.example.com\"\n", "missing field `resource`"),
        (
            "[authorize]\nurl = \"https://id.example.com/authorize\"\n",
            "`grants.authorization_code` needs `authorize`",
        ),
        (
            "[grants.authorization_code]\nclient_auth = \"basic\"\n",
            "`grants` must have `authorization_code` or `client_credentials`",
        ),
    ] {
        let text = EXAMPLE.replace(left_out, "");
        assert_ne!(text, EXAMPLE);
        let error = load(&text).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains(told) && error.starts_with("[providers.profiles.example]: "),
            "{error}"
        );
    }
    let text = EXAMPLE.replace("authorization_code", "client_credentials");
    let error = load(&text).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("`authorize` needs `grants.authorization_code`"), "{error}");
}
