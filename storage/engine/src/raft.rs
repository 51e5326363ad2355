//! Raft groups: openraft over the node's log, a store, and a transport between servers.

mod append;
mod fault;
pub mod group;
pub mod log_store;
pub mod machine;
mod members;
mod message;
mod peers;
pub mod purge;
mod rebuild;
mod receive;
mod snapshot;
mod start;
mod suspect;
mod thrifty;
mod ticker;
pub mod transport;
pub mod types;
#[cfg(test)]
mod vectors;

pub use fault::{ErrorCause, GroupFault};
pub use group::{
    Group, GroupError, GroupStats, LEADER_LEASE, Leader, Leadership, ProposalFuture,
    QUORUM_ACK_AGE_MAX, Role,
};
pub use log_store::GroupLog;
pub use machine::{Machine, Progress, SnapshotSource};
pub use members::{ChangeError, Follower, GroupStatus, TransferReason};
pub use rebuild::{Rebuild, RebuildOptions, finish_rebuild, rebuild_dirs};
pub use receive::ReceiveError;
pub use start::GroupOptions;
pub use ticker::Ticker;
pub use transport::{
    MESSAGE_BYTES_MAX, MessageKind, RaftDecodeError, RaftMessage, Transport, TransportError,
};
pub use types::{Node, RaftId};
