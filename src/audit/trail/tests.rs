use std::{
    mem,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
};

use jiff::Timestamp;

use super::*;
use crate::audit::{Actor, EventKind};

fn record() -> AuditEvent {
    AuditEvent::new(EventKind::TokenIssued, &Actor::broker(), Timestamp::UNIX_EPOCH)
}

fn read(trail: &Trail) -> Vec<AuditEvent> {
    trail.folder.read(usize::MAX).unwrap().records
}

#[tokio::test]
async fn a_record_is_in_the_file_when_it_is_accepted() {
    let home = tempfile::tempdir().unwrap();
    let trail = Trail::open(home.path(), Clock::system()).unwrap();
    let all = [record(), record()];
    trail.append(&all[0]).await.unwrap();
    assert_eq!(read(&trail), all[..1]);
    trail.emit(&all[1]);
    trail.close();
    assert_eq!(read(&trail), all);
    assert_eq!(trail.unshipped(), 2);
    assert!(trail.append(&record()).await.is_err(), "it is closed");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(trail.folder.path()), 0o700);
    assert_eq!(mode(&trail.folder.file(1)), 0o600);
    assert_eq!(
        Trail::open(home.path(), Clock::system()).unwrap().unshipped(),
        2,
        "after a restart, too"
    );
}

#[tokio::test]
async fn a_folder_that_is_taken_away_is_made_again_or_refuses() {
    let home = tempfile::tempdir().unwrap();
    let trail = Trail::open(home.path(), Clock::system()).unwrap();
    let folder = trail.folder.path().to_owned();
    trail.append(&record()).await.unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let second = record();
    trail.append(&second).await.unwrap();
    assert_eq!(read(&trail), [second]);

    fs::rename(&folder, home.path().join("moved")).unwrap();
    fs::write(&folder, b"").unwrap();
    for _ in 0..2 {
        assert!(trail.append(&record()).await.is_err());
        assert_eq!(trail.health(), FileHealth::Failing);
    }
    fs::remove_file(&folder).unwrap();
    trail.flush().await;
    assert_eq!(trail.health(), FileHealth::Ok, "with no record to write");
    let third = record();
    trail.append(&third).await.unwrap();
    assert_eq!(read(&trail), [third]);
    assert_eq!(trail.health(), FileHealth::Ok);
}

#[tokio::test]
async fn a_file_that_hangs_is_waited_for_a_quarter_of_a_second() {
    let home = tempfile::tempdir().unwrap();
    let mut trail = Trail::open(home.path(), Clock::system()).unwrap();
    let (entries, queue) = mpsc::sync_channel(1);
    let writing = mem::replace(&mut trail.entries, entries);
    let begun = Clock::system().stopwatch();
    assert!(trail.append(&record()).await.is_err());
    assert!(
        (WRITE_TIMEOUT..WRITE_TIMEOUT * 20).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(trail.health(), FileHealth::Failing);
    assert!(trail.append(&record()).await.is_err(), "the queue is full, so nobody waits");
    // Nobody acted on it: when the file goes on, it is not written.
    writing.send(queue.recv().unwrap()).unwrap();
    let later = record();
    trail.entries = writing;
    trail.emit(&later);
    trail.close();
    assert_eq!(read(&trail), [later]);
}

#[test]
fn what_may_not_be_on_the_disk_is_told() {
    let home = tempfile::tempdir().unwrap();
    let condition = Condition::default();
    let synced = |file: File| {
        let (to_sync, files) = mpsc::channel();
        to_sync.send(Arc::new(file)).unwrap();
        drop(to_sync);
        sync(&files, home.path(), &condition);
        condition.health()
    };
    // A pipe has no disk to be on.
    let (_reader, writer) = io::pipe().unwrap();
    assert_eq!(synced(OwnedFd::from(writer).into()), FileHealth::Unsynced);
    assert_eq!(synced(tempfile::tempfile().unwrap()), FileHealth::Ok);
}

#[test]
fn what_was_written_half_does_not_spoil_the_next_record() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::of(home.path());
    folder.make().unwrap();
    let mut writer = Writer::start(folder.clone(), Arc::default(), Clock::system()).unwrap();
    let (first, second) = (record(), record());
    assert!(writer.write(&first.line()).is_ok());
    let current = writer.current.as_mut().unwrap();
    (&*current.file).write_all(b"{\"id\":\"0198").unwrap();
    current.torn = true;
    assert!(writer.write(&second.line()).is_ok());
    writer.close();
    let batch = folder.read(9).unwrap();
    assert_eq!((batch.records, batch.unreadable), (vec![first, second], 1));
}

#[test]
fn a_full_file_is_left_and_its_number_never_comes_back() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::of(home.path());
    let mut writer = Writer::start(folder.clone(), Arc::default(), Clock::system()).unwrap();
    assert!(writer.write(&record().line()).is_ok());
    writer.current.as_mut().unwrap().size = MAX_FILE;
    assert!(writer.write(&record().line()).is_ok());
    assert_eq!(folder.numbers().unwrap(), [1, 2]);
    folder.put_cursor(folder.read(9).unwrap().next).unwrap();
    fs::remove_file(folder.file(2)).unwrap();
    writer.close();
    let mut again = Writer::start(folder.clone(), Arc::default(), Clock::system()).unwrap();
    assert!(again.write(&record().line()).is_ok());
    assert_eq!(folder.numbers().unwrap(), [3]);
    again.close();
}
