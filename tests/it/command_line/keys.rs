//! Sealing keys, from the first rotation to the last, and what a kill in the middle leaves.

use std::{fs, os::unix::process::ExitStatusExt as _, time::Duration};

use secrecy::SecretString;
use token_broker::{
    clock::Clock,
    domain::{
        connection::{Connection, ConnectionId, GrantType, State, Vars},
        grant::{GrantSlot, SealedGrant},
    },
    seal::{Keyring, SealContext, secret},
    spool::{Entry, Spool},
    store::{Commit, SEALED_COLUMNS, Store},
};
use tokio::time::{sleep, timeout};

use super::{Machine, UNAVAILABLE, USAGE, apply, on_both_machines, start::start_once};
use crate::support::process::Program;

/// The database of a machine.
async fn store(machine: &Machine) -> Store {
    let url = match &machine.postgres {
        Some(database) => database.url.clone(),
        None => format!("sqlite:{}", machine.path("state/token-broker.sqlite").display()).into(),
    };
    Store::connect(&url, Clock::system()).await.unwrap()
}

fn ring(machine: &Machine) -> Keyring {
    Keyring::read(&machine.key_file()).unwrap()
}

/// The grant of a connection, as a broker with this ring would store it.
fn sealed(ring: &Keyring, id: ConnectionId) -> SealedGrant {
    let record = id.to_string();
    let slot = GrantSlot::Live { generation: 1 };
    let seal = |context: SealContext<'_>| {
        ring.seal(context, &SecretString::from(format!("{} of {id}", context.field.as_str())))
    };
    let now = Clock::system().now();
    SealedGrant {
        slot,
        access: seal(slot.access(&record)),
        refresh: Some(seal(slot.refresh(&record))),
        scopes: Vec::new(),
        received_at: now,
        expires_at: now + Duration::from_hours(24),
        origin: None,
    }
}

/// A machine that has served once, with so many connections.
async fn with_connections(machine: &mut Machine, connections: usize) {
    start_once(machine).await;
    let (store, ring) = (store(machine).await, ring(machine));
    for number in 0..connections {
        let connection = Connection {
            id: ConnectionId::new(),
            name: format!("shop-{number}").parse().unwrap(),
            client: "avito".parse().unwrap(),
            grant_type: GrantType::AuthorizationCode,
            scopes: Vec::new(),
            state: State::Active,
            reason: None,
            account: None,
            expected_account: None,
            vars: Vars::new(),
            created_at: Clock::system().now(),
            refresh_at: None,
            failures: 0,
            last_error: None,
        };
        store.create(&connection).await.unwrap();
        let grant = sealed(&ring, connection.id);
        let commit = Commit::refreshed(connection.id, &grant, None, None);
        assert!(store.durable().commit_grant(&commit).await.unwrap());
    }
    store.close().await;
}

/// Opens every stored value with the key file as it is now, and gives how many there are.
async fn every_value_opens(machine: &Machine) -> usize {
    let (store, ring) = (store(machine).await, ring(machine));
    let mut values = 0;
    for column in SEALED_COLUMNS {
        for value in store.sealed_otherwise(column, "-", None, 100_000).await.unwrap() {
            ring.open(value.context(), &value.sealed).unwrap();
            values += 1;
        }
    }
    store.close().await;
    values
}

/// Takes a key out of the file.
fn remove_key(machine: &Machine, id: &str) {
    let text = fs::read_to_string(machine.key_file()).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with(id));
    let kept = kept.fold(String::new(), |all, line| all + line + "\n");
    fs::write(machine.key_file(), kept).unwrap();
}

/// The row of a key in `keys status`, as words.
fn row(lines: &[String], key: &str) -> Vec<String> {
    let row = lines.iter().find(|line| line.starts_with(key));
    let row = row.unwrap_or_else(|| panic!("no {key} in {lines:#?}"));
    row.split_whitespace().map(str::to_owned).collect()
}

/// All but the key's id.
fn words(lines: &[String], key: &str) -> String {
    row(lines, key)[1..].join(" ")
}

#[apply(on_both_machines!)]
async fn a_key_is_rotated_step_by_step(mut machine: Machine) {
    with_connections(&mut machine, 3).await;
    let old = ring(&machine).active_id();
    let status = machine.output(&["keys", "status"]).await;
    assert_eq!(words(&status, &old), "seals 6 0 0 0 1", "{status:#?}");
    let advice =
        format!("key {old} seals everything: `token-broker keys generate --add` begins a rotation");
    assert_eq!(status.last(), Some(&advice));

    let (program, _) = machine.serve().await;
    if machine.postgres.is_some() {
        // With one key in the file, nothing is sealed with one that others cannot know yet.
        let said = machine.output(&["keys", "rotate"]).await;
        assert!(said[1].starts_with("nothing is sealed with it yet"), "{said:#?}");
    } else {
        machine.output(&["keys", "generate", "--add"]).await;
    }
    let new = ring(&machine).waiting_ids().pop().unwrap();
    let status = machine.output(&["keys", "status"]).await;
    assert_eq!(words(&status, &old), "seals 6 0 0 0 1", "{status:#?}");
    assert_eq!(words(&status, &new), "waits 0 0 0 0 0", "{status:#?}");

    let said = machine.output(&["keys", "rotate"]).await;
    assert_eq!(said[0], format!("key {new} seals from now on"));
    let done = format!("every stored value is sealed with key {new}");
    assert!(said.contains(&done), "{said:#?}");
    let again = machine.output(&["keys", "rotate"]).await;
    assert_eq!(again[0], done);
    assert_eq!(ring(&machine).ids(), [new.as_str(), &old]);
    let status = machine.output(&["keys", "status"]).await;
    assert_eq!(words(&status, &new), "seals 6 0 0 0 1", "{status:#?}");
    assert_eq!(words(&status, &old), "opens 0 0 0 0 0", "{status:#?}");
    let advice = format!("key {old} is needed by no value: it may be removed from the file");
    assert!(status.last().unwrap().starts_with(&advice), "{status:#?}");
    assert_eq!(every_value_opens(&machine).await, 7);
    program.signal("TERM");
    assert!(program.end().await.status.success());

    remove_key(&machine, &old);
    start_once(&mut machine).await;
    assert_eq!(every_value_opens(&machine).await, 7);
}

#[apply(on_both_machines!)]
async fn a_key_that_is_removed_too_early_stops_the_start(mut machine: Machine) {
    with_connections(&mut machine, 2).await;
    let old = ring(&machine).active_id();
    machine.output(&["keys", "generate", "--add"]).await;
    let both = fs::read_to_string(machine.key_file()).unwrap();
    let new = ring(&machine).waiting_ids().pop().unwrap();
    // The value by which a foreign key is known is sealed anew, and the grants are not yet.
    let foreign = machine.path("new.keys");
    fs::copy(machine.key_file(), &foreign).unwrap();
    fs::write(&foreign, both.lines().last().unwrap()).unwrap();
    let (store, with_new) = (store(&machine).await, Keyring::read(&foreign).unwrap());
    let check = SEALED_COLUMNS.iter().find(|column| column.table == "meta").unwrap();
    let value = store.sealed_otherwise(check, &new, None, 1).await.unwrap().pop().unwrap();
    let secret = ring(&machine).open(value.context(), &value.sealed).unwrap();
    let anew = with_new.seal(value.context(), &secret);
    assert_eq!(store.reseal(check, &[(value, anew)]).await.unwrap(), 1);
    store.close().await;

    remove_key(&machine, &old);
    let before = super::start::stored(&machine).await;
    let path = machine.key_file().display().to_string();
    let expected = format!(
        "sealing key: {path} lacks key `{old}`, with which stored values are sealed (4): put it \
         back; see `token-broker keys status`"
    );
    for command in [&["serve"][..], &["keys", "rotate"]] {
        assert_eq!(machine.refused(USAGE, command).await, expected);
        assert_eq!(super::start::stored(&machine).await, before);
    }
    let status = machine.output(&["keys", "status"]).await;
    assert_eq!(words(&status, &old), "missing 4 0 0 0 0", "{status:#?}");
    let advice = format!("key {old} is needed (4) and is not in the file: put it back");
    assert!(status.contains(&advice), "{status:#?}");

    fs::write(machine.key_file(), both).unwrap();
    start_once(&mut machine).await;
}

#[apply(on_both_machines!)]
async fn a_value_that_does_not_open_is_told_and_stays(mut machine: Machine) {
    with_connections(&mut machine, 3).await;
    let (store, old) = (store(&machine).await, ring(&machine).active_id());
    let [one, two] = [0, 1].map(|number| format!("shop-{number}"));
    let record = async |name: &str| store.record(name).await.unwrap().unwrap();
    // One connection's token lies in another's place.
    let moved = record(&one).await.grant.unwrap().access;
    let access = &SEALED_COLUMNS[0];
    let target = record(&two).await.connection.id.to_string();
    let values = store.sealed_otherwise(access, "-", None, 10).await.unwrap();
    let value = values.into_iter().find(|value| value.record == target).unwrap();
    assert_eq!(store.reseal(access, &[(value, moved.clone())]).await.unwrap(), 1);

    machine.output(&["keys", "generate", "--add"]).await;
    let ended = machine.run(&["keys", "rotate"]).await;
    assert_eq!(ended.status.code(), Some(UNAVAILABLE), "{ended:?}");
    assert!(ended.stderr[0].contains("values that do not open stay as they are (1)"), "{ended:?}");
    let told =
        ended.stdout.iter().any(|line| line.starts_with(&format!("grants of {target} stays")));
    assert!(told, "{ended:?}");
    assert_eq!(record(&two).await.grant.unwrap().access, moved);
    let status = machine.output(&["keys", "status"]).await;
    assert_eq!(words(&status, &old), "opens 1 0 0 0 0", "{status:#?}");
    store.close().await;
}

#[apply(on_both_machines!)]
async fn a_rotation_that_is_killed_anywhere_is_taken_up_again(mut machine: Machine) {
    const KILLS: u8 = 8;
    with_connections(&mut machine, 300).await;
    let mut broken_off = 0;
    for kill in 0..KILLS {
        machine.output(&["keys", "generate", "--add"]).await;
        let mut program = machine.start(&["keys", "rotate"]);
        // Some die before a value is exchanged, some while values are, some between two columns.
        let [random] = secret::random_bytes::<1>();
        if kill % 2 == 0 {
            while !program.line().await.starts_with("grants: ") {}
        } else {
            sleep(Duration::from_millis(random.into())).await;
        }
        program.signal("KILL");
        program.wait().await;
        assert_eq!(every_value_opens(&machine).await, 601, "after kill {kill}");
        let (store, newest) = (store(&machine).await, ring(&machine).active_id());
        let counts = store.count_sealed().await.unwrap();
        let done = counts.iter().filter(|count| count.key == newest).map(|count| count.values);
        broken_off += u32::from(!matches!(done.sum(), 0 | 601));
        store.close().await;
    }
    assert!(broken_off > 0, "no kill came between two values");
    machine.output(&["keys", "rotate"]).await;
    let newest = ring(&machine).active_id();
    for id in ring(&machine).ids().into_iter().filter(|id| *id != newest) {
        assert!(!super::start::stored(&machine).await.contains(&format!("v1.{id}.")), "{id}");
        remove_key(&machine, &id);
    }
    assert_eq!(every_value_opens(&machine).await, 601);
    start_once(&mut machine).await;
}

#[tokio::test]
async fn a_received_grant_whose_key_is_missing_stops_the_start_and_is_kept() {
    let mut machine = Machine::new();
    start_once(&mut machine).await;
    let foreign = Keyring::generate();
    let connection = ConnectionId::new();
    let entry =
        Entry { connection, account: None, grant: sealed(&foreign, connection), refresh_at: None };
    let spool = Spool::open(&machine.path("state")).unwrap();
    spool.reserve("a1").unwrap().keep(&entry).unwrap();
    let ended = machine.run(&["serve"]).await;
    assert_eq!(ended.status.code(), Some(USAGE), "{ended:?}");
    let key = foreign.active_id();
    let said = ended.stderr.last().unwrap();
    assert!(said.contains(&format!("is sealed with key `{key}`, which is not in the")), "{said}");
    assert_eq!(spool.entries().unwrap().len(), 1);
    assert!(!machine.path("state/unopened").exists());
}

#[tokio::test]
async fn no_crash_writes_memory_to_a_disk() {
    let mut machine = Machine::new();
    start_once(&mut machine).await;
    let state_dir = machine.path("state").display().to_string();
    let variables = [
        ("TOKEN_BROKER__STATE_DIR", state_dir.as_str()),
        ("TOKEN_BROKER__PUBLIC_LISTEN", "127.0.0.1:0"),
        ("TOKEN_BROKER__INTERNAL_LISTEN", "127.0.0.1:0"),
    ];
    // Whoever starts it may want core dumps.
    let shell = ["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"];
    let mut program = Program::start_by(&shell, &["serve"], &variables);
    program.hear("serving").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", program.pid())).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
    let key = fs::read_to_string(machine.key_file()).unwrap();
    let key = key.lines().last().unwrap().split_once(' ').unwrap().1;
    let environ = fs::read(format!("/proc/{}/environ", program.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&environ).contains(key));
    program.signal("ABRT");
    let status = timeout(Duration::from_secs(10), program.wait()).await.unwrap();
    assert_eq!(status.signal(), Some(6));
    assert!(!status.core_dumped());
}
