//! Tests that need several files of this room.

mod outbound;
mod refusals;
mod replies;
mod request_cards;
mod verdicts;
