//! What stands in the way of a start, that nothing is changed then, and that a start ends well.

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    time::Duration,
};

use sqlx::{Connection as _, SqliteConnection};
use tokio::time::timeout;

use super::{CANARY, Machine, UNAVAILABLE, USAGE, apply, contents, on_both_machines, refusal};

#[apply(on_both_machines!)]
async fn a_key_file_that_does_not_fit_stops_the_start_and_changes_nothing(mut machine: Machine) {
    start_once(&mut machine).await;
    let path = machine.key_file();
    let right = fs::read(&path).unwrap();
    let stolen = String::from_utf8(right.clone()).unwrap();
    let (id, key) = stolen.lines().last().unwrap().split_once(' ').unwrap();
    let foreign = Machine::new();
    foreign.output(&["keys", "generate"]).await;
    let foreign = fs::read_to_string(foreign.key_file()).unwrap();
    let (_, foreign_key) = foreign.lines().last().unwrap().split_once(' ').unwrap();

    for (text, expected) in [
        (foreign.clone(), format!("does not fit this database: sealed with key `{id}`")),
        (format!("{id} {foreign_key}\n"), "does not fit this database: the value does not".into()),
        (format!("{id} {CANARY}\n"), "line 1 is not a key: expected".into()),
        (format!("# ours\n{CANARY}\n"), "line 2 is not a key".into()),
        (format!("{id} {key}\n{id} {key}\n"), "line 2 repeats a key id".into()),
        ("# nothing\n".into(), "the file holds no key".into()),
    ] {
        fs::write(&path, text).unwrap();
        refuse_to_start(&machine, &expected).await;
    }
    fs::write(&path, b"\xff\xfe").unwrap();
    refuse_to_start(&machine, "cannot be read: stream did not contain valid UTF-8").await;
    fs::remove_file(&path).unwrap();
    refuse_to_start(&machine, "is missing; this database is sealed already: put the key file back; a new one from `token-broker keys generate` would not open it").await;
    fs::create_dir(&path).unwrap();
    refuse_to_start(&machine, "cannot be read: Is a directory").await;
    fs::remove_dir(&path).unwrap();
    symlink(&path, &path).unwrap();
    refuse_to_start(&machine, "cannot be read: Too many levels of symbolic links").await;
    fs::remove_file(&path).unwrap();

    fs::write(&path, right).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    start_once(&mut machine).await;
}

async fn refuse_to_start(machine: &Machine, expected: &str) {
    let before = stored(machine).await;
    let line = machine.refused(USAGE, &["serve"]).await;
    assert!(line.starts_with("sealing key: "), "{line}");
    assert!(line.contains(machine.key_file().to_str().unwrap()), "{line}");
    assert!(line.contains(expected), "{line}\n  expected: {expected}");
    assert_eq!(stored(machine).await, before, "a refused start changed something: {line}");

    let checked = machine.run(&["check"]).await;
    assert_eq!(checked.status.code(), Some(UNAVAILABLE));
    assert_eq!(checked.stderr, ["token-broker: 1 check failed"]);
    let failed = format!("FAILED  {line}");
    assert!(checked.stdout.contains(&failed), "{failed}\n{:#?}", checked.stdout);
}

/// Everything that a start could change. What SQLite keeps beside its file comes and goes.
pub(super) async fn stored(machine: &Machine) -> String {
    match &machine.postgres {
        Some(database) => database.contents().await,
        None => format!("{:?}", fs::read(machine.path("state/token-broker.sqlite")).unwrap()),
    }
}

pub(super) async fn start_once(machine: &mut Machine) {
    if machine.postgres.is_some() && !machine.key_file().exists() {
        machine.output(&["keys", "generate"]).await;
    }
    let (program, _) = machine.serve().await;
    program.signal("TERM");
    let ended = program.end().await;
    assert!(ended.status.success(), "{ended:?}");
}

#[apply(on_both_machines!)]
async fn a_newer_schema_stops_the_start_and_changes_nothing(mut machine: Machine) {
    start_once(&mut machine).await;
    let newer = "INSERT INTO _sqlx_migrations
        (version, description, installed_on, success, checksum, execution_time)
        SELECT 99, 'newer', installed_on, success, checksum, execution_time FROM _sqlx_migrations
        WHERE version = 1";
    match &machine.postgres {
        Some(database) => database.execute(newer).await,
        None => execute(&machine, newer).await,
    }
    let before = stored(&machine).await;
    for command in [&["serve"][..], &["migrate"], &["operators", "create", "anna"]] {
        let line = machine.refused(USAGE, command).await;
        let expected = "the database has schema version 99, but this program knows only ";
        assert!(line.starts_with(expected), "{line}");
        assert!(line.ends_with(": run a newer token-broker"), "{line}");
    }
    assert_eq!(stored(&machine).await, before);
    let checked = machine.run(&["check"]).await;
    assert_eq!(checked.status.code(), Some(UNAVAILABLE));
    assert!(checked.stdout.iter().any(|line| line.contains("schema version 99")), "{checked:?}");
}

async fn execute(machine: &Machine, sql: &'static str) {
    let url = format!("sqlite:{}", machine.path("state/token-broker.sqlite").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[apply(on_both_machines!)]
async fn a_signal_ends_it_well(mut machine: Machine) {
    if machine.postgres.is_some() {
        machine.output(&["keys", "generate"]).await;
    }
    for signal in ["TERM", "INT"] {
        let (program, _) = machine.serve().await;
        program.signal(signal);
        let ended = timeout(Duration::from_secs(10), program.end()).await.unwrap();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert!(ended.stdout.is_empty(), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_postgres_database_waits_for_its_key() {
    let machine = Machine::postgres().await;
    let line = machine.refused(USAGE, &["serve"]).await;
    let path = machine.key_file().display().to_string();
    assert_eq!(
        line,
        format!("sealing key: {path} is missing; make it with `token-broker keys generate`")
    );
    assert_eq!(stored(&machine).await, "", "a refused start made the schema");
}

#[tokio::test]
async fn a_port_in_use_stops_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (setting, variable) in [
        ("public_listen", "TOKEN_BROKER__PUBLIC_LISTEN"),
        ("internal_listen", "TOKEN_BROKER__INTERNAL_LISTEN"),
    ] {
        let mut machine = Machine::new();
        machine.set(variable, &address);
        let line = machine.refused(UNAVAILABLE, &["serve"]).await;
        assert_eq!(line, format!("setting `{setting}`: {address} is in use by another process"));
        assert!(!machine.path("state").exists(), "a refused start left something behind");
    }
    let mut machine = Machine::new();
    machine.set("TOKEN_BROKER__PUBLIC_LISTEN", "192.0.2.1:80");
    let line = machine.refused(UNAVAILABLE, &["serve"]).await;
    assert!(line.starts_with("setting `public_listen`: 192.0.2.1:80 cannot be bound: "), "{line}");
}

#[tokio::test]
async fn a_state_dir_belongs_to_one_broker() {
    let mut machine = Machine::new();
    let (program, _) = machine.serve().await;
    let line = machine.refused(UNAVAILABLE, &["serve"]).await;
    assert!(line.ends_with("state is in use by another token-broker; give each its own"), "{line}");
    program.signal("TERM");
    program.end().await;

    machine.set("TOKEN_BROKER__STATE_DIR", &machine.write("file", ""));
    let before = contents(machine.folder.path());
    for command in [&["serve"][..], &["migrate"], &["keys", "generate"]] {
        let line = machine.refused(USAGE, command).await;
        assert!(line.contains("file cannot be made: "), "{line}");
        assert!(line.contains("a folder that this user may write"), "{line}");
    }
    assert_eq!(contents(machine.folder.path()), before);
}

#[tokio::test]
async fn what_others_may_write_is_not_trusted() {
    let mut machine = Machine::new();
    start_once(&mut machine).await;
    let chmod =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let (state, key_file) = (machine.path("state"), machine.key_file());
    let refused = async |command: &[&str], advice: &str| {
        let ended = machine.run(command).await;
        let said = [ended.stdout, ended.stderr].concat().join("\n");
        assert!(!ended.status.success() && said.contains(advice), "{command:?}: {said}");
    };
    chmod(&state, 0o777);
    for command in [["serve"], ["check"]] {
        refused(&command, "may be written by everybody (mode 777); chmod it to 700").await;
    }
    chmod(&state, 0o700);
    for mode in [0o604, 0o602, 0o620] {
        chmod(&key_file, mode);
        for command in [&["serve"][..], &["check"], &["keys", "status"]] {
            refused(command, &format!("(mode {mode:03o}); chmod it to 600")).await;
        }
    }
    // A group that reads is how a container gets its key.
    chmod(&key_file, 0o440);
    start_once(&mut machine).await;
}

#[tokio::test]
async fn an_sqlite_database_serves_one_broker() {
    let mut machine = Machine::new();
    let (program, _) = machine.serve().await;
    let file = machine.path("state/token-broker.sqlite");
    let mut other = Machine::new();
    let link = other.path("link.sqlite");
    symlink(&file, &link).unwrap();
    for path in [&file, &link] {
        let path = path.display();
        other.set("TOKEN_BROKER__DATABASE__URL", &format!("sqlite:{path}"));
        let line = other.refused(UNAVAILABLE, &["serve"]).await;
        assert_eq!(
            line,
            format!(
                "setting `database.url`: {path} is in use by another token-broker; SQLite serves \
                 one, PostgreSQL several"
            )
        );
        // What only looks or writes is welcome.
        let name = if path.to_string().ends_with("link.sqlite") { "bob" } else { "carol" };
        other.output(&["operators", "create", name]).await;
        other.output(&["migrate"]).await;
    }
    program.signal("TERM");
    program.end().await;
    other.set("TOKEN_BROKER__SEALING__KEY_FILE", machine.key_file().to_str().unwrap());
    start_once(&mut other).await;
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_stops_the_start_within_seconds() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let mut machine = Machine::new();
    machine.output(&["keys", "generate"]).await;
    for (address, expected) in
        [(closed, "Connection refused"), (silent, "the database cannot be reached")]
    {
        let url = format!("postgres://me:{CANARY}@{address}/broker");
        machine.set("TOKEN_BROKER__DATABASE__URL", &url);
        for command in [&["serve"][..], &["migrate"], &["operators", "create", "anna"]] {
            let ended = timeout(Duration::from_secs(10), machine.run(command)).await.unwrap();
            let line = refusal(UNAVAILABLE, &ended);
            assert!(line.contains(expected), "{line}");
            assert!(line.ends_with("; see the setting `database.url`"), "{line}");
        }
        let checked = machine.run(&["check"]).await;
        assert_eq!(checked.status.code(), Some(UNAVAILABLE));
        super::assert_no_canary(&format!("{checked:?}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_never_shown() {
    let mut machine = Machine::postgres().await;
    let (_, url) = machine.variables.iter().find(|(name, _)| name.ends_with("__URL")).unwrap();
    let mut url = url::Url::parse(url).unwrap();
    url.set_password(Some(CANARY)).unwrap();
    machine.set("TOKEN_BROKER__DATABASE__URL", url.as_str());
    let line = machine.refused(UNAVAILABLE, &["serve"]).await;
    assert!(line.contains("password authentication failed"), "{line}");
}

#[tokio::test]
async fn a_database_file_of_another_kind_stops_the_start() {
    let machine = Machine::new();
    let path = machine.write("state/token-broker.sqlite", &format!("{CANARY}\n").repeat(100));
    let before = fs::read(&path).unwrap();
    let line = machine.refused(UNAVAILABLE, &["serve"]).await;
    assert!(line.contains(&path) && line.contains("file is not a database"), "{line}");
    assert_eq!(fs::read(&path).unwrap(), before);
}
