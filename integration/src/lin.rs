//! Judges histories: could what these clients saw have come from one copy of the data,
//! each command taking effect at one moment between its call and its return?
//!
//! # Why one of our own
//! Looked at: porcupine-rs 0.3.0 (a port of Porcupine: fast, but every call must have
//! returned, and criterion and regex come with it), todc-utils 0.1.1 (the same, and no
//! limits), stateright 0.31 (for model checking: a recursion over a handful of calls). A
//! cluster under a nemesis leaves hundreds of calls whose outcome nobody knows on a few
//! hot keys; in a depth-first search with a cache, as these are, each stays a possibility
//! at every later step. The search here is breadth-first over time and throws away every
//! possibility that another one covers, so that they cost next to nothing.
//!
//! # How it works
//! Wing and Gong's rule with Lowe's just-in-time linearization
//! (<https://www.cs.ox.ac.uk/people/gavin.lowe/LinearizabiltyTesting/>). Calls and
//! returns are gone through in the order of their times, keeping every [`search`] *point*
//! that explains what has returned so far: a state, the calls still open that have taken
//! effect in it, and the calls of unknown outcome that were used. At a return, each point
//! in which that call has not taken effect is continued by open calls until it has;
//! points that can't be are dropped; no points left is a violation. Three facts keep the
//! points few, and are safe:
//! - A read that fits a state takes effect at once: nobody can tell, and no later
//!   explanation is lost.
//! - Of two points with the same state and the same open calls, the one that used fewer
//!   calls of unknown outcome covers the other: an unknown call may as well never happen.
//! - Calls of unknown outcome that are equal (two INCR) are counted, not named.
//!
//! # Invariants
//! - What has a linearization is accepted, what has none is rejected;
//!   [`Verdict::Undecided`] says that a limit was reached, and is neither
//!   (`integration/tests/lin_checker.rs`).
//! - A call of unknown outcome may take effect at any moment after its call, or never;
//!   never twice.

mod row;
mod search;

pub use row::{Command, Expiry, Kept, Row, RowOp};
pub use search::{Call, Limits, Model, Verdict, check};
