//! Commands that are too large: the client is told, and what it still sends of them is
//! read and thrown away.
//!
//! A client that is cut off while it sends sees a broken pipe and not the error. So the
//! error is sent, and the end of what it may read; then all that was announced is read,
//! within bounds, and only then is the connection closed.

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

/// So much is read and thrown away at most, with so long between two reads.
const BYTES_MAX: u64 = 1 << 30;
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Of who has not authenticated: so much, and for so long in all.
const UNAUTHENTICATED_BYTES_MAX: u64 = 1 << 20;
const UNAUTHENTICATED_TIME_MAX: Duration = Duration::from_secs(10);
/// What a client may send behind that, without a pause of so long: it comes to read the
/// error only then.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// What is read and thrown away.
pub(crate) struct Discarding {
    error: ProtocolError,
    rest: OversizedRest,
    room: BytesMut,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
    deadline: Pin<Box<Sleep>>,
    is_unauthenticated: bool,
    /// The client has been told the end.
    pub(crate) is_told: bool,
}

impl Discarding {
    /// Begins with what of it has come.
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

    /// Reads on until the end, and says which that was.
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
                DiscardProgress::Desynchronized => return Poll::Ready("it is no RESP further on"),
                DiscardProgress::More if self.bytes >= self.bytes_max => {
                    return Poll::Ready("no more of it is read");
                }
                DiscardProgress::More => self.room.reserve(READ_BYTES_MAX / 4),
            }
            match poll_read_buf(Pin::new(&mut *stream), context, &mut self.room) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready("the client has left"),
                Poll::Ready(Ok(_)) if self.is_unauthenticated => {}
                Poll::Ready(Ok(_)) => self.deadline.as_mut().reset(Instant::now() + READ_TIMEOUT),
                Poll::Pending => {
                    ready!(self.deadline.as_mut().poll(context));
                    return Poll::Ready("the rest did not come in time");
                }
            }
        }
    }

    /// Says in the log that the client was disconnected. Of strangers, who may be
    /// anybody, only where all is told.
    pub(crate) fn log(&self, client: &Client, why: &str) {
        let (address, name) = (&client.endpoint.address, client.name());
        let (name, error, bytes) = (String::from_utf8_lossy(&name), &self.error, self.bytes);
        const WHAT: &str = "a client sent a command that is too large, and is disconnected";
        if self.is_unauthenticated {
            tracing::debug!(client = %address, %error, thrown_away = bytes, why, "{WHAT}");
        } else {
            tracing::warn!(client = %address, %name, %error, thrown_away = bytes, why, "{WHAT}");
        }
    }
}

/// Reads on for a while behind an error that the client may not have read yet: to close
/// at once would take it away.
pub(crate) async fn linger<S: AsyncRead + Unpin>(mut stream: S, mut bytes_max: u64) {
    let mut room = vec![0; READ_BYTES_MAX / 16];
    while let Ok(Ok(read)) = tokio::time::timeout(LINGER_TIMEOUT, stream.read(&mut room)).await {
        bytes_max = bytes_max.saturating_sub(read as u64);
        if read == 0 || bytes_max == 0 {
            return;
        }
    }
}
