//! The Redis command table.
//!
//! One [`Command`] entry is the whole truth about a command: name, arity, flags, key
//! positions, documentation and plan. The plan is pure: arguments in, [`Plan`] or error
//! reply out; later [`row::Answer`]s in, which its builder writes as a reply to a
//! [`ReplyWriter`]. A command that takes several rounds of ops is a pure state machine
//! ([`rounds`]). This crate does no I/O.
//!
//! # How to add a command
//! One entry and one short function in the file of its family (`src/hash.rs`, ...), and
//! one script in `tests/scripts/<family>/` (notation: `tests/scripts/README.md`).
//! COMMAND, COMMAND DOCS, redis-cli's hints, ACL categories and `proxy/COMMANDS.md`
//! follow from the entry. If its ops depend on the answers of others, also a machine beside
//! the function; `tests/sinterstore.rs` has an example of all three.
//!
//! # Invariants
//! - No arguments and no answers make a plan, a reply builder or a machine panic, and what
//!   a builder writes is one complete reply (`tests/plans.rs`).
//! - Every entry is used by a script, and every script passes (`tests/scripts.rs`).

pub mod args;
pub mod client;
pub mod config;
pub mod connection;
pub mod docs;
pub mod errors;
pub mod generic;
pub mod latency;
pub mod plan;
pub mod rdb;
pub mod replies;
pub mod reply;
pub mod rounds;
pub mod server;
pub mod table;
pub mod testscript;
mod tips;
pub mod transactions;

mod command;
mod expire;
mod hash;
mod hash_expiry;
mod lcs;
mod pegasus;
mod sort;
mod string;

pub use args::Args;
pub use plan::{LocalCommand, Plan, PlanResult, ReplyBuilder, RowPlan};
pub use reply::{Reply, ReplyWriter};
pub use table::{COMMANDS, Command, find};
