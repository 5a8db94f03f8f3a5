//! The reason why the broker did not start.

use crate::store::StoreError;

/// The reason why the broker did not start: one line with advice.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operator has to change something.
    #[error("{0}")]
    Settings(String),
    /// Something that is needed cannot be reached.
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::EarlierBuild | StoreError::NewerSchema { .. } => {
                Self::Settings(error.to_string())
            }
            error => Self::Unavailable(error.to_string()),
        }
    }
}
