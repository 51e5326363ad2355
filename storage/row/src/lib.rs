//! The operations on rows, as a pure library.
//!
//! A *row* is everything under one hashkey: a head and its cells. This crate knows how
//! rows are laid out as key-value records ([`key`], [`value`]), what can be asked of them
//! ([`Op`]), what is answered ([`Answer`], [`Refusal`]) and which records a write changes
//! ([`Edits`]).
//!
//! It is pure: no I/O, no clock, no randomness. The same op, state and [`Stamp`] give the
//! same answer and the same edits, on every machine and for ever.
//!
//! # Life of an op
//! [`eval()`] takes an [`Op`] and a [`Tx`]: a [`View`] of the applied state, the edits
//! that are in flight or were made earlier in the batch, and the leader's stamp. It
//! answers, or refuses and leaves no edits, or reports a [`Fault`] of the view below.
//!
//! # Layout
//! | family  | key                                                                      | value |
//! |---------|--------------------------------------------------------------------------|-------|
//! | `Head`  | slot u16, hash48, hashkey                                                | header, kind, string or (generation, count, expiries) |
//! | `Cell`  | slot u16, hash48, hashkey length u16, hashkey, generation u64, space u8, sortkey | header, value |
//! | `State` | `x`, expires_at_ms u64, what u8, head key (the time index)               | empty |
//! | `State` | names of counters (`rows`, `expiring`, `generation`)                                 | u64 |
//!
//! All integers are big-endian, so that byte order is numeric order.
//!
//! # Invariants
//! All but the first are checked after every batch of random ops in `tests/model/`.
//! - A generation is never used twice in a partition: what lies under an old one is
//!   invisible (`tests/scripts/hash/replaced.script`).
//! - The time index holds exactly one entry for each row with an expiry, and one for each
//!   row with members that expire, at their floor.
//! - `rows` is the number of heads stored, expired ones that the expiry cycle has not yet
//!   reached included.
//! - A hash's head counts the members stored and those of them that expire, and has a
//!   floor below which none does ([`value::Expiries`]); each member that expires has its
//!   entry by time.
//! - `expiring` is the number of those with an expiry of their own.
//! - A refused op leaves no edits, and neither does one that only reads.
//!
//! # How to add an op
//! A variant of [`Op`], its function in its family's file, a line in `eval.rs`, in
//! `op_info.rs` and in `answer_size.rs`; then a script in `tests/scripts/`, and if it fits
//! the model (`tests/model/`), a line there.

pub mod answer_size;
pub mod edits;
pub mod eval;
pub mod expire;
pub mod glob;
pub mod key;
pub mod memory;
pub mod number;
pub mod op;
pub mod value;
pub mod view;

mod generic;
mod hash;
mod hash_expiry;
mod hash_range;
mod head;
mod members;
mod op_info;
mod pegasus;
mod scan;
mod string;

pub use answer_size::AnswerSize;
pub use edits::{Edits, Family};
pub use eval::{EvalError, eval};
pub use op::{Answer, Op, Refusal};
pub use view::{Fault, Stamp, Tx, View};
