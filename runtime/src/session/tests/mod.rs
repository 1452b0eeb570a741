//! The session as its host sees it: frames in, frames out, with the engine played by the test.

mod acks;
mod credit;
mod epochs;
mod evidence;
mod harness;
mod lease;
mod receipts;
mod refusals;
mod simulate;
mod streams;
