use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{domain::grant::GrantSlot, seal::Sealed};

pub(super) fn entry() -> Entry {
    Entry {
        connection: ConnectionId::new(),
        account: None,
        grant: SealedGrant {
            slot: GrantSlot::Live { generation: 7 },
            access: Sealed::from_stored("v1.k.access".to_owned()),
            refresh: Some(Sealed::from_stored("v1.k.refresh".to_owned())),
            scopes: vec!["a".to_owned()],
            received_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::from_second(60).unwrap(),
            origin: None,
        },
        refresh_at: None,
    }
}

#[test]
fn what_was_kept_is_found_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    let kept = spool.reserve("a1").unwrap().keep(&entry()).unwrap();
    assert_eq!(fs::metadata(kept.path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut found = Spool::open(folder.path()).unwrap().entries().unwrap();
    let (found, kept) = found.pop().unwrap();
    assert_eq!(found.grant.generation(), 7);
    assert_eq!(found.grant.refresh, entry().grant.refresh);
    kept.remove();
    assert!(spool.entries().unwrap().is_empty());
}

#[test]
fn what_is_stored_is_remembered_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    for generation in [8, 7] {
        let mut entry = entry();
        entry.grant.slot = GrantSlot::Live { generation };
        spool.reserve(&format!("a{generation}")).unwrap().keep(&entry).unwrap().mark_committed();
    }
    assert!(spool.entries().unwrap().is_empty());
    spool.sweep().unwrap();
    let remembered = spool.remembered().unwrap();
    let generations: Vec<_> = remembered.iter().map(|entry| entry.grant.generation()).collect();
    assert_eq!(generations, [7, 8]);
    let file = folder.path().join("stored/a7");
    assert!(fs::metadata(&file).unwrap().len() < 1_000, "its room is given back");
    let long_ago = fs::metadata(&file).unwrap().modified().unwrap() - 2 * Spool::REMEMBERED;
    File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
    spool.sweep().unwrap();
    assert_eq!(spool.remembered().unwrap().len(), 1);
}

#[test]
fn room_is_on_the_disk_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    let slot = spool.reserve("a1").unwrap();
    let path = slot.path.clone().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), ROOM as u64);
    drop(slot);
    assert!(!path.exists());
    assert!(spool.reserve("a1").is_ok());
}

#[test]
fn a_slot_that_a_crash_left_unused_or_torn_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    fs::write(folder.path().join("spool/unused"), vec![0; ROOM]).unwrap();
    fs::write(folder.path().join("spool/torn"), b"{\"connection\":\"").unwrap();
    fs::write(folder.path().join("spool/empty"), b"").unwrap();
    assert!(spool.entries().unwrap().is_empty());
    assert_eq!(fs::read_dir(folder.path().join("spool")).unwrap().count(), 0);
}

#[test]
fn what_is_written_to_a_removed_file_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    let slot = spool.reserve("a1").unwrap();
    fs::remove_dir_all(folder.path().join("spool")).unwrap();
    assert!(slot.keep(&entry()).is_err());
}

#[test]
fn no_room_is_said_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    fs::remove_dir_all(folder.path().join("spool")).unwrap();
    assert!(spool.reserve("a1").is_err());
}

/// The form of a file that an earlier build wrote.
#[test]
fn the_form_on_disk_is_fixed() {
    let connection = ConnectionId::new();
    let parent = "ab".repeat(32);
    for (lineage, known) in [
        (format!(r#""parent":"{parent}","asked_at":"1970-01-01T00:00:01Z""#), true),
        (r#""parent":null,"asked_at":null"#.to_owned(), false),
    ] {
        let text = format!(
            r#"{{"connection":"{connection}","account":"1","generation":7,"access":"v1.k.a","refresh":"v1.k.r","scopes":["a"],"received_at":"1970-01-01T00:00:00Z","expires_at":"1970-01-01T00:01:00Z","refresh_at":null,{lineage}}}"#
        );
        let entry = read(text.as_bytes()).unwrap();
        assert_eq!((entry.connection, entry.grant.generation()), (connection, 7));
        assert_eq!(entry.grant.origin.is_some(), known);
        let again: Entry = serde_json::from_slice(&serde_json::to_vec(&entry).unwrap()).unwrap();
        assert_eq!(again.grant.origin, entry.grant.origin);
        assert_eq!(again.grant.slot, entry.grant.slot);
        let damaged = text.replace(&parent, "ab").replace("null,\"asked_at\":null", "7");
        assert!(read(damaged.as_bytes()).is_none(), "nothing is guessed");
    }
}
