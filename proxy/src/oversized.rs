//! Oversized commands: the client gets an error, and the rest of the command is read and
//! discarded.
//!
//! A client that is disconnected while it sends sees a broken pipe and not the error. So
//! the server sends the error, half-closes the socket, reads the announced bytes within
//! bounds, and only then closes the connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use crate::buffers::READ_BYTES_MAX;
use crate::client::Client;
use crate::resp::{DiscardProgress, OversizedRest, ProtocolError};

/// Limit of discarded bytes, and of the pause between two reads.
const BYTES_MAX: u64 = 1 << 30;
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Limits for unauthenticated clients: bytes, and total time.
const UNAUTHENTICATED_BYTES_MAX: u64 = 1 << 20;
const UNAUTHENTICATED_TIME_MAX: Duration = Duration::from_secs(10);
/// After that, the client may send on with shorter pauses than this: it may read the
/// error only then.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// The oversized command that is being discarded.
pub(crate) struct Discarding {
    error: ProtocolError,
    rest: OversizedRest,
    room: BytesMut,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
    deadline: Pin<Box<Sleep>>,
    is_unauthenticated: bool,
    /// The socket is half-closed.
    pub(crate) is_told: bool,
}

impl Discarding {
    /// Starts with the part that has arrived.
    pub(crate) fn new(
        error: ProtocolError,
        rest: OversizedRest,
        is_unauthenticated: bool,
        input: &mut BytesMut,
    ) -> Discarding {
        let (bytes_max, time) = if is_unauthenticated {
            (UNAUTHENTICATED_BYTES_MAX, UNAUTHENTICATED_TIME_MAX)
        } else {
            (BYTES_MAX, READ_TIMEOUT)
        };
        let deadline = Box::pin(tokio::time::sleep(time));
        Discarding {
            error,
            rest,
            room: std::mem::take(input),
            bytes: 0,
            bytes_max,
            deadline,
            is_unauthenticated,
            is_told: false,
        }
    }

    /// Reads to the end and returns the reason for stopping.
    pub(crate) fn poll<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<&'static str> {
        loop {
            self.bytes += self.room.len() as u64;
            let progress = self.rest.take(&self.room);
            if self.room.capacity() > READ_BYTES_MAX {
                self.room = BytesMut::new();
            }
            self.room.clear();
            match progress {
                DiscardProgress::All => return Poll::Ready("all of it was read"),
                DiscardProgress::Desynchronized => return Poll::Ready("the rest is not RESP"),
                DiscardProgress::More if self.bytes >= self.bytes_max => {
                    return Poll::Ready("limit of discarded bytes reached");
                }
                DiscardProgress::More => self.room.reserve(READ_BYTES_MAX / 4),
            }
            match poll_read_buf(Pin::new(&mut *stream), context, &mut self.room) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready("client disconnected"),
                Poll::Ready(Ok(_)) if self.is_unauthenticated => {}
                Poll::Ready(Ok(_)) => self.deadline.as_mut().reset(Instant::now() + READ_TIMEOUT),
                Poll::Pending => {
                    ready!(self.deadline.as_mut().poll(context));
                    return Poll::Ready("timeout");
                }
            }
        }
    }

    /// Logs the disconnection. For unauthenticated clients, which may be anyone, at debug
    /// level only.
    pub(crate) fn log(&self, client: &Client, why: &str) {
        let (address, name) = (&client.endpoint.address, client.name());
        let (name, error, bytes) = (String::from_utf8_lossy(&name), &self.error, self.bytes);
        const MESSAGE: &str = "client disconnected: oversized command";
        if self.is_unauthenticated {
            tracing::debug!(client = %address, %error, discarded = bytes, why, "{MESSAGE}");
        } else {
            tracing::warn!(client = %address, %name, %error, discarded = bytes, why, "{MESSAGE}");
        }
    }
}

/// Reads on for a while after an error that the client may not have read yet: closing
/// immediately would discard it.
pub(crate) async fn linger<S: AsyncRead + Unpin>(mut stream: S, mut bytes_max: u64) {
    let mut room = vec![0; READ_BYTES_MAX / 16];
    while let Ok(Ok(read)) = tokio::time::timeout(LINGER_TIMEOUT, stream.read(&mut room)).await {
        bytes_max = bytes_max.saturating_sub(read as u64);
        if read == 0 || bytes_max == 0 {
            return;
        }
    }
}
