//! What the tests stand on.

pub(crate) mod browser;
#[expect(dead_code, reason = "the binary has no command yet that a test could start")]
pub(crate) mod process;
