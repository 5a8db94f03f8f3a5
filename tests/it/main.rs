//! The tests that need more than one room.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod store;
mod support {
    pub(crate) mod database;
}
