//! Steps that must not be given up.

use std::time::Duration;

use tokio::time::sleep;

use super::StoreError;

/// Repeats a step until the database has answered it: what a provider answered exists nowhere else,
/// and must not be lost because the database is away.
pub async fn retry_forever<T, F>(step: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match step().await {
            Ok(done) => return done,
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "the database did not take a step that must not be given up; trying again"
            ),
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}
