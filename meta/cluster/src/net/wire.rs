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

use super::link::Link;
use super::outbox::Batch;
use super::reader::{Inbound, read};

/// A connection that breaks no silence for so many of [`super::NetOptions::ping_every`]
/// is dead.
const SILENT_PINGS: u32 = 5;

/// A connected socket.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// The half that is read.
pub(super) enum Reader {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

impl Reader {
    /// Appends what there is; 0: the other side has ended.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Reader::Plain(half) => half.read_buf(buffer).await,
            Reader::Tls(half) => half.read_buf(buffer).await,
        }
    }
}

/// The half that is written.
pub(super) enum Writer {
    Plain(Arc<OwnedWriteHalf>),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

impl Writer {
    async fn write(&mut self, batch: &mut Batch) -> io::Result<()> {
        match self {
            Writer::Plain(half) => {
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
            Writer::Tls(half) => {
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
pub(super) struct Direct(Arc<OwnedWriteHalf>);

impl Direct {
    /// Writes what the socket takes without waiting. Errors are left to the writer's
    /// task, which meets them again.
    pub(super) fn try_write(&self, batch: &mut Batch) {
        while !batch.is_empty() {
            let wrote = self.0.try_write_vectored(&slices(batch));
            match wrote {
                Ok(bytes) => batch.advance(bytes),
                Err(_) => return,
            }
        }
    }
}

fn slices(batch: &Batch) -> SmallVec<[IoSlice<'_>; 16]> {
    batch.slices().collect()
}

impl Stream {
    pub(super) fn split(self) -> (Reader, Writer, Option<Direct>) {
        match self {
            Stream::Plain(stream) => {
                let (reader, writer) = stream.into_split();
                let writer = Arc::new(writer);
                (Reader::Plain(reader), Writer::Plain(writer.clone()), Some(Direct(writer)))
            }
            Stream::Tls(stream) => {
                let (reader, writer) = tokio::io::split(*stream);
                (Reader::Tls(reader), Writer::Tls(writer), None)
            }
        }
    }
}

/// Closes the connection however its tasks end.
pub(super) struct Closing<'a>(pub(super) &'a Link);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close("its task has ended");
    }
}

/// Serves a connection until it is closed.
pub(super) async fn run(
    link: Arc<Link>,
    reader: Reader,
    writer: Writer,
    inbound: Inbound,
    ping_every: Duration,
) {
    let closing = Closing(&link);
    let writing = tokio::spawn(write(link.clone(), writer));
    let watching = tokio::spawn(watch(link.clone(), ping_every));
    let why = match link.closed.run_until_cancelled(read(&link, reader, inbound)).await {
        Some(why) => why,
        None => "this side has ended it".to_owned(),
    };
    link.close(&why);
    // Both see that it is closed; a panic in either has been reported by the runtime.
    let _ = tokio::join!(writing, watching);
    drop(closing);
}

async fn write(link: Arc<Link>, mut writer: Writer) {
    let _closing = Closing(&link);
    let writing = async {
        loop {
            while let Some(mut batch) = link.take() {
                if let Err(error) = writer.write(&mut batch).await {
                    return error;
                }
                link.spoke.store(true, Ordering::Relaxed);
                link.written(batch);
            }
            link.work.notified().await;
            // Others that are ready may have something for the same write.
            tokio::task::yield_now().await;
        }
    };
    if let Some(error) = link.closed.run_until_cancelled(writing).await {
        link.close(&format!("write: {error}"));
    }
}

/// Sees to it that the other side hears something now and then, and that it is heard.
async fn watch(link: Arc<Link>, ping_every: Duration) {
    let mut ticks = tokio::time::interval(ping_every);
    // A process that was stopped has missed its own ticks, not the other side's.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut silent = 0;
    while link.closed.run_until_cancelled(ticks.tick()).await.is_some() {
        if !link.spoke.swap(false, Ordering::Relaxed) {
            link.ping();
        }
        let is_heard =
            link.heard.swap(false, Ordering::Relaxed) || link.is_held.load(Ordering::Relaxed);
        silent = if is_heard { 0 } else { silent + 1 };
        if silent >= SILENT_PINGS {
            link.close(&format!("nothing was heard for {:?}", ping_every * SILENT_PINGS));
        }
    }
}
