//! The socket under a connection, plain or TLS, and the three tasks that serve it: one
//! reads, one writes, one watches over its life.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;

use super::connection::Connection;
use super::outbox::WriteBatch;
use super::reader::{ReaderOptions, read};

/// A connection that breaks no silence for so many of [`super::NetOptions::ping_every`]
/// is dead.
const SILENT_PINGS: u32 = 5;

/// A connected socket.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(context),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// The half that is read.
pub(super) enum SocketReader {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

impl SocketReader {
    /// Appends what there is; 0: the other side has ended.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            SocketReader::Plain(half) => half.read_buf(buffer).await,
            SocketReader::Tls(half) => half.read_buf(buffer).await,
        }
    }
}

/// The half that is written.
pub(super) enum SocketWriter {
    Plain(Arc<OwnedWriteHalf>),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

impl SocketWriter {
    async fn write(&mut self, batch: &mut WriteBatch) -> io::Result<()> {
        match self {
            SocketWriter::Plain(half) => {
                while !batch.is_empty() {
                    half.writable().await?;
                    let wrote = half.try_write_vectored(&slices(batch));
                    match wrote {
                        Ok(bytes) => batch.advance(bytes),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
            SocketWriter::Tls(half) => {
                while !batch.is_empty() {
                    let bytes = half.write_vectored(&slices(batch)).await?;
                    batch.advance(bytes);
                }
                half.flush().await
            }
        }
    }
}

/// The same half for others than the writer's task, which may write while that one does
/// not. Plain only.
pub(super) struct DirectWriter(Arc<OwnedWriteHalf>);

impl DirectWriter {
    /// Writes what the socket takes without waiting. Errors are left to the writer's
    /// task, which meets them again.
    pub(super) fn try_write(&self, batch: &mut WriteBatch) {
        while !batch.is_empty() {
            let wrote = self.0.try_write_vectored(&slices(batch));
            match wrote {
                Ok(bytes) => batch.advance(bytes),
                Err(_) => return,
            }
        }
    }
}

fn slices(batch: &WriteBatch) -> SmallVec<[IoSlice<'_>; 16]> {
    batch.slices().collect()
}

impl Socket {
    pub(super) fn split(self) -> (SocketReader, SocketWriter, Option<DirectWriter>) {
        match self {
            Socket::Plain(stream) => {
                let (reader, writer) = stream.into_split();
                let writer = Arc::new(writer);
                (
                    SocketReader::Plain(reader),
                    SocketWriter::Plain(writer.clone()),
                    Some(DirectWriter(writer)),
                )
            }
            Socket::Tls(stream) => {
                let (reader, writer) = tokio::io::split(*stream);
                (SocketReader::Tls(reader), SocketWriter::Tls(writer), None)
            }
        }
    }
}

/// Closes the connection however its tasks end.
pub(super) struct CloseOnDrop<'a>(pub(super) &'a Connection);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close("its task has ended");
    }
}

/// Serves a connection until it is closed.
pub(super) async fn run(
    connection: Arc<Connection>,
    reader: SocketReader,
    writer: SocketWriter,
    inbound: ReaderOptions,
    ping_every: Duration,
) {
    let closing = CloseOnDrop(&connection);
    let writing = tokio::spawn(write(connection.clone(), writer));
    let watching = tokio::spawn(watch(connection.clone(), ping_every));
    let why = match connection.closed.run_until_cancelled(read(&connection, reader, inbound)).await
    {
        Some(why) => why,
        None => "this side has ended it".to_owned(),
    };
    connection.close(&why);
    // Both see that it is closed; a panic in either has been reported by the runtime.
    let _ = tokio::join!(writing, watching);
    drop(closing);
}

async fn write(connection: Arc<Connection>, mut writer: SocketWriter) {
    let _closing = CloseOnDrop(&connection);
    let writing = async {
        loop {
            while let Some(mut batch) = connection.take() {
                if let Err(error) = writer.write(&mut batch).await {
                    return error;
                }
                connection.has_sent.store(true, Ordering::Relaxed);
                connection.written(batch);
            }
            connection.work.notified().await;
            // Others that are ready may have something for the same write.
            tokio::task::yield_now().await;
        }
    };
    if let Some(error) = connection.closed.run_until_cancelled(writing).await {
        connection.close(&format!("write: {error}"));
    }
}

/// Sees to it that the other side hears something now and then, and that it is heard.
async fn watch(connection: Arc<Connection>, ping_every: Duration) {
    let mut ticks = tokio::time::interval(ping_every);
    // A process that was stopped has missed its own ticks, not the other side's.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut silent = 0;
    while connection.closed.run_until_cancelled(ticks.tick()).await.is_some() {
        if !connection.has_sent.swap(false, Ordering::Relaxed) {
            connection.ping();
        }
        let is_heard = connection.has_received.swap(false, Ordering::Relaxed)
            || connection.reading_is_paused.load(Ordering::Relaxed);
        silent = if is_heard { 0 } else { silent + 1 };
        if silent >= SILENT_PINGS {
            connection.close(&format!("nothing was heard for {:?}", ping_every * SILENT_PINGS));
        }
    }
}
