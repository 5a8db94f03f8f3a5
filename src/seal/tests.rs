#![expect(clippy::disallowed_methods, reason = "the tests look at what was sealed")]

use std::{collections::HashSet, fs};

use super::*;

const PLACE: Place<'static> = Place { record: "c1", field: "access", generation: 7 };

fn opens(ring: &Keyring, place: Place<'_>, sealed: &Sealed) -> bool {
    ring.open(place, sealed).is_ok()
}

#[test]
fn a_value_opens_in_its_place_and_in_no_other() {
    let ring = Keyring::generate();
    let sealed = ring.seal(PLACE, &SecretString::from("the token"));
    assert_eq!(ring.open(PLACE, &sealed).unwrap().expose_secret(), "the token");
    assert!(!sealed.as_str().contains("token"));
    assert!(!opens(&ring, Place { record: "c2", ..PLACE }, &sealed));
    assert!(!opens(&ring, Place { field: "refresh", ..PLACE }, &sealed));
    assert!(!opens(&ring, Place { generation: 8, ..PLACE }, &sealed));
}

#[test]
fn an_altered_value_and_a_foreign_key_are_refused() {
    let ring = Keyring::generate();
    let sealed = ring.seal(PLACE, &SecretString::from("the token"));
    let mut altered = sealed.as_str().to_owned();
    let last = altered.pop().unwrap();
    altered.push(if last == 'A' { 'E' } else { 'A' });
    assert!(!opens(&ring, PLACE, &Sealed::from_stored(altered)));
    for text in ["", "v1", "v1.x", "v2.a.b", "v1.a.!", "v1..", "v1.a.AAAA"] {
        assert!(!opens(&ring, PLACE, &Sealed::from_stored(text.to_owned())), "{text}");
    }
    let foreign = Keyring::generate();
    assert!(matches!(foreign.open(PLACE, &sealed), Err(OpenError::UnknownKey(_))));
}

#[test]
fn two_seals_of_one_secret_differ() {
    let ring = Keyring::generate();
    let secret = SecretString::from("the token");
    assert_ne!(ring.seal(PLACE, &secret), ring.seal(PLACE, &secret));
}

#[test]
fn no_salt_is_used_twice() {
    let ring = Keyring::generate();
    let secret = SecretString::from("the token");
    let mut salts = HashSet::new();
    for _ in 0..100_000 {
        let sealed = ring.seal(PLACE, &secret);
        let payload = sealed.as_str().rsplit('.').next().unwrap();
        let payload = URL_SAFE_NO_PAD.decode(payload).unwrap();
        assert!(salts.insert(*payload.first_chunk::<SALT_LEN>().unwrap()));
    }
}

#[test]
fn a_running_ring_follows_its_file_and_loses_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    Keyring::generate().write_new(&path).unwrap();
    let running = Keyring::read(&path).unwrap();
    let first = running.active_id();
    let old = running.seal(PLACE, &SecretString::from("old"));

    let second = add_key(&path).unwrap();
    running.reload_if_changed();
    assert_eq!(running.ids(), [first.as_str(), &second]);
    assert_eq!(running.waiting_ids(), [second.as_str()]);
    assert_eq!(promote_key(&path).unwrap().as_deref(), Some(second.as_str()));
    running.reload_if_changed();
    assert_eq!(running.ids(), [second.as_str(), &first]);
    // A value that another replica sealed with a key not seen yet opens at once.
    let third = add_key(&path).unwrap();
    promote_key(&path).unwrap();
    let elsewhere = Keyring::read(&path).unwrap().seal(PLACE, &SecretString::from("new"));
    assert!(opens(&running, PLACE, &elsewhere));
    assert_eq!(running.ids(), [third.as_str(), &second, &first]);

    // The old key is removed: early or not, what it sealed goes on opening here.
    let text = fs::read_to_string(&path).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.starts_with(&first))
        .fold(String::new(), |all, line| all + line + "\n");
    fs::write(&path, without).unwrap();
    running.reload_if_changed();
    assert_eq!(running.active_id(), third);
    assert!(opens(&running, PLACE, &old) && running.problem().is_none());
    assert!(matches!(
        Keyring::read(&path).unwrap().open(PLACE, &old),
        Err(OpenError::UnknownKey(id)) if id == first
    ));
}

#[test]
fn a_file_that_is_no_longer_ours_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let ring = Keyring::generate();
    ring.write_new(&path).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let running = Keyring::read(&path).unwrap();
    let foreign = folder.path().join("foreign");
    Keyring::generate().write_new(&foreign).unwrap();
    let foreign = fs::read_to_string(&foreign).unwrap();
    let replaced = format!("{} {}", ring.active_id(), URL_SAFE_NO_PAD.encode([7; 32]));
    for (text, problem) in [
        (String::new(), "the file holds no key"),
        (format!("{good}half a li"), "is not a key"),
        (foreign, "it holds none of the keys in use"),
        (replaced, "has other bytes than before"),
    ] {
        fs::write(&path, text).unwrap();
        running.reload_if_changed();
        assert!(running.problem().unwrap().contains(problem), "{:?}", running.problem());
        assert_eq!(running.ids(), ring.ids());
    }
    let aside = folder.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    running.reload_if_changed();
    assert!(running.problem().is_some());
    fs::rename(&aside, &path).unwrap();
    fs::write(&path, good).unwrap();
    running.reload_if_changed();
    assert_eq!(running.problem(), None);
}
