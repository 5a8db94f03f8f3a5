//! Consent links, attempts at a consent, and codes that are being exchanged.
//!
//! May use: the engine. Used through [`Store`](super::Store).

pub(crate) mod consents;
pub(crate) mod exchanges;
