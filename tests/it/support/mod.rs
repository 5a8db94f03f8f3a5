//! What the tests stand on.

pub(crate) mod broker;
pub(crate) mod browser;
pub(crate) mod database;
pub(crate) mod process;
