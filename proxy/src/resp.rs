//! RESP: bytes to commands, replies to bytes. The only place that knows the protocol.
//!
//! A [`framer::Framer`] finds the commands and their arguments, parsing each byte of
//! framing once; it knows Redis's limits and errors for malformed input and can stop at
//! any byte, which `redis-protocol` cannot. A test holds its arguments against those that
//! `redis-protocol` decodes (`tests/fuzz.rs`). An [`Encoder`] writes replies as they are
//! made: by `redis-protocol`, value by value, with the headers of aggregates written here
//! ([`mod@encode`] says why).

pub mod decode;
pub mod encode;
pub mod framer;
mod inline;

pub use decode::{ChunkBytes, argv};
pub use encode::{Encoder, Protocol, encode, error_line};
pub(crate) use framer::ARG_OVERHEAD_BYTES;
pub use framer::{CommandSpan, DiscardProgress, Framer, Limits, OversizedRest, ProtocolError};
