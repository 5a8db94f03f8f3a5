//! What the tests stand on.

pub(crate) mod broker;
pub(crate) mod browser;
pub(crate) mod database;
pub(crate) mod http;
pub(crate) mod pooler;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod wait;
