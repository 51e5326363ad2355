//! Messages between the replicas of a group, and the trait by which the binary sends
//! them.
//!
//! A replica is addressed by server, group and Raft id. The server is the transport's
//! destination; group and Raft id name the receiver there. A replica accepts only
//! messages to its own Raft id: a replica that was placed anew on the same server is
//! another replica.
//!
//! # Layout
//! A message as bytes: version u8 = 1, kind u8, group u64 LE, from u64 LE, target u64 LE,
//! body.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;

use super::types::{Node, RaftId};

const VERSION: u8 = 1;
const HEADER: usize = 26;

/// The largest message, bytes: one read of the log, or one batch of any size that may be
/// proposed. The transport must carry as much.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Sends messages to other processes. The binary implements it once, for storage and
/// meta.
pub trait Transport: Send + Sync + 'static {
    /// Delivers a message to [`Group::receive`](super::Group::receive) of its group on
    /// `to`, and returns the reply; gives up after the message's timeout.
    fn send(&self, to: &Node, message: RaftMessage)
    -> BoxFuture<'_, Result<Bytes, TransportError>>;
}

/// Reasons why a message brought no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The message was not sent.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The message was sent, and no reply came in time.
    #[error("no reply: {0}")]
    Lost(String),
    /// The message arrived, and the receiver did not take it.
    #[error("refused: {0}")]
    Refused(String),
}

/// Kinds of messages; the numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// Entries, or a heartbeat.
    Append = 1,
    /// Asks for a vote.
    Vote = 2,
    /// Asks for a vote without effect on terms (pre-vote).
    PreVote = 3,
    /// Transfers leadership.
    TransferLeader = 4,
    /// Offers a snapshot: the list of its files.
    SnapshotOffer = 5,
    /// A chunk of one file of an offered snapshot.
    SnapshotChunk = 6,
    /// All chunks were sent: the receiver is to install the snapshot.
    SnapshotInstall = 7,
    /// Asks for the receiver's readiness to lead.
    Readiness = 8,
    /// Asks for any reply.
    Ping = 9,
    /// Asks the leader for a snapshot: the sender has lost its state.
    SnapshotRequest = 10,
    /// Asks whether the receiver is a suspect (`suspect.rs`), and for the end of its log.
    LogStatus = 11,
}

impl MessageKind {
    /// True for messages that belong on the connection for bulk data, where they can't
    /// delay heartbeats.
    pub fn is_bulk(self) -> bool {
        matches!(
            self,
            MessageKind::SnapshotOffer | MessageKind::SnapshotChunk | MessageKind::SnapshotInstall
        )
    }

    fn of(byte: u8) -> Option<MessageKind> {
        use MessageKind::*;
        [
            Append,
            Vote,
            PreVote,
            TransferLeader,
            SnapshotOffer,
            SnapshotChunk,
            SnapshotInstall,
            Readiness,
            Ping,
            SnapshotRequest,
            LogStatus,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Reasons why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RaftDecodeError {
    /// The bytes end inside the header.
    #[error("a message is shorter than its header")]
    TooShort,
    /// The message is another build's, whose messages differ.
    #[error("a message of an unknown version")]
    UnknownVersion,
    /// The message is of a kind that this build does not know.
    #[error("a message of an unknown kind")]
    UnknownKind,
}

/// One request from replica to replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftMessage {
    /// The group's number, the same on all members.
    pub group: u64,
    /// The sender.
    pub from: RaftId,
    /// The receiver.
    pub target: RaftId,
    /// The kind, which determines the body.
    pub kind: MessageKind,
    /// Encoded by kind; opaque to the transport.
    pub body: Bytes,
    /// The time that the sender waits for the reply. Not sent.
    pub timeout: Duration,
}

impl RaftMessage {
    /// The message as bytes, without the timeout.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER + self.body.len());
        bytes.put_u8(VERSION);
        bytes.put_u8(self.kind as u8);
        bytes.put_u64_le(self.group);
        bytes.put_u64_le(self.from);
        bytes.put_u64_le(self.target);
        bytes.put_slice(&self.body);
        bytes.freeze()
    }

    /// Decodes a message; its body is a slice of `bytes`.
    ///
    /// # Errors
    /// As [`RaftDecodeError`].
    pub fn decode(mut bytes: Bytes) -> Result<RaftMessage, RaftDecodeError> {
        if bytes.len() < HEADER {
            return Err(RaftDecodeError::TooShort);
        }
        if bytes.get_u8() != VERSION {
            return Err(RaftDecodeError::UnknownVersion);
        }
        let kind = MessageKind::of(bytes.get_u8()).ok_or(RaftDecodeError::UnknownKind)?;
        let (group, from, target) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le());
        Ok(RaftMessage { group, from, target, kind, body: bytes, timeout: Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        for kind in (0..=u8::MAX).filter_map(MessageKind::of) {
            let message = RaftMessage {
                group: 7,
                from: 8,
                target: 9,
                kind,
                body: Bytes::from_static(b"body"),
                timeout: Duration::ZERO,
            };
            let bytes = message.encode();
            assert_eq!(RaftMessage::decode(bytes.clone()).unwrap(), message);
            assert!(RaftMessage::decode(bytes.slice(..HEADER - 1)).is_err());
        }
        assert_eq!(
            RaftMessage {
                group: 1,
                from: 2,
                target: 3,
                kind: MessageKind::Vote,
                body: Bytes::from_static(b"x"),
                timeout: Duration::ZERO
            }
            .encode(),
            Bytes::from_static(b"\x01\x02\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0x")
        );
        assert!(
            RaftMessage::decode(Bytes::from_static(&[
                1, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
            ]))
            .is_err()
        );
    }
}
