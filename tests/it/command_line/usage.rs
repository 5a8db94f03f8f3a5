//! Mistakes in the arguments, and help.

use super::{CANARY, Machine, USAGE};

#[tokio::test]
async fn a_wrong_command_line_is_told_in_one_line() {
    let machine = Machine::new();
    let with_password = format!("http://me:{CANARY}@127.0.0.1:8081");
    for (arguments, expected) in [
        (&[][..], "name a command; see `token-broker --help`"),
        (&["--config", "broker.toml"], "name a command; see `token-broker --help`"),
        (&["services"], "name a command; see `token-broker services --help`"),
        (
            &["tokn"],
            "unrecognized subcommand 'tokn' (a similar subcommand exists: 'token'); see `token-broker --help`",
        ),
        (&["serve", "--jsn"], "unexpected argument '--jsn' found; see `token-broker serve --help`"),
        (
            &["token", "--jso", "a"],
            "unexpected argument '--jso' found (a similar argument exists: '--json'); see `token-broker token --help`",
        ),
        (
            &["token"],
            "the following required arguments were not provided: <CONNECTION>; see `token-broker token --help`",
        ),
        (
            &["services", "create"],
            "the following required arguments were not provided: --connection <PATTERN> <NAME>; see `token-broker services create --help`",
        ),
        (&["token", "My Shop"], "<CONNECTION>: `My Shop` is not a name: use 1 to 63 lower-case"),
        (&["token", "a\nb\u{1b}[31m"], "<CONNECTION>: `a\\nb\\u{1b}[31m` is not a name"),
        (&["connect", "Avito"], "<CLIENT>: `Avito` is not a name"),
        (&["operators", "create", "Anna"], "<NAME>: `Anna` is not a name"),
        (&["token", "a", "--min-ttl", "-1"], "unexpected argument '-1' found"),
        (
            &["token", "a", "--min-ttl", "soon"],
            "--min-ttl <SECONDS>: expected a number of seconds; see `token-broker --help`",
        ),
        (
            &["services", "create", "a", "--connection", "A*"],
            "--connection <PATTERN>: `A*` is not a pattern: use a name, or a beginning",
        ),
        (
            &["services", "create", "a", "--connection", "a", "--verb", "fly"],
            "--verb <VERB>: expected token, consent or confirm",
        ),
        (
            &["services", "create", "a", "--connection", "a", "--expires-at", "tomorrow"],
            "--expires-at <TIME>: expected a time such as 2026-12-31T00:00:00Z",
        ),
        (&["token", "a", "--url", "localhost:8081"], "--url <URL>: expected a URL such as http://"),
        (&["token", "a", "--url", CANARY], "--url <URL>: expected a URL such as http://"),
        (&["healthcheck", "--url", "ftp://h"], "--url <URL>: expected a URL such as http://"),
        (&["token", "a", "--url", &with_password], "--url <URL>: expected a URL such as http://"),
        (
            &["connect", "a", "--login", "me"],
            "the following required arguments were not provided: --account-host <HOST> --api-key-file <FILE>",
        ),
        (&["token", "a\u{7}", "b\r\nc"], "unexpected argument 'b"),
    ] {
        let line = machine.refused(USAGE, arguments).await;
        assert!(line.contains(expected), "{line}\n  expected: {expected}");
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.contains("--help`"), "{line}");
    }
}

#[tokio::test]
async fn help_and_version_are_printed_for_every_command() {
    let machine = Machine::new();
    let commands = machine.output(&["--help"]).await;
    let commands: Vec<_> = commands
        .iter()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(
        commands.join(" "),
        "serve demo simulate check token connect connections services operators keys migrate \
         release openapi healthcheck help"
    );
    for command in &commands[..commands.len() - 1] {
        let help = machine.output(&[command, "--help"]).await.join("\n");
        assert!(help.contains("Usage: token-broker"), "{help}");
    }
    let version = machine.output(&["--version"]).await;
    assert_eq!(version, [concat!("token-broker ", env!("CARGO_PKG_VERSION"))]);
}
