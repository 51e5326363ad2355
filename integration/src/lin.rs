//! A linearizability checker: could a history have come from one copy of the data, with
//! each command taking effect at one instant between its call and its return?
//!
//! # Why not an existing checker
//! Considered: porcupine-rs 0.3.0 (a port of Porcupine: fast, but every call must have
//! returned, and criterion and regex come with it), todc-utils 0.1.1 (the same, and no
//! limits), stateright 0.31 (for model checking: a recursion over a handful of calls). A
//! cluster under a nemesis leaves hundreds of calls of unknown outcome on a few hot keys;
//! in a depth-first search with a cache, as in these, each stays possible at every later
//! step. The search here is breadth-first over time and drops every possibility that
//! another one covers, so that unknown calls cost almost nothing.
//!
//! # How it works
//! Wing and Gong's rule with Lowe's just-in-time linearization
//! (<https://www.cs.ox.ac.uk/people/gavin.lowe/LinearizabiltyTesting/>). Calls and
//! returns are processed in the order of their times. The [`search`] keeps every *point*
//! that explains the returns so far: a state, the open calls that have taken effect in
//! it, and the calls of unknown outcome that were used. At a return, each point in which
//! that call has not taken effect is extended by open calls until it has; points that
//! can't be extended are dropped; no remaining point is a violation. Three facts keep the
//! number of points small, and are safe:
//! - A read that fits a state takes effect immediately: no client can tell, and no later
//!   explanation is lost.
//! - Of two points with the same state and the same open calls, the one that used fewer
//!   calls of unknown outcome covers the other: an unknown call may as well never happen.
//! - Calls of unknown outcome that are equal (two INCR) are counted, not named.
//!
//! # Invariants
//! - A history with a linearization is accepted, one without is rejected;
//!   [`Verdict::Undecided`] means that a limit was reached, and is neither
//!   (`integration/tests/lin_checker.rs`).
//! - A call of unknown outcome may take effect at any time after its call, or never; it
//!   never takes effect twice.

mod row;
mod search;

pub use row::{Command, Expiry, KeyState, Row, RowOp};
pub use search::{Call, Limits, Model, Verdict, check};
