//! The HTTP surface: two listeners, their routes and the pages that people see.

pub mod pages;
