//! Mistakes in the configuration file, its environment and the files it names.

use super::{CANARY, Machine, USAGE};

/// A client that is right.
const AVITO: &str = "[clients.avito]\nprovider = 'avito'\nclient_id = 'me'\n";

/// A configuration with this text is refused; the line says these words.
async fn refused(machine: &Machine, text: &str, expected: &str) {
    let file = machine.write("broker.toml", text);
    let line = machine.refused(USAGE, &["migrate", "--config", &file]).await;
    assert!(line.contains(expected), "{line}\n  expected: {expected}\n  of: {text}");
}

#[tokio::test]
async fn a_wrong_setting_is_named_with_what_was_expected() {
    let machine = Machine::new();
    for (text, expected) in [
        ("colour = 'CANARY'", "setting `colour`: there is no such setting; expected one of"),
        ("[colours]\nred = 'CANARY'", "setting `colours`: there is no such setting"),
        (
            "[database]\nuri = 'CANARY'",
            "setting `database.uri`: there is no such setting; expected `url` or `url_file`",
        ),
        ("database = 'postgres://u:CANARY@h/d'", "setting `database`: expected a table"),
        ("database.url = 'mysql://u:CANARY@h/d'", "setting `database.url`: expected postgres://"),
        (
            "database.url = 'postgres://u:CANARY@h:port/d'",
            "setting `database.url`: expected postgres://",
        ),
        ("database.url = ''", "setting `database.url`: is empty"),
        ("database.url = ['CANARY']", "setting `database.url`: expected a string"),
        ("log = 'CANARY'", "setting `log`: expected a table"),
        ("log.format = 'CANARY'", "setting `log.format`: expected `text` or `json`"),
        ("log.filter = 'info=CANARY=x'", "setting `log.filter`: expected a level"),
        ("log.colour = true", "setting `log.colour`: there is no such setting"),
        ("public_url = ['CANARY']", "setting `public_url`: expected a string"),
        ("public_url = 7", "setting `public_url`: expected a URL such as https://"),
        ("public_url = 'CANARY'", "setting `public_url`: expected a URL such as https://"),
        ("public_url = 'ftp://CANARY'", "setting `public_url`: expected a URL such as https://"),
        ("public_url = 'https://u:CANARY@h'", "setting `public_url`: expected a scheme and a host"),
        (
            "public_url = 'https://host/CANARY'",
            "setting `public_url`: expected a scheme and a host",
        ),
        (
            "public_url = 'http://broker.example'",
            "setting `public_url`: expected https; http is accepted on a loopback",
        ),
        ("public_url = 'http://127.0.0.1.example'", "setting `public_url`: expected https"),
        ("internal_url = 'CANARY'", "setting `internal_url`: expected a URL"),
        ("clients = 'CANARY'", "setting `clients`: expected a "),
        ("clients.avito = 'CANARY'", "setting `clients.avito`: expected a table"),
        ("clients.avito = ['CANARY']", "setting `clients.avito`: expected a table"),
        ("return_to.shop = 'CANARY'", "setting `return_to.shop`: expected a URL"),
        (
            "return_to.'My Shop' = 'https://shop.example'",
            "setting `return_to.My Shop`: `My Shop` is not a name",
        ),
        ("simulators.colour = 'CANARY'", "setting `simulators.colour`: there is no such setting"),
    ] {
        refused(&machine, &text.replace("CANARY", CANARY), expected).await;
    }
    // The settings that every other machine here has in its environment.
    let mut machine = Machine::new();
    machine.variables.clear();
    for (text, expected) in [
        ("public_listen = 'CANARY'", "setting `public_listen`: expected an IP address and a port"),
        ("public_listen = '127.0.0.1:99999'", "setting `public_listen`: expected an IP address"),
        (
            "internal_listen = '127.0.0.1:8080'",
            "setting `internal_listen`: expected another address than `public_listen`",
        ),
        ("state_dir = ''", "setting `state_dir`: expected a folder"),
        (
            "state_dir = '/dev/null/state'",
            "setting `state_dir`: /dev/null/state cannot be made: Not a directory",
        ),
    ] {
        refused(&machine, &text.replace("CANARY", CANARY), expected).await;
    }
}

#[tokio::test]
async fn a_wrong_setting_of_a_client_is_named() {
    let machine = Machine::new();
    let empty = machine.write("empty", "\n");
    let both = format!("client_secret = 'CANARY'\nclient_secret_file = '{empty}'");
    let empty = format!("client_secret_file = '{empty}'");
    for (rest, expected) in [
        ("", "setting `clients.avito.client_secret`: is missing; set it or `client_secret_file`"),
        ("client_secret = ''", "setting `clients.avito.client_secret`: is empty"),
        (both.as_str(), "setting `clients.avito.client_secret`: is set twice: keep it or"),
        (empty.as_str(), "empty: the file is empty"),
        (
            "client_secret_file = '/nowhere/secret'",
            "setting `clients.avito.client_secret_file`: cannot read /nowhere/secret: No such file",
        ),
        (
            "client_secret_file = '/proc'",
            "setting `clients.avito.client_secret_file`: cannot read /proc: Is a directory",
        ),
        ("client_secret = ['CANARY']", "setting `clients.avito.client_secret`: expected a string"),
        (
            "client_secret = { value = 'CANARY' }",
            "setting `clients.avito.client_secret`: expected a string",
        ),
        (
            "clientsecret = 'CANARY'",
            "setting `clients.avito.clientsecret`: there is no such setting; expected one of",
        ),
        (
            "client_secret = 'CANARY'\nscopes = { a = 'CANARY' }",
            "setting `clients.avito.scopes`: expected a list of texts",
        ),
        (
            "client_secret = 'CANARY'\nscopes = ['a', ['CANARY']]",
            "setting `clients.avito.scopes`: expected a list of texts",
        ),
        (
            "client_secret = 'CANARY'\ngrant = 'CANARY'",
            "setting `clients.avito.grant`: expected authorization_code or client_credentials",
        ),
        (
            "client_secret = 'CANARY'\nsettings = 'CANARY'",
            "setting `clients.avito.settings`: expected a ",
        ),
        (
            "client_secret = 'CANARY'\nsettings.api_key = 'CANARY'",
            "setting `clients.avito.settings.api_key`: is not a setting of Avito's profile",
        ),
    ] {
        let text = format!("{AVITO}{rest}\n").replace("CANARY", CANARY);
        refused(&machine, &text, expected).await;
    }
}

#[tokio::test]
async fn a_client_that_its_provider_cannot_have_is_refused() {
    let machine = Machine::new();
    for (name, provider, rest, expected) in [
        (
            "'My Shop'",
            "avito",
            "",
            "setting `clients.My Shop`: `My Shop` is not a name: use 1 to 63",
        ),
        (
            "shop",
            "avitto",
            "",
            "setting `clients.shop.provider`: no such provider; known: admitad, amocrm, avito, divar, kommo",
        ),
        ("shop", "Avito!", "", "setting `clients.shop.provider`: no such provider"),
        (
            "shop",
            "amocrm",
            "grant = 'client_credentials'",
            "setting `clients.shop.grant`: amoCRM does not offer client_credentials; it offers authorization_code",
        ),
        (
            "shop",
            "avito",
            "scopes = ['items:info,user:read']",
            "setting `clients.shop.scopes`: expected a list of single scopes",
        ),
        (
            "shop",
            "kommo",
            "grant = 'client_credentials'",
            "setting `clients.shop.grant`: Kommo does not offer",
        ),
        (
            "shop",
            "divar",
            "",
            "setting `clients.shop.settings.api_key`: is missing; Divar needs it",
        ),
        (
            "shop",
            "divar",
            "settings.api_key_file = '/nowhere/key'",
            "setting `clients.shop.settings.api_key_file`: cannot read /nowhere/key",
        ),
        (
            "shop",
            "divar",
            "settings = { api_key = 'CANARY', api_key_file = '/x' }",
            "setting `clients.shop.settings.api_key`: is set twice",
        ),
        (
            "shop",
            "divar",
            "settings = { api_key = 'CANARY', apikey = 'CANARY' }",
            "setting `clients.shop.settings.apikey`: is not a setting of Divar's profile",
        ),
    ] {
        let text = format!(
            "[clients.{name}]\nprovider = '{provider}'\nclient_id = 'me'\nclient_secret = 'CANARY'\n{rest}\n"
        );
        refused(&machine, &text.replace("CANARY", CANARY), expected).await;
    }
    refused(
        &machine,
        "[clients.shop]\nprovider = 'avito'",
        "setting `clients.shop.client_id`: is missing",
    )
    .await;
    refused(
        &machine,
        "[clients.shop]\nclient_id = 'me'",
        "setting `clients.shop.provider`: is missing",
    )
    .await;
}

#[tokio::test]
async fn a_wrong_variable_is_named_as_the_person_wrote_it() {
    for (name, value, expected) in [
        (
            "TOKEN_BROKER__COLOUR",
            CANARY,
            "setting `colour` (environment variable TOKEN_BROKER__COLOUR): there is no such setting",
        ),
        (
            "Token_Broker__Colour",
            CANARY,
            "setting `colour` (environment variable Token_Broker__Colour): there is no such",
        ),
        (
            "TOKEN_BROKER__DATABSE__URL",
            CANARY,
            "setting `databse` (environment variable TOKEN_BROKER__DATABSE__URL): there is",
        ),
        (
            "TOKEN_BROKER__DATABASE__URI",
            CANARY,
            "setting `database.uri` (environment variable TOKEN_BROKER__DATABASE__URI): there is",
        ),
        (
            "TOKEN_BROKER__DATABASE",
            CANARY,
            "setting `database` (environment variable TOKEN_BROKER__DATABASE): expected a table",
        ),
        (
            "TOKEN_BROKER__PUBLIC_URL",
            CANARY,
            "setting `public_url` (environment variable TOKEN_BROKER__PUBLIC_URL): expected a URL",
        ),
        (
            "TOKEN_BROKER__LOG__FORMAT",
            CANARY,
            "setting `log.format` (environment variable TOKEN_BROKER__LOG__FORMAT): expected `text` or",
        ),
        (
            "TOKEN_BROKER__CLIENTS__AVITO",
            CANARY,
            "setting `clients.avito` (environment variable TOKEN_BROKER__CLIENTS__AVITO): expected a table",
        ),
        (
            "TOKEN_BROKER__CLIENTS__AVITO__CLIENT_SECRT",
            CANARY,
            "setting `clients.avito.client_secrt` (environment variable TOKEN_BROKER__CLIENTS__AVITO__CLIENT_SECRT): there is",
        ),
        ("TOKEN_BROKER__", CANARY, "environment variable TOKEN_BROKER__"),
        (
            "TOKEN_BROKER__CLIENTS__AVITO__CLIENT_ID",
            "me",
            "setting `clients.avito.provider`: is missing",
        ),
    ] {
        let mut machine = Machine::new();
        machine.set(name, value);
        let line = machine.refused(USAGE, &["serve"]).await;
        assert!(line.contains(expected), "{line}\n  expected: {expected}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_toml_is_told_by_its_line_and_not_by_a_quotation() {
    let machine = Machine::new();
    for line in [
        "client_secret = CANARY",
        "client_secret = 'CANARY",
        "client_secret = \"CANARY\\q\"",
        "client_secret 'CANARY'",
        "client_secret = 'CANARY' 'CANARY'",
        "CANARY",
        "= 'CANARY'",
        "[CANARY",
        "[[CANARY]",
        "a = 1\na = 'CANARY'",
        "a = { b = 'CANARY', b = 'CANARY' }",
        "client_secret = \"\"\"CANARY",
        "client_secret = 12CANARY",
        "client_secret = 'CANARY'\u{1}",
    ] {
        let text = format!("# A comment.\n\n{line}\n").replace("CANARY", CANARY);
        refused(&machine, &text, "broker.toml: line ").await;
        refused(&machine, &text, " is not valid TOML: ").await;
    }
    let line = machine.refused(USAGE, &["serve", "--config", "/nowhere/broker.toml"]).await;
    assert!(line.starts_with("configuration file /nowhere/broker.toml: cannot be read: No such"));
}

#[tokio::test]
async fn a_wrong_profile_is_named_with_its_file() {
    let machine = Machine::new();
    let folder = machine.path("providers");
    let text = format!("providers.folder = '{}'", folder.display());
    refused(&machine, &text, "providers: No such file or directory").await;
    for (name, profile, expected) in [
        ("shop.toml", "title = 'Shop", "shop.toml: line 1: "),
        ("shop.toml", "title = 'Shop'", "shop.toml: missing field"),
        ("shop.toml", "colour = 'CANARY'", "shop.toml: unknown field `colour`"),
        ("My Shop.toml", "title = 'Shop'", "My Shop.toml: `My Shop` is not a name"),
    ] {
        let written =
            machine.write(&format!("providers/{name}"), &profile.replace("CANARY", CANARY));
        refused(&machine, &text, expected).await;
        std::fs::remove_file(written).unwrap();
    }
    for (overlay, expected) in [
        (
            "avito.colour = 'CANARY'",
            "built-in provider `avito` with [providers.profiles.avito]: unknown field `colour`",
        ),
        ("avito.token = 'CANARY'", "built-in provider `avito` with [providers.profiles.avito]: "),
        (
            "avito.token.url = 'nowhere'",
            "built-in provider `avito` with [providers.profiles.avito]: ",
        ),
        ("avito = 'CANARY'", "setting `providers.profiles.avito`: expected "),
        ("shop.title = 'Shop'", "[providers.profiles.shop]: missing field"),
        (
            "'My Shop'.title = 'Shop'",
            "setting `providers.profiles.My Shop`: `My Shop` is not a name",
        ),
    ] {
        refused(
            &machine,
            &format!("[providers.profiles]\n{overlay}").replace("CANARY", CANARY),
            expected,
        )
        .await;
    }
}

#[tokio::test]
async fn every_command_that_reads_the_configuration_refuses_a_wrong_one() {
    let machine = Machine::new();
    let file = machine.write("broker.toml", &format!("colour = '{CANARY}'"));
    for command in [
        &["serve"][..],
        &["check"],
        &["migrate"],
        &["keys", "generate"],
        &["operators", "create", "anna"],
        &["healthcheck"],
        &["simulate"],
    ] {
        let arguments = [command, &["--config", &file]].concat();
        let line = machine.refused(USAGE, &arguments).await;
        assert!(line.starts_with("setting `colour`: "), "{command:?}: {line}");
    }
    assert!(!machine.path("state").exists(), "a refused command left something behind");
}
