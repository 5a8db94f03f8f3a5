//! The operating system: files that are replaced atomically, threads for work that blocks, and a
//! process that writes no memory to a disk.
//!
//! May use: no other room. Used by the rooms that keep files, and by the commands.

pub(crate) mod atomic_file;
pub(crate) mod blocking;
pub(crate) mod hardening;
