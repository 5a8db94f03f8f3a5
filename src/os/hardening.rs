//! Hardening: tokens and keys lie open in this process's memory, which no crash may write to a disk
//! and no other process of the same user may read.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Disables core dumps for good. On Linux the process becomes non-dumpable besides: a core handler
/// gets nothing, and neither debuggers nor `/proc` show its memory to anyone but root.
///
/// # Errors
///
/// When the system refuses; a secret should not be read then.
pub(crate) fn forbid() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    #[test]
    fn nothing_of_this_process_is_dumped() {
        forbid().unwrap();
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        #[cfg(target_os = "linux")]
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            rustix::process::DumpableBehavior::NotDumpable
        );
    }
}
