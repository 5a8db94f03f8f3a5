//! The folder of the audit files: numbered files, each begun after the one before it was finished,
//! and the cursor of the shipper.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::AuditEvent;
use crate::os::atomic_file::replace;

/// Bytes that are read at once: more than the longest line has.
const CHUNK: u64 = 1024 * 1024;

/// The folder `audit` of a state directory.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

/// The end of the shipped part: the number of a file, and an offset in it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Cursor {
    pub(super) file: u64,
    pub(super) offset: u64,
}

/// A batch of events read from the files.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) records: Vec<AuditEvent>,
    /// The number of lines that are no events: torn by a crash or a full disk, and never relied on.
    pub(super) unreadable: usize,
    /// The cursor after this batch, to be stored once it is shipped.
    pub(super) next: Cursor,
    /// True if nothing more was there.
    pub(super) last: bool,
}

impl Folder {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self(state_dir.join("audit"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Creates the folder if it does not exist.
    pub(super) fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    pub(super) fn file(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:012}.jsonl"))
    }

    /// The numbers of the files, lowest first.
    pub(super) fn numbers(&self) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let number: Option<u64> =
                name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The shipper's cursor. Without a readable one it is the beginning: an event shipped twice is
    /// stored once.
    pub(super) fn cursor(&self) -> Cursor {
        let read = fs::read(self.0.join("cursor")).ok();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Stores the cursor, and removes the files before it.
    pub(super) fn put_cursor(&self, cursor: Cursor) -> io::Result<()> {
        replace(&self.0.join("cursor"), &serde_json::to_vec(&cursor)?, |_| Ok(()))?;
        for number in self.numbers()?.into_iter().filter(|number| *number < cursor.file) {
            fs::remove_file(self.file(number))?;
        }
        Ok(())
    }

    /// Replaces a small text by its name, and gives the text before it.
    pub(super) fn note(&self, name: &str, text: &str) -> io::Result<Option<String>> {
        let path = self.0.join(name);
        let before = fs::read_to_string(&path).ok();
        if before.as_deref() != Some(text) {
            replace(&path, text.as_bytes(), |_| Ok(()))?;
        }
        Ok(before)
    }

    /// Reads up to `limit` events from the cursor on, whole lines only.
    pub(super) fn read(&self, limit: usize) -> io::Result<Batch> {
        // A file is finished before the next one is begun: once a later number is listed, the
        // earlier files grow no more.
        let numbers = self.numbers()?;
        let mut next = self.cursor();
        let mut batch = Batch { records: Vec::new(), unreadable: 0, next, last: true };
        for (place, &number) in numbers.iter().enumerate() {
            if number < next.file {
                continue;
            }
            if number > next.file {
                next = Cursor { file: number, offset: 0 };
            }
            let left = place + 1 < numbers.len();
            loop {
                let room = limit - batch.records.len();
                let (lines, read) = lines(&self.file(number), next.offset)?;
                for line in lines.split_inclusive(|byte| *byte == b'\n').take(room) {
                    next.offset += line.len() as u64;
                    match AuditEvent::read(line) {
                        Some(record) => batch.records.push(record),
                        // A write that failed half-way leaves an empty line behind it.
                        None => batch.unreadable += usize::from(line.len() > 1),
                    }
                }
                batch.next = next;
                if batch.records.len() == limit {
                    batch.last = false;
                    return Ok(batch);
                }
                if lines.is_empty() {
                    // The end of a file that a crash ended in the middle of a line.
                    batch.unreadable += usize::from(left && read > 0);
                    break;
                }
            }
        }
        Ok(batch)
    }

    /// The number of lines that are not shipped yet.
    pub(super) fn unshipped(&self) -> io::Result<u64> {
        let cursor = self.cursor();
        let mut count = 0;
        for number in self.numbers()?.into_iter().filter(|number| *number >= cursor.file) {
            let mut offset = if number == cursor.file { cursor.offset } else { 0 };
            loop {
                let (lines, _) = lines(&self.file(number), offset)?;
                if lines.is_empty() {
                    break;
                }
                offset += lines.len() as u64;
                count += lines.split_inclusive(|byte| *byte == b'\n').count() as u64;
            }
        }
        Ok(count)
    }
}

/// The whole lines of a chunk of a file, and the bytes that the chunk had. A chunk without a line
/// end is no line of ours, and is returned as if it were one.
fn lines(path: &Path, offset: u64) -> io::Result<(Vec<u8>, usize)> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    let read = file.take(CHUNK).read_to_end(&mut bytes)?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if end > 0 || (read as u64) < CHUNK {
        bytes.truncate(end);
    }
    Ok((bytes, read))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::audit::{Actor, EventKind};

    fn records(count: usize) -> Vec<AuditEvent> {
        let record =
            || AuditEvent::new(EventKind::TokenIssued, &Actor::broker(), Timestamp::UNIX_EPOCH);
        (0..count).map(|_| record()).collect()
    }

    fn bytes(records: &[AuditEvent]) -> Vec<u8> {
        records.iter().flat_map(AuditEvent::line).collect()
    }

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::of(temporary.path());
        folder.make().unwrap();
        (temporary, folder)
    }

    #[test]
    fn files_are_read_in_order_and_removed_when_they_are_shipped() {
        let (_temporary, folder) = folder();
        let all = records(5);
        fs::write(folder.file(9), bytes(&all[..2])).unwrap();
        fs::write(folder.file(10), bytes(&all[2..])).unwrap();
        assert_eq!(folder.unshipped().unwrap(), 5);
        let first = folder.read(3).unwrap();
        assert_eq!((&first.records[..], first.last), (&all[..3], false));
        folder.put_cursor(first.next).unwrap();
        assert_eq!(folder.numbers().unwrap(), [10]);
        assert_eq!(folder.unshipped().unwrap(), 2);
        let rest = folder.read(3).unwrap();
        assert_eq!((&rest.records[..], rest.last), (&all[3..], true));
        // The cursor was not stored, as after a crash: the same again.
        assert_eq!(folder.read(3).unwrap().records, rest.records);
        folder.put_cursor(rest.next).unwrap();
        assert!(folder.read(3).unwrap().records.is_empty());
        assert_eq!(folder.numbers().unwrap(), [10], "it may still be written to");
    }

    #[test]
    fn a_torn_line_is_waited_for_until_its_file_is_left() {
        let (_temporary, folder) = folder();
        let all = records(3);
        let mut torn = bytes(&all[..2]);
        torn.truncate(torn.len() - 9);
        fs::write(folder.file(1), &torn).unwrap();
        let batch = folder.read(9).unwrap();
        assert_eq!((&batch.records[..], batch.unreadable), (&all[..1], 0));
        fs::write(folder.file(2), bytes(&all[2..])).unwrap();
        let batch = folder.read(9).unwrap();
        assert_eq!(batch.records, [all[0].clone(), all[2].clone()]);
        assert_eq!(batch.unreadable, 1);
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let (_temporary, folder) = folder();
        let all = records(2);
        let mut mixed = bytes(&all[..1]);
        mixed.extend(b"{\"id\":\"half a reco\n\n");
        mixed.extend(vec![b'x'; 3 * 1024 * 1024]);
        mixed.push(b'\n');
        mixed.extend(bytes(&all[1..]));
        fs::write(folder.file(1), mixed).unwrap();
        let batch = folder.read(9).unwrap();
        assert_eq!((batch.records, batch.last), (all, true));
        assert!(batch.unreadable >= 2, "{}", batch.unreadable);
    }

    #[test]
    fn a_cursor_that_a_crash_left_empty_is_the_beginning() {
        let (_temporary, folder) = folder();
        fs::write(folder.path().join("cursor"), b"").unwrap();
        fs::write(folder.file(7), bytes(&records(1))).unwrap();
        assert_eq!(folder.read(9).unwrap().records.len(), 1);
    }
}
