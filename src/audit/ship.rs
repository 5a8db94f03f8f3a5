//! Shipping: from the files into the database. After a crash the same events are shipped again, and
//! the database stores each once.

use std::{io, sync::Arc};

use super::{AuditEvent, Trail, folder::Cursor};
use crate::os::blocking::blocking;

/// Events that go into the database at once.
pub const BATCH: usize = 500;

/// Ships up to [`BATCH`] events and removes the files that are not needed any more. Returns the
/// number of events shipped; fewer than [`BATCH`] if nothing more was there.
///
/// # Errors
///
/// When the files or the taker fail. Some of the records may have been taken then.
pub async fn ship<E: From<io::Error>>(
    trail: &Arc<Trail>,
    take: impl AsyncFnOnce(&[AuditEvent]) -> Result<(), E>,
) -> Result<usize, E> {
    let _turn = trail.shipping.lock().await;
    trail.flush().await;
    let reading = Arc::clone(trail);
    let (batch, before, written) = blocking(move || {
        let (before, written) = (reading.folder.cursor(), reading.written());
        Ok((reading.folder.read(BATCH)?, before, written))
    })
    .await?;
    if batch.unreadable > 0 {
        tracing::warn!(lines = batch.unreadable, "the audit files hold lines that are no events");
    }
    take(&batch.records).await?;
    if batch.next != before {
        put_cursor(trail, batch.next).await?;
    }
    trail.add_shipped(batch.records.len());
    if batch.last {
        trail.all_shipped(written);
    }
    Ok(batch.records.len())
}

async fn put_cursor(trail: &Arc<Trail>, next: Cursor) -> io::Result<()> {
    let trail = Arc::clone(trail);
    blocking(move || trail.folder.put_cursor(next)).await
}
