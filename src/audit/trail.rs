//! The audit file. A writer thread appends all waiting events as one batch and then answers their
//! callers. Written events survive the death of the process; a second thread brings them to the
//! disk within about a second, and no caller waits for that.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvError, RecvTimeoutError, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use super::{AuditEvent, FileHealth, folder::Folder};
use crate::clock::{Clock, Stopwatch};

/// The longest wait for an event to be written. Afterwards its token is not handed out.
const WRITE_TIMEOUT: Duration = Duration::from_millis(250);

/// Events that may wait for the writer.
const QUEUE: usize = 8_192;

/// The size in bytes from which no more events are added to a batch.
const MAX_BATCH: usize = 1024 * 1024;

/// The size in bytes from which the next file is begun.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The longest time between a write and its fsync.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// An event was not written: the action that it records must not happen, if that is still possible.
#[derive(Debug, thiserror::Error)]
#[error("the audit event was not written")]
pub struct NotWritten;

/// The writer's handle of the audit file, with its condition. One for each state directory.
#[derive(Debug)]
pub struct Trail {
    pub(super) folder: Folder,
    entries: SyncSender<Message>,
    condition: Arc<Condition>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Events shipped, out of those that [`Condition`] counts as written.
    shipped: AtomicU64,
    /// Only one shipper at a time, so that the cursor never goes back.
    pub(super) shipping: tokio::sync::Mutex<()>,
}

/// The condition of the file, shared with the threads.
#[derive(Debug, Default)]
struct Condition {
    /// The last event was not written.
    failing: AtomicBool,
    /// The last fsync failed: written events may never reach the disk.
    unsynced: AtomicBool,
    /// Events that lay in the files when they were opened or were written since.
    written: AtomicU64,
}

impl Condition {
    fn health(&self) -> FileHealth {
        if self.failing.load(Ordering::Relaxed) {
            FileHealth::Failing
        } else if self.unsynced.load(Ordering::Relaxed) {
            FileHealth::Unsynced
        } else {
            FileHealth::Ok
        }
    }
}

enum Message {
    Entry(Entry),
    /// Answered once all earlier events are written, or are known not to be.
    Flush(oneshot::Sender<()>),
    Close,
}

/// An event that waits to be written.
struct Entry {
    line: Vec<u8>,
    /// The waiting caller; none for an event that has happened already.
    waits: Option<oneshot::Sender<()>>,
}

impl Entry {
    /// False once the caller has given up: nothing was handed out then.
    fn counts(&self) -> bool {
        self.waits.as_ref().is_none_or(|waits| !waits.is_closed())
    }
}

impl Trail {
    /// Opens the audit folder of a state directory, creates it if need be, and starts the threads.
    /// The first event begins a file of its own.
    pub fn open(state_dir: &Path, clock: Clock) -> io::Result<Self> {
        let folder = Folder::of(state_dir);
        folder.make()?;
        let condition = Arc::new(Condition::default());
        condition.written.store(folder.unshipped()?, Ordering::Relaxed);
        let (entries, queue) = mpsc::sync_channel(QUEUE);
        let writer = Writer::start(folder.clone(), Arc::clone(&condition), clock)?;
        let thread = thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || writer.run(&queue))?;
        Ok(Self {
            folder,
            entries,
            condition,
            thread: Mutex::new(Some(thread)),
            shipped: AtomicU64::new(0),
            shipping: tokio::sync::Mutex::default(),
        })
    }

    /// Appends an event to the file and waits until it is written, for a quarter of a second at the
    /// most. An event that was given up is written only if that had begun before.
    pub async fn append(&self, record: &AuditEvent) -> Result<(), NotWritten> {
        let (waits, written) = oneshot::channel();
        let entry = Entry { line: record.line(), waits: Some(waits) };
        self.entries.try_send(Message::Entry(entry)).map_err(|_| self.not_written())?;
        match timeout(WRITE_TIMEOUT, written).await {
            Ok(Ok(())) => Ok(()),
            // The writer has set the condition already.
            Ok(Err(_)) => Err(NotWritten),
            Err(_) => Err(self.not_written()),
        }
    }

    /// Waits until everything appended before is written, as far as it can be.
    pub(super) async fn flush(&self) {
        let (waits, flushed) = oneshot::channel();
        if self.entries.try_send(Message::Flush(waits)).is_ok() {
            let _ = timeout(WRITE_TIMEOUT, flushed).await;
        }
    }

    fn not_written(&self) -> NotWritten {
        self.condition.failing.store(true, Ordering::Relaxed);
        NotWritten
    }

    /// Appends an event that has happened already, without waiting. If it cannot be written, it is
    /// logged.
    pub fn emit(&self, record: &AuditEvent) {
        let entry = Entry { line: record.line(), waits: None };
        if let Err(error) = self.entries.try_send(Message::Entry(entry)) {
            let (mpsc::TrySendError::Full(message) | mpsc::TrySendError::Disconnected(message)) =
                error;
            self.not_written();
            if let Message::Entry(entry) = message {
                log_lost(&entry);
            }
        }
    }

    /// The health of the file.
    pub fn health(&self) -> FileHealth {
        self.condition.health()
    }

    /// The number of events that are not in the database yet.
    pub fn unshipped(&self) -> u64 {
        self.written().saturating_sub(self.shipped.load(Ordering::Relaxed))
    }

    /// The number of events written so far, to be told apart from later ones.
    pub(super) fn written(&self) -> u64 {
        self.condition.written.load(Ordering::Acquire)
    }

    /// Counts events that were shipped.
    pub(super) fn add_shipped(&self, count: usize) {
        let shipped = self.shipped.load(Ordering::Relaxed).saturating_add(count as u64);
        self.shipped.store(shipped.min(self.written()), Ordering::Relaxed);
    }

    /// Counts all events up to `written` as shipped: in the database, or lost with their file.
    pub(super) fn all_shipped(&self, written: u64) {
        self.shipped.fetch_max(written, Ordering::Relaxed);
    }

    /// Stores a text under a name, and tells whether it differs from the one before. None if there
    /// was none.
    pub fn note_change(&self, name: &str, text: &str) -> io::Result<Option<bool>> {
        let before = self.folder.note(name, text)?;
        Ok(before.map(|before| before != text))
    }

    /// Writes the waiting events, syncs them, and ends the threads. Blocks until that is done;
    /// nothing is written afterwards.
    pub fn close(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && self.entries.send(Message::Close).is_ok()
        {
            let _ = thread.join();
        }
    }
}

/// Logs an event that was not written. It holds no secret.
fn log_lost(entry: &Entry) {
    let line = String::from_utf8_lossy(&entry.line);
    tracing::error!(record = line.trim_end(), "cannot write an audit event");
}

/// The messages of one round of the writer.
#[derive(Default)]
struct Round {
    batch: Vec<Entry>,
    flushes: Vec<oneshot::Sender<()>>,
    closing: bool,
}

impl Round {
    /// Takes the first message and those that wait behind it, up to the size of a batch.
    fn gather(first: Option<Message>, queue: &Receiver<Message>) -> Self {
        let mut round = Self::default();
        let mut size = 0;
        let mut next = first;
        while let Some(message) = next {
            match message {
                Message::Entry(entry) if entry.counts() => {
                    size += entry.line.len();
                    round.batch.push(entry);
                }
                Message::Entry(_) => {}
                Message::Flush(waits) => round.flushes.push(waits),
                Message::Close => round.closing = true,
            }
            next = if size < MAX_BATCH { queue.try_recv().ok() } else { None };
        }
        round
    }
}

/// The state of the writer thread.
struct Writer {
    folder: Folder,
    condition: Arc<Condition>,
    /// The number of the last file.
    number: u64,
    current: Option<Current>,
    /// Hands files to the sync thread.
    to_sync: Sender<Arc<File>>,
    syncer: JoinHandle<()>,
    clock: Clock,
    last_sync: Stopwatch,
    /// True if something was written since the last sync.
    dirty: bool,
}

/// The file in use.
struct Current {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    /// A write failed half-way: the next one begins with a line end.
    torn: bool,
}

/// Errors of writing a batch.
enum Failed {
    /// The file is gone from its place: another one may do.
    Gone,
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Writer {
    fn start(folder: Folder, condition: Arc<Condition>, clock: Clock) -> io::Result<Self> {
        let (to_sync, files) = mpsc::channel();
        let (path, shared) = (folder.path().to_owned(), Arc::clone(&condition));
        let syncer = thread::Builder::new().name("audit-sync".to_owned());
        let syncer = syncer.spawn(move || sync(&files, &path, &shared))?;
        Ok(Self {
            folder,
            condition,
            number: 0,
            current: None,
            to_sync,
            syncer,
            last_sync: clock.stopwatch(),
            clock,
            dirty: false,
        })
    }

    fn run(mut self, queue: &Receiver<Message>) {
        while let Ok(first) = self.wait(queue) {
            let Round { batch, flushes, closing } = Round::gather(first, queue);
            // A failing file is probed without an event, too: a caller that sends none still has to
            // learn that it works again.
            let probe = !flushes.is_empty() && self.condition.health() == FileHealth::Failing;
            if !batch.is_empty() || probe {
                self.write_all(batch);
            }
            for flush in flushes {
                // An error means that the caller has gone.
                let _ = flush.send(());
            }
            self.sync_in_time();
            if closing {
                break;
            }
        }
        self.close();
    }

    /// Waits for a message; none when written lines have waited long enough for their fsync.
    fn wait(&self, queue: &Receiver<Message>) -> Result<Option<Message>, RecvError> {
        if !self.dirty {
            return queue.recv().map(Some);
        }
        match queue.recv_timeout(SYNC_EVERY) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(RecvError),
        }
    }

    /// Writes a batch and answers the waiting callers.
    fn write_all(&mut self, batch: Vec<Entry>) {
        let mut lines = Vec::with_capacity(batch.iter().map(|entry| entry.line.len()).sum());
        for entry in &batch {
            lines.extend_from_slice(&entry.line);
        }
        if lines.is_empty() {
            lines.push(b'\n');
        }
        let written = match self.write(&lines) {
            Err(Failed::Gone) => {
                // The folder may be back, or a new one can be made.
                self.current = None;
                self.write(&lines)
            }
            written => written,
        };
        if let Err(failed) = written {
            let error = match failed {
                Failed::Gone => io::ErrorKind::NotFound.into(),
                Failed::Io(error) => error,
            };
            if !self.condition.failing.swap(true, Ordering::Relaxed) {
                let folder = self.folder.path().display();
                tracing::error!(%error, "{folder}: cannot write audit events: no token is handed out");
            }
            // Waiting callers learn it from their closed channels.
            batch.iter().filter(|entry| entry.waits.is_none()).for_each(log_lost);
            return;
        }
        self.dirty = true;
        self.condition.written.fetch_add(batch.len() as u64, Ordering::Release);
        if self.condition.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("audit events are written again");
        }
        for entry in batch {
            if let Some(waits) = entry.waits {
                // A caller that gave up a moment ago has refused already.
                let _ = waits.send(());
            }
        }
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), Failed> {
        let full = self.current.as_ref().is_some_and(|current| current.size >= MAX_FILE);
        // After a failed fsync, later writes to the same file may be lost, too.
        let doubtful = self.dirty && self.condition.unsynced.load(Ordering::Relaxed);
        if (full || doubtful)
            && let Some(current) = self.current.take()
        {
            self.hand_to_sync(current.file);
        }
        if self.current.is_none() {
            self.current = Some(self.begin_file()?);
        }
        let Some(current) = &mut self.current else { return Err(Failed::Gone) };
        let begun = if current.torn { (&*current.file).write_all(b"\n") } else { Ok(()) };
        if let Err(error) = begun.and_then(|()| (&*current.file).write_all(lines)) {
            current.torn = true;
            if current.size == 0 {
                // Or each attempt would leave a file behind.
                let _ = fs::remove_file(&current.path);
                self.current = None;
            }
            return Err(error.into());
        }
        current.torn = false;
        current.size += lines.len() as u64;
        // A file that was removed or moved away takes every write, but is never found again.
        let held = current.file.metadata()?;
        match fs::metadata(&current.path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => Ok(()),
            _ => Err(Failed::Gone),
        }
    }

    /// Begins a file with a new number: higher than any that exists or was shipped.
    fn begin_file(&mut self) -> io::Result<Current> {
        self.folder.make()?;
        let highest = self.folder.numbers()?.last().copied().unwrap_or_default();
        self.number = self.number.max(highest).max(self.folder.cursor().file) + 1;
        let path = self.folder.file(self.number);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Current { file: Arc::new(file), path, size: 0, torn: false })
    }

    fn sync_in_time(&mut self) {
        if self.dirty
            && self.last_sync.elapsed() >= SYNC_EVERY
            && let Some(current) = &self.current
        {
            let file = Arc::clone(&current.file);
            self.hand_to_sync(file);
            self.dirty = false;
        }
    }

    fn hand_to_sync(&mut self, file: Arc<File>) {
        // The sync thread ends only after its channel is closed.
        let _ = self.to_sync.send(file);
        self.last_sync = self.clock.stopwatch();
    }

    fn close(mut self) {
        if let Some(current) = self.current.take() {
            self.hand_to_sync(current.file);
        }
        let Self { to_sync, syncer, .. } = self;
        drop(to_sync);
        let _ = syncer.join();
    }
}

/// The sync thread: syncs each file, and the folder that names it.
fn sync(files: &Receiver<Arc<File>>, folder: &Path, condition: &Condition) {
    while let Ok(file) = files.recv() {
        let synced = file.sync_data().and_then(|()| File::open(folder)?.sync_all());
        let before = condition.unsynced.swap(synced.is_err(), Ordering::Relaxed);
        if let Err(error) = synced
            && !before
        {
            tracing::error!(%error, "cannot sync the audit file: written events may not be on the disk");
        }
    }
}

#[cfg(test)]
mod tests;
