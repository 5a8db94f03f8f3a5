#![cfg(test)]
mod model;
#[path = "../it/support/mod.rs"]
#[expect(dead_code, reason = "shared")]
mod support;
mod row {
    pub(crate) struct Row(String);
    impl Row {
        pub(crate) fn new(name: String) -> Self { Self(name) }
        pub(crate) fn runs(self, n: usize) -> Self { Self(format!("{} · {n}", self.0)) }
        pub(crate) fn lost(self, n: usize) -> Self { Self(format!("{} · {n}", self.0)) }
        pub(crate) fn print(self) { println!("{}", self.0) }
    }
    pub(crate) fn is_long() -> bool { std::env::var("FAULTS_LONG").is_ok() }
}
