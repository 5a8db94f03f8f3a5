#![expect(clippy::disallowed_methods, reason = "the tests look at what was sealed")]

use std::{collections::HashSet, fs, io::Write as _, os::unix::fs::OpenOptionsExt as _};

use super::*;

const CONTEXT: SealContext<'static> =
    SealContext { record: "c1", field: SealedField::Access, generation: 7 };

fn opens(ring: &Keyring, context: SealContext<'_>, sealed: &Sealed) -> bool {
    ring.open(context, sealed).is_ok()
}

#[test]
fn a_value_opens_in_its_place_and_in_no_other() {
    let ring = Keyring::generate();
    let sealed = ring.seal(CONTEXT, &SecretString::from("the token"));
    assert_eq!(ring.open(CONTEXT, &sealed).unwrap().expose_secret(), "the token");
    assert!(!sealed.as_str().contains("token"));
    assert!(!opens(&ring, SealContext { record: "c2", ..CONTEXT }, &sealed));
    assert!(!opens(&ring, SealContext { field: SealedField::Refresh, ..CONTEXT }, &sealed));
    assert!(!opens(&ring, SealContext { generation: 8, ..CONTEXT }, &sealed));
}

#[test]
fn an_altered_value_and_a_foreign_key_are_refused() {
    let ring = Keyring::generate();
    let sealed = ring.seal(CONTEXT, &SecretString::from("the token"));
    let mut altered = sealed.as_str().to_owned();
    let last = altered.pop().unwrap();
    altered.push(if last == 'A' { 'E' } else { 'A' });
    assert!(!opens(&ring, CONTEXT, &Sealed::from_stored(altered)));
    for text in ["", "v1", "v1.x", "v2.a.b", "v1.a.!", "v1..", "v1.a.AAAA"] {
        assert!(!opens(&ring, CONTEXT, &Sealed::from_stored(text.to_owned())), "{text}");
    }
    let foreign = Keyring::generate();
    assert!(matches!(foreign.open(CONTEXT, &sealed), Err(OpenError::UnknownKey(_))));
}

#[test]
fn two_seals_of_one_secret_differ() {
    let ring = Keyring::generate();
    let secret = SecretString::from("the token");
    assert_ne!(ring.seal(CONTEXT, &secret), ring.seal(CONTEXT, &secret));
}

#[test]
fn no_salt_is_used_twice() {
    let ring = Keyring::generate();
    let secret = SecretString::from("the token");
    let mut salts = HashSet::new();
    for _ in 0..100_000 {
        let sealed = ring.seal(CONTEXT, &secret);
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
    let old = running.seal(CONTEXT, &SecretString::from("old"));

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
    let elsewhere = Keyring::read(&path).unwrap().seal(CONTEXT, &SecretString::from("new"));
    assert!(opens(&running, CONTEXT, &elsewhere));
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
    assert!(opens(&running, CONTEXT, &old) && running.problem().is_none());
    assert!(matches!(
        Keyring::read(&path).unwrap().open(CONTEXT, &old),
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

/// Values that an earlier build sealed: they open as long as the associated data stay the same to the
/// byte.
#[test]
fn values_sealed_by_an_earlier_build_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
    writeln!(file, "k1 {}", URL_SAFE_NO_PAD.encode([7; KEY_LEN])).unwrap();
    let ring = Keyring::read(&path).unwrap();
    for (field, record, generation, sealed) in [
        (
            SealedField::Access,
            "c1",
            7,
            "v1.k1.EVvV46aLX0vdomKNNGOdbId1ine6vPYdHV9CaLejKpnqrp35zDxG3grkZO-ze1gndDYMATS-",
        ),
        (
            SealedField::Refresh,
            "c1",
            7,
            "v1.k1.a0X0vy41Yfg3IYrWdir83iLW43R3U-WPlaMbP7YlOhExBaHM6xhj7e8FKmSW6n7tgM14LFezyQ",
        ),
        (
            SealedField::PendingAccess,
            "c1",
            0,
            "v1.k1.JDYMAOLSq-MsYvtcs_XBRZlWE5mE7sCA_uYl0e7rwtc6IaM83cPKJiysZi4cB-Z7MZj2DIM9V40aUXB3IuQ",
        ),
        (
            SealedField::PendingRefresh,
            "c1",
            0,
            "v1.k1.PYPmU4bm70SGWjHBNXZzERxAQpiynoel6XNd_0LpW1PsbL1dwGUhek3KA_9FEirl4vtASrZExRiFfKn0n5cN",
        ),
        (
            SealedField::FallbackAccess,
            "c1",
            7,
            "v1.k1.wSXthOInZnHJsd5Wj0hEdVK8EYZvtykvpx14-tqYx7nJGEi21ufK9AchHKZdVqm5yjGfbasl6RMoU-RVJQ",
        ),
        (
            SealedField::FallbackRefresh,
            "c1",
            7,
            "v1.k1.Io-bF_iMrr-1zARER0rjv1sU7zqsjhlDoVr7ZEkFYG8eYpBwxzqOSeHHp4Edy3pxHv-KkcpSKbtW5cVlAUA",
        ),
        (
            SealedField::Verifier,
            "l1",
            0,
            "v1.k1._Q3l8c4dHIKlbprGmxZEaTfrET4upwpqkawPsuFSHs6QWsT5a2P184fd42ejDbRQzhSPdDF1EvI",
        ),
        (
            SealedField::LinkSecret,
            "l1",
            0,
            "v1.k1.c77jMybcd9EOgR3vjrHz0IJVO-wMBEKt9eEzMq_KC4sszhKzhj1JV00KRIDwNd4PX8NTgx5r",
        ),
        (
            SealedField::SealingCheck,
            "database",
            0,
            "v1.k1.uD9JKeU2Ayp6vaPxyBzWAiEHrNWggn5qRTN8t-0trwUkHqqF0kDOPBZmidxFkizpNX5h7vDVvTsJTAcZWA",
        ),
    ] {
        let context = SealContext { record, field, generation };
        let opened = ring.open(context, &Sealed::from_stored(sealed.to_owned())).unwrap();
        assert_eq!(opened.expose_secret(), field.as_str());
    }
}

#[test]
fn the_associated_data_are_fixed_to_the_byte() {
    let context =
        SealContext { record: "c1", field: SealedField::FallbackRefresh, generation: 258 };
    let mut expected = b"token-broker sealed v1".to_vec();
    expected.extend(b"\0\0\0\0\0\0\0\x02k1\0\0\0\0\0\0\0\x02c1");
    expected.extend(b"\0\0\0\0\0\0\0\x0eescrow.refresh\0\0\0\0\0\0\x01\x02");
    assert_eq!(context.associated_data("k1"), expected);
}
