//! Tests that need several files of this room.

mod outbound;
mod properties;
mod refusals;
mod replies;
mod request_cards;
mod tls;
mod verdicts;
