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
pub const LETTER_BYTES_MAX: usize = 64 << 20;

/// Carries letters to other processes. Implemented once by the binary, for storage and
/// meta alike.
pub trait Wire: Send + Sync + 'static {
    /// Delivers a letter to [`Group::receive`](super::Group::receive) of its group on
    /// `to`, and brings back the reply; gives up after the letter's timeout.
    fn send(&self, to: &Node, letter: Letter) -> BoxFuture<'_, Result<Bytes, WireError>>;
}

/// Why a letter brought no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
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
pub enum Kind {
    /// Entries, or a heartbeat.
    Append = 1,
    /// Asks for a vote.
    Vote = 2,
    /// Asks whether a vote would be given.
    PreVote = 3,
    /// Hands over leadership.
    Transfer = 4,
    /// Offers a state: the list of its files.
    Offer = 5,
    /// A piece of one file of an offered state.
    Piece = 6,
    /// All pieces are there: put it in place.
    Install = 7,
    /// Asks whether the receiver may lead.
    Ready = 8,
    /// Asks whether the receiver is there.
    Here = 9,
    /// Asks the leader for a state: the sender has lost its own.
    Wanted = 10,
    /// Asks whether the receiver may have lost what it had acknowledged, and how far its
    /// log goes.
    Intact = 11,
}

impl Kind {
    /// Whether it belongs on the connection for bulk, where it can't hold up heartbeats.
    pub fn is_bulk(self) -> bool {
        matches!(self, Kind::Offer | Kind::Piece | Kind::Install)
    }

    fn of(byte: u8) -> Option<Kind> {
        use Kind::*;
        [Append, Vote, PreVote, Transfer, Offer, Piece, Install, Ready, Here, Wanted, Intact]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One request from replica to replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The group's number, the same on all members.
    pub group: u64,
    /// The sender.
    pub from: RaftId,
    /// The receiver.
    pub target: RaftId,
    /// What it is about.
    pub kind: Kind,
    /// Encoded by kind; opaque to the carrier.
    pub body: Bytes,
    /// How long the sender waits for the reply. Not carried.
    pub timeout: Duration,
}

impl Letter {
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
    pub fn decode(mut bytes: Bytes) -> Result<Letter, &'static str> {
        if bytes.len() < HEADER {
            return Err("a letter is shorter than its header");
        }
        if bytes.get_u8() != VERSION {
            return Err("a letter of an unknown version");
        }
        let kind = Kind::of(bytes.get_u8()).ok_or("a letter of an unknown kind")?;
        let (group, from, target) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le());
        Ok(Letter { group, from, target, kind, body: bytes, timeout: Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_come_back_as_they_were() {
        for kind in (0..=u8::MAX).filter_map(Kind::of) {
            let letter = Letter {
                group: 7,
                from: 8,
                target: 9,
                kind,
                body: Bytes::from_static(b"body"),
                timeout: Duration::ZERO,
            };
            let bytes = letter.encode();
            assert_eq!(Letter::decode(bytes.clone()).unwrap(), letter);
            assert!(Letter::decode(bytes.slice(..HEADER - 1)).is_err());
        }
        assert_eq!(
            Letter {
                group: 1,
                from: 2,
                target: 3,
                kind: Kind::Vote,
                body: Bytes::from_static(b"x"),
                timeout: Duration::ZERO
            }
            .encode(),
            Bytes::from_static(b"\x01\x02\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0x")
        );
        assert!(
            Letter::decode(Bytes::from_static(&[
                1, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
            ]))
            .is_err()
        );
    }
}
