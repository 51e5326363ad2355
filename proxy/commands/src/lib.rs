//! The Redis command table.
//!
//! One [`Command`] entry is the whole truth about a command: name, arity, flags, where
//! its keys are, documentation and its plan. The plan is pure: arguments in, [`Plan`] or
//! error reply out; later [`row::Answer`]s in, [`Reply`] out. Nothing here does I/O.
//!
//! # How to add a command
//! One entry and one short function in its family's file (`src/hash.rs`, ...), one script
//! in `tests/scripts/<family>/` (notation: `tests/scripts/README.md`). COMMAND, COMMAND
//! DOCS, redis-cli's hints, ACL categories and `proxy/COMMANDS.md` follow from the entry.
//!
//! # Invariants
//! - No words and no answers make a plan panic (`tests/plans.rs`).
//! - Every entry is used by a script, and every script holds (`tests/scripts.rs`).

pub mod args;
pub mod docs;
pub mod errors;
pub mod generic;
pub mod plan;
pub mod rdb;
pub mod replies;
pub mod reply;
pub mod table;
pub mod testscript;
mod tips;

mod client;
mod command;
mod config;
mod connection;
mod expire;
mod hash;
mod hash_expiry;
mod latency;
mod lcs;
mod pegasus;
mod server;
mod sort;
mod string;
mod transactions;

pub use args::Args;
pub use plan::{LocalCommand, Plan, PlanResult, ReplyBuilder, RowPlan};
pub use reply::Reply;
pub use table::{COMMANDS, Command, find};
