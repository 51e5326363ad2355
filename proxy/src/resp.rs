//! The wire: bytes to commands, replies to bytes. The only place where RESP is spoken.
//!
//! Requests are found by a [`framer::Framer`], which knows Redis's limits and words for
//! malformed input and can stop at any byte; what has passed it is decoded by
//! `redis-protocol`, which therefore never sees an incomplete or oversized frame. Replies
//! are encoded by `redis-protocol`, value by value, with the headers of aggregates
//! written here ([`mod@encode`] says why).

pub mod decode;
pub mod encode;
pub mod framer;
mod inline;

pub use decode::argv;
pub use encode::{Protocol, encode};
pub(crate) use framer::ARG_OVERHEAD_BYTES;
pub use framer::{CommandSpan, DiscardProgress, Framer, Limits, OversizedRest, ProtocolError};
