//! Work on files, off the threads that serve requests.

use std::io;

use tokio::task::spawn_blocking;

/// Runs a step that blocks. A panic within it is an error like any other.
pub(crate) async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(step).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
