//! Support of both test binaries: deployments of the broker, databases, a browser.

pub(crate) mod api;
pub(crate) mod broker;
pub(crate) mod browser;
pub(crate) mod database;
pub(crate) mod deployment;
pub(crate) mod files;
pub(crate) mod http;
pub(crate) mod person;
pub(crate) mod pooler;
pub(crate) mod process;
pub(crate) mod replica_process;
pub(crate) mod server;
pub(crate) mod wait;
