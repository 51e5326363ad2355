//! Channels: two-way streams of messages over a connection that others share.
//!
//! Each side may send until the other's [`WINDOW_BYTES`] are full, and goes on as that
//! one takes messages out: a slow consumer holds its sender back and nobody else, and
//! what waits for it is bounded.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::connection::{Connection, SendRefused};
use super::{NetError, Peer};

/// Bytes that may wait for a channel's consumer; the last message may go beyond it.
pub(super) const WINDOW_BYTES: usize = 512 * 1024;
/// Cost of a message beside its bytes.
const MESSAGE_OVERHEAD: usize = 64;

/// Bytes of the window that a message takes.
pub(super) fn cost(message: &Bytes) -> usize {
    message.len() + MESSAGE_OVERHEAD
}

/// One end of a two-way stream of messages. Dropping it tells the other side.
pub struct Channel {
    sender: ChannelSender,
    receiver: ChannelReceiver,
}

/// The half of a [`Channel`] that sends. When it is dropped the other side's `recv` ends,
/// after the messages sent so far.
pub struct ChannelSender {
    connection: Arc<Connection>,
    id: u64,
}

/// The half of a [`Channel`] that receives. When it is dropped the other side's `send`
/// fails.
pub struct ChannelReceiver {
    connection: Arc<Connection>,
    id: u64,
    inbox: mpsc::UnboundedReceiver<Bytes>, // bounded by the window, which the link enforces
    /// Taken out and not yet given back as credit.
    owed: usize,
}

impl Channel {
    pub(super) fn new(
        connection: Arc<Connection>,
        id: u64,
        inbox: mpsc::UnboundedReceiver<Bytes>,
    ) -> Self {
        Channel {
            sender: ChannelSender { connection: connection.clone(), id },
            receiver: ChannelReceiver { connection, id, inbox, owed: 0 },
        }
    }

    /// As [`ChannelSender::send`].
    pub async fn send(&self, message: Bytes) -> Result<(), NetError> {
        self.sender.send(message).await
    }

    /// As [`ChannelReceiver::recv`].
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.receiver.recv().await
    }

    /// As [`ChannelReceiver::failure`].
    pub fn failure(&self) -> Option<String> {
        self.receiver.failure()
    }

    /// The other end.
    pub fn peer(&self) -> &Peer {
        self.sender.peer()
    }

    /// The two halves, for two tasks.
    pub fn split(self) -> (ChannelSender, ChannelReceiver) {
        (self.sender, self.receiver)
    }
}

impl ChannelSender {
    /// Queues a message, once there is room for it; it may still be lost with the
    /// connection, which the next `send` or the end of `recv` tells.
    /// [`NetError::NotSent`]: the channel has ended; [`NetError::TooLarge`]: larger than
    /// a frame may be. Can be cancelled: then it was not sent.
    pub async fn send(&self, message: Bytes) -> Result<(), NetError> {
        let size = message.len();
        if size > self.connection.frame_bytes_max() {
            return Err(self.connection.too_large("message", size));
        }
        loop {
            match self.connection.try_message(self.id, &message) {
                Ok(()) => return Ok(()),
                Err(SendRefused::Ended(why)) => return Err(NetError::NotSent(why)),
                Err(SendRefused::Full(room)) => room.await,
            }
        }
    }

    /// The other end.
    pub fn peer(&self) -> &Peer {
        &self.connection.peer
    }
}

impl Drop for ChannelSender {
    fn drop(&mut self) {
        self.connection.end_sending(self.id);
    }
}

impl ChannelReceiver {
    /// The next message; `None` when the other side has ended the channel or the
    /// connection is lost. Can be cancelled without losing one.
    pub async fn recv(&mut self) -> Option<Bytes> {
        let message = self.inbox.recv().await?;
        self.owed += cost(&message);
        if self.owed >= WINDOW_BYTES / 4 {
            self.connection.give_credit(self.id, std::mem::take(&mut self.owed));
        }
        Some(message)
    }

    /// Why the connection was lost, if it was.
    pub fn failure(&self) -> Option<String> {
        self.connection.failure()
    }

    /// The other end.
    pub fn peer(&self) -> &Peer {
        &self.connection.peer
    }
}

impl Drop for ChannelReceiver {
    fn drop(&mut self) {
        self.connection.end_receiving(self.id);
    }
}
