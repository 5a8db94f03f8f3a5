//! Damaged files: a start reads each or puts it aside, and loses nothing.

use std::fs;

use proptest::prelude::*;

use super::{Spool, tests::entry};
use crate::properties::cases;

/// The outcome of a start with one file in the spool: the number of grants found, and whether the
/// file is still on the disk, in its place or put aside.
fn found(bytes: &[u8]) -> (usize, bool) {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    fs::write(folder.path().join("spool/a1"), bytes).unwrap();
    let found = spool.entries().unwrap().len();
    let aside = folder.path().join("unopened/a1");
    let lies = folder.path().join("spool/a1").exists();
    let kept = lies || fs::read(aside).is_ok_and(|kept| kept == bytes);
    (found, kept)
}

/// A grant as it is written.
fn written() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path()).unwrap();
    let kept = spool.reserve("a1").unwrap().keep(&entry()).unwrap();
    let bytes = fs::read(&kept.path).unwrap();
    super::text(&bytes).to_vec()
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_file_is_a_grant_or_put_aside(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let unused = bytes.first().is_none_or(|first| *first == 0);
        prop_assert_eq!(found(&bytes), (0, !unused));
    }

    #[test]
    fn a_damaged_grant_is_never_thrown_away(
        at: prop::sample::Index, instead in 1..=255_u8, cut: bool, room in 0..100_usize,
    ) {
        let mut bytes = written();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at.max(1));
        } else {
            bytes[at] = instead;
        }
        bytes.resize(bytes.len() + room, 0);
        prop_assert!(found(&bytes).1);
    }
}

#[test]
fn a_grant_is_found_with_and_without_the_room_behind_it() {
    let mut bytes = written();
    assert_eq!(found(&bytes), (1, true));
    bytes.resize(bytes.len() + 1_000, 0);
    assert_eq!(found(&bytes), (1, true));
}
