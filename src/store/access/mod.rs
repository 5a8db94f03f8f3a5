//! Services, operators, their keys, and freezes.
//!
//! May use: the engine. Used through [`Store`](super::Store).

pub(crate) mod callers;
pub(crate) mod freezes;
