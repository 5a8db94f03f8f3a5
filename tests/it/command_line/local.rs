//! The commands that open the database or the key file themselves, and `check`.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::Value;

use super::{Machine, USAGE, apply, contents, on_both_machines};

#[apply(on_both_machines!)]
async fn a_machine_is_checked_before_and_after_its_first_start(mut machine: Machine) {
    if machine.postgres.is_some() {
        machine.output(&["keys", "generate"]).await;
    }
    let before = contents(machine.folder.path());
    let lines = machine.output(&["check"]).await;
    assert!(lines.iter().all(|line| line.starts_with("ok ")), "{lines:#?}");
    assert!(lines[0].contains("configuration: no clients yet"), "{lines:#?}");
    assert_eq!(contents(machine.folder.path()), before, "check left something behind");

    let (program, _) = machine.serve().await;
    let running = machine.output(&["check"]).await;
    program.signal("TERM");
    assert!(program.end().await.status.success());
    for lines in [running, machine.output(&["check"]).await] {
        assert!(lines.iter().all(|line| line.starts_with("ok ")), "{lines:#?}");
        let lines = lines.join("\n");
        assert!(lines.contains("database: reachable, schema up to date"), "{lines}");
        assert!(lines.contains("fits the database"), "{lines}");
        assert!(lines.contains("clock: within"), "{lines}");
    }
}

#[apply(on_both_machines!)]
async fn the_schema_is_migrated_once(machine: Machine) {
    assert_eq!(machine.output(&["migrate"]).await, ["the schema was brought up to date"]);
    assert_eq!(machine.output(&["migrate"]).await, ["the schema is up to date"]);
}

#[apply(on_both_machines!)]
async fn an_operator_is_made_once(machine: Machine) {
    let lines = machine.output(&["operators", "create", "anna"]).await;
    assert_eq!(lines.len(), 1, "a key alone, for `> operator.key`: {lines:?}");
    let line = machine.refused(USAGE, &["operators", "create", "anna"]).await;
    assert_eq!(line, "operator `anna` exists already");
    let listed = machine.output(&["operators", "list"]).await;
    assert!(listed.len() == 2 && listed[1].starts_with("anna "), "{listed:?}");
    let deleted = machine.output(&["operators", "delete", "anna"]).await;
    assert!(deleted[0].starts_with("deleted: anna"), "{deleted:?}");
    let line = machine.refused(USAGE, &["operators", "delete", "anna"]).await;
    assert_eq!(line, "there is no operator `anna`");
    assert_eq!(machine.output(&["operators", "list"]).await.len(), 1);
    let again = machine.output(&["operators", "create", "anna"]).await;
    assert_ne!(again, lines, "another key");
}

#[apply(on_both_machines!)]
async fn a_command_that_only_looks_changes_nothing(machine: Machine) {
    let before = contents(machine.folder.path());
    for (arguments, nothing) in [
        (&["operators", "list"][..], "there is no operator yet: "),
        (&["release", "--plan"], "there is nothing to release: "),
    ] {
        let line = machine.refused(USAGE, arguments).await;
        assert!(line.starts_with(nothing), "{line}");
    }
    assert_eq!(contents(machine.folder.path()), before, "they left something behind");
    assert_eq!(machine.output(&["migrate"]).await, ["the schema was brought up to date"]);
}

#[tokio::test]
async fn keys_are_made_once_and_for_their_owner_alone() {
    let machine = Machine::new();
    let lines = machine.output(&["keys", "generate"]).await;
    let path = machine.key_file();
    let (shown, written) = (path.display().to_string(), fs::read(&path).unwrap());
    assert!(lines[0].starts_with(&format!("wrote {shown}; keep a copy")), "{lines:?}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(machine.path("state")).unwrap().permissions().mode() & 0o777, 0o700);

    for arguments in [&["keys", "generate"][..], &["keys", "generate", "--file", &shown]] {
        let line = machine.refused(USAGE, arguments).await;
        assert!(line.contains(&shown) && line.contains("exists already"), "{line}");
        assert_eq!(fs::read(&path).unwrap(), written, "an existing key file was touched");
    }
    let line = machine.refused(USAGE, &["keys", "generate", "--file", "/nowhere/keys"]).await;
    assert_eq!(
        line,
        "sealing key: /nowhere/keys cannot be written: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn the_description_of_the_api_is_openapi() {
    let text = Machine::new().output(&["openapi"]).await.join("\n");
    let description: Value = serde_json::from_str(&text).unwrap();
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1."));
    assert!(description["paths"]["/v1/connections/{connection}/token"]["get"].is_object());
}
