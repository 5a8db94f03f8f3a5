//! What the operating system is asked for: files that are replaced whole, and a process that writes
//! no memory to a disk.
//!
//! May use: nothing of this crate. Used by the rooms that keep files, and by the commands.

pub(crate) mod atomic_file;
pub(crate) mod hardening;
