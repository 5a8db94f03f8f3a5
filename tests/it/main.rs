mod store;
mod support {
    pub(crate) mod database;
}
