//! What replicas of a group send each other, and the trait by which the binary carries
//! it.
//!
//! A replica is addressed by server, group and Raft id. The server is where the carrier
//! goes; group and Raft id say for whom the letter is once there, and a replica takes
//! only what is addressed to its own Raft id: one that was placed anew on the same server
//! is somebody else.
//!
//! # Layout
//! A letter as bytes: version u8 = 1, kind u8, group u64 LE, from u64 LE, target u64 LE,
//! body.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;

use super::types::{Node, RaftId};

const VERSION: u8 = 1;
const HEADER: usize = 26;

/// The largest letter, bytes: what is read of the log at once, or one batch of any size
/// that may be proposed. The carrier must take as much.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Carries letters to other processes. Implemented once by the binary, for storage and
/// meta alike.
pub trait Transport: Send + Sync + 'static {
    /// Delivers a letter to [`Group::receive`](super::Group::receive) of its group on
    /// `to`, and brings back the reply; gives up after the letter's timeout.
    fn send(&self, to: &Node, message: RaftMessage)
    -> BoxFuture<'_, Result<Bytes, TransportError>>;
}

/// Why a letter brought no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// It did not leave.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It left, and no reply came in time.
    #[error("no reply: {0}")]
    Lost(String),
    /// It arrived, and was not taken.
    #[error("refused: {0}")]
    Refused(String),
}

/// What a letter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// Entries, or a heartbeat.
    Append = 1,
    /// Asks for a vote.
    Vote = 2,
    /// Asks whether a vote would be given.
    PreVote = 3,
    /// Hands over leadership.
    TransferLeader = 4,
    /// Offers a state: the list of its files.
    SnapshotOffer = 5,
    /// A piece of one file of an offered state.
    SnapshotChunk = 6,
    /// All pieces are there: put it in place.
    SnapshotInstall = 7,
    /// Asks whether the receiver may lead.
    Readiness = 8,
    /// Asks whether the receiver is there.
    Ping = 9,
    /// Asks the leader for a state: the sender has lost its own.
    SnapshotRequest = 10,
    /// Asks whether the receiver may have lost what it had acknowledged, and how far its
    /// log goes.
    LogStatus = 11,
}

impl MessageKind {
    /// Whether it belongs on the connection for bulk, where it can't hold up heartbeats.
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

/// One request from replica to replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftMessage {
    /// The group's number, the same on all members.
    pub group: u64,
    /// The sender.
    pub from: RaftId,
    /// The receiver.
    pub target: RaftId,
    /// What it is about.
    pub kind: MessageKind,
    /// Encoded by kind; opaque to the carrier.
    pub body: Bytes,
    /// How long the sender waits for the reply. Not carried.
    pub timeout: Duration,
}

impl RaftMessage {
    /// The letter as bytes, timeout left out.
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

    /// A letter from its bytes; the body is a slice of them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(mut bytes: Bytes) -> Result<RaftMessage, &'static str> {
        if bytes.len() < HEADER {
            return Err("a letter is shorter than its header");
        }
        if bytes.get_u8() != VERSION {
            return Err("a letter of an unknown version");
        }
        let kind = MessageKind::of(bytes.get_u8()).ok_or("a letter of an unknown kind")?;
        let (group, from, target) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le());
        Ok(RaftMessage { group, from, target, kind, body: bytes, timeout: Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_come_back_as_they_were() {
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
