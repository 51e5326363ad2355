//! The data model: rows, the operations on them, and the records that they change.
//!
//! A *row* is everything under one hashkey: a head and its cells. This crate defines the
//! layout of rows as key-value records ([`key`], [`value`]), the operations on them
//! ([`Op`]), their answers ([`Answer`], [`Refusal`]) and the records that a write changes
//! ([`Edits`]).
//!
//! It is pure: no I/O, no clock, no randomness. The same op, state and [`Stamp`] give the
//! same answer and the same edits on every machine.
//!
//! # Life of an op
//! [`eval()`] takes an [`Op`] and a [`Tx`]: a [`View`] of the applied state, the edits
//! that are in flight or were made earlier in the batch, and the leader's stamp. It
//! returns an answer, or a refusal that leaves no edits, or a [`Fault`] of the view
//! below.
//!
//! # Layout
//! | family  | key                                             | value           |
//! |---------|-------------------------------------------------|-----------------|
//! | `Head`  | slot u16, hash48, hashkey                       | header, kind, body |
//! | `Cell`  | slot u16, hash48, length u16, hashkey, generation, space, sortkey | header, value |
//! | `State` | `x`, expires_at_ms u64, target u8, head key (the time index) | empty |
//! | `State` | a counter's name (`rows`, `expiring`, `generation`) | u64         |
//!
//! A generation is a u64, a space a u8. The body of a head is in one of the forms that
//! `form.rs` lists: a string is its own body; of a collection, whose members are in
//! cells, it is generation, count, and the kind's own part, such as the expiries of a
//! hash. All integers are big-endian, so that byte order is numeric order.
//!
//! # Kinds
//! `members.rs` reads, writes, counts, walks, scans and expires the members of any
//! collection; hashes are the first kind. `form.rs` says how to add one.
//!
//! # Invariants
//! All but the first are checked after every batch of random ops in `tests/model/`.
//! - A generation is never used twice in a partition: cells under an old one are
//!   invisible (`tests/scripts/hash/replaced.script`).
//! - The time index holds exactly one entry for each row with an expiry, and one for each
//!   row with members that expire, at their floor.
//! - `rows` is the number of heads stored, expired ones that the expiry cycle has not yet
//!   reached included.
//! - A collection's head counts the members stored and those of them that expire, and has
//!   a floor below which none does ([`value::Expiries`]); each member that expires has its
//!   entry by time.
//! - `expiring` is the number of rows with an expiry of their own.
//! - A refused op leaves no edits, and neither does one that only reads.
//!
//! # How to add an op
//! Write its function in its family's file, and its line in the family's
//! [`ops!`] above it; then a line in `tests/vectors/ops.txt` and a script in
//! `tests/scripts/`, and its answer in the model (`tests/model/`) if it fits it.
//! [`registry`] says what the line declares.

pub mod edits;
pub mod eval;
pub mod expire;
pub mod glob;
pub mod key;
pub mod memory;
pub mod number;
pub mod op;
pub mod random;
pub mod registry;
pub mod value;
pub mod view;

mod filter;
mod form;
mod generic;
mod hash;
mod hash_expiry;
mod hash_range;
mod head;
mod members;
mod pegasus;
mod scan;
mod string;

pub use edits::{Edits, Family};
pub use eval::{EvalError, eval};
pub use generic::RowOp;
pub use hash::HashOp;
pub use op::{Answer, Op, Refusal};
pub use random::SplitMix64;
pub use registry::{AnswerSize, Key};
pub use scan::PartitionOp;
pub use string::StringOp;
pub use view::{Fault, FaultKind, Stamp, Tx, View};
