//! One connection: reads, carries out, writes.
//!
//! One task a connection, and in it one wait ([`Connection::wait`]) for everything that may happen: bytes to read, room to write,
//! something pushed, the end. A chunk of commands costs one read and one write. Replies that needed no waiting for are written after the
//! others that are ready were looked at: a client with many connections is then woken once for many replies, and so costs itself and the
//! server half (GET of 50 connections at pipeline 16, two cores: 455,000 -> 765,000 a second).
//!
//! # Memory
//! What a client has sent ahead is bounded (`client-query-buffer-limit`), and so is what it does not read. While replies pile up
//! ([`OUTPUT_HIGH`]) nothing more is carried out, but input is still taken in, so that a client that sends all of a long pipeline
//! before it reads the first reply gets its replies. Only when both are full does the server stop to read. Replies to what was carried out
//! may still be more than `client-output-buffer-limit`: the client is owed them, and is closed only if it reads nothing for [`UNREAD_MAX`].
//!
//! # Invariants
//! - A client that reads its replies is never closed for their size alone; one that does not is held at the bounds (test
//!   `who_reads_nothing_for_long_is_cut`; `tests/clients.rs`, `who_reads_gets_a_reply_of_any_size`).
//! - When the server stops, commands that have arrived whole are answered first.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use commands::Reply;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use crate::client::Client;
use crate::resp::{self, Extent, Gate, Limits, Malformed};
use crate::session::Session;

/// A chunk has at most so many commands; fewer when their replies are large.
const CHUNK_COMMANDS_MAX: usize = 4096;
/// What the replies of one chunk should not exceed, by the size of those before.
const CHUNK_REPLY_BYTES: usize = 4 << 20;
/// Until one is known, a reply is taken to have so many bytes.
const REPLY_BYTES_GUESS: usize = 2048;
/// With so much to write, writing comes first.
const OUTPUT_FIRST: usize = 256 * 1024;
/// With so much waiting for the client to read, nothing more is carried out.
pub(crate) const OUTPUT_HIGH: usize = 8 << 20;
/// The same for who has not authenticated.
const STRANGER_OUTPUT: usize = 64 * 1024;
/// What who has not authenticated may send ahead of its replies: more than its largest command.
const STRANGER_INPUT: usize = 256 * 1024;
/// What one read takes: at first, and when the client sends a lot.
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;
/// Buffers that have grown beyond this are given back when they are empty.
const KEPT_BYTES: usize = 64 * 1024;
/// How long a client that has more than `client-output-buffer-limit` to read may read nothing. Redis's seconds for a soft limit.
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// How long the end of a connection may take: over TLS it is told, and whoever reads nothing cannot be.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

/// Why a connection goes on, or ends.
enum Event {
    /// There may be commands to carry out.
    Go,
    /// It is over.
    Close,
}

pub(crate) struct Connection<S> {
    stream: S,
    client: Arc<Client>,
    session: Session,
    gate: Gate,
    input: BytesMut,
    output: BytesMut,
    extents: Vec<Extent>,
    /// More complete commands are in `input`.
    more: bool,
    /// How much the next read may bring.
    read_bytes: usize,
    reply_bytes: usize,
    /// The client sends no more.
    ended: bool,
    /// The end of the CLIENT PAUSE that holds a command back.
    pause: Option<Pin<Box<Sleep>>>,
    /// The socket did not take all of the output when it was last written to.
    is_held_up: bool,
    /// When a client is cut that has more than its limit to read, and reads nothing.
    patience: Option<Pin<Box<Sleep>>>,
}

/// Whether something was done without having to wait for it.
async fn was_at_once(work: impl Future<Output = ()>) -> bool {
    let (mut work, mut polls) = (std::pin::pin!(work), 0);
    std::future::poll_fn(|context| {
        polls += 1;
        work.as_mut().poll(context)
    })
    .await;
    polls == 1
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S, session: Session) -> Self {
        Connection {
            stream,
            client: session.client.clone(),
            session,
            gate: Gate::default(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            extents: Vec::new(),
            more: false,
            read_bytes: READ_BYTES_MIN,
            reply_bytes: REPLY_BYTES_GUESS,
            ended: false,
            pause: None,
            is_held_up: false,
            patience: None,
        }
    }

    /// Until the connection ends.
    pub(crate) async fn run(mut self) {
        loop {
            match std::future::poll_fn(|context| self.wait(context)).await {
                Event::Close => break,
                Event::Go => {
                    if was_at_once(self.carry_out()).await {
                        // Others that have sent something meanwhile are looked at before this one's replies are written: then replies leave in a row, and who
                        // gets several of them is woken once.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        // Everything else is given back first. Best effort: the other side may be gone.
        let mut stream = self.into_stream();
        let _ = tokio::time::timeout(SHUTDOWN_MAX, stream.shutdown()).await;
    }

    fn into_stream(self) -> S {
        self.stream
    }

    /// Carries out what is complete, a chunk at a time, as long as the replies find room.
    async fn carry_out(&mut self) {
        self.more = true;
        loop {
            let malformed = self.find_commands();
            if !self.extents.is_empty() {
                let passed = self.gate.passed();
                let chunk = self.input.split_to(passed).freeze();
                self.gate.taken(passed);
                let before = self.output.len();
                let taken = self.run_chunk(&chunk).await;
                let each = (self.output.len() - before) / taken.max(1);
                // Up at once, down slowly.
                self.reply_bytes = each.max(self.reply_bytes - self.reply_bytes / 8).max(1);
                if taken < self.extents.len() && !self.session.closing {
                    self.put_back(&chunk[self.extents[taken].start..]);
                    return;
                }
            } else {
                // A part of a command has come.
                self.client.touch(Instant::now());
            }
            // Behind QUIT nothing is looked at.
            if let Some(error) = malformed.filter(|_| !self.session.closing) {
                self.refuse(&error);
            }
            if !self.more || self.session.closing || self.client.is_killed() || self.output.len() >= OUTPUT_FIRST {
                break;
            }
        }
    }

    /// Carries out a chunk; how many of its commands were taken. DEBUG SLEEP ends when the client leaves.
    async fn run_chunk(&mut self, chunk: &Bytes) -> usize {
        let Connection { stream, client, session, input, output, extents, .. } = self;
        let before = input.len();
        let taken = {
            let mut run = std::pin::pin!(session.run(chunk, extents, output));
            std::future::poll_fn(|context| {
                let taken = run.as_mut().poll(context);
                if taken.is_pending() && client.is_asleep() && has_left(stream, input, context) {
                    client.kill();
                }
                taken
            })
            .await
        };
        if input.len() > before {
            session.proxy.stats.bytes_in.add((input.len() - before) as u64);
        }
        taken
    }

    /// Commands that were not taken come first again.
    fn put_back(&mut self, bytes: &[u8]) {
        let mut input = BytesMut::with_capacity(bytes.len() + self.input.len());
        input.extend_from_slice(bytes);
        input.extend_from_slice(&self.input);
        self.input = input;
        self.gate = Gate::default();
        self.more = true;
    }

    /// The extents of the next chunk, and the error behind them, if any.
    fn find_commands(&mut self) -> Option<Malformed> {
        self.extents.clear();
        let settings = self.session.proxy.settings.load();
        let limits = Limits {
            bulk_bytes_max: settings.bulk_bytes_max,
            command_bytes_max: settings.query_bytes_max,
            is_stranger: self.session.is_stranger(),
        };
        // A stranger's commands change what comes after them: one at a time.
        let commands_max = if limits.is_stranger { 1 } else { (CHUNK_REPLY_BYTES / self.reply_bytes).clamp(1, CHUNK_COMMANDS_MAX) };
        // All words of a chunk are there at once.
        let words_max = limits.words_max();
        let mut words = 0;
        while self.extents.len() < commands_max && words <= words_max {
            match self.gate.next(&self.input, limits) {
                Ok(Some(extent)) => {
                    words += extent.words;
                    self.extents.push(extent);
                }
                Ok(None) => {
                    self.more = false;
                    // Blank lines and empty arrays alone are no chunk, but gone.
                    if self.extents.is_empty() {
                        let passed = self.gate.passed();
                        self.input.advance(passed);
                        self.gate.taken(passed);
                    }
                    return None;
                }
                Err(error) => {
                    self.more = false;
                    return Some(error);
                }
            }
        }
        None
    }

    /// Tells what is wrong with the input, and closes.
    fn refuse(&mut self, error: &Malformed) {
        tracing::debug!(client = %self.client.endpoint.address, %error, "malformed input");
        if matches!(error, Malformed::TooLarge(_)) {
            self.session.proxy.stats.query_limit_disconnections.add(1);
        }
        resp::encode(&Reply::error(format!("ERR {error}")), self.session.protocol, &mut self.output);
        self.session.closing = true;
        self.input.clear();
    }

    /// Waits for the next event, and meanwhile moves bytes in both directions.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        self.client.waker.register(context.waker());
        let is_pushed = self.client.take_pushed(&mut self.output);
        if self.client.is_killed() {
            return Poll::Ready(Event::Close);
        }
        if self.write(context).is_err() {
            return Poll::Ready(Event::Close);
        }
        // What is pushed grows without the client's doing, so it is not waited for.
        if is_pushed && self.output.len() > self.session.proxy.settings.load().output_bytes_max {
            self.session.proxy.stats.output_limit_disconnections.add(1);
            return Poll::Ready(Event::Close);
        }
        if self.output.is_empty() {
            if self.session.closing || self.ended {
                return Poll::Ready(Event::Close);
            }
            if !self.more && self.session.proxy.shutdown.is_cancelled() {
                return Poll::Ready(Event::Close);
            }
        } else if self.session.closing || self.ended {
            return Poll::Pending;
        }
        if let Some(writes) = self.session.held {
            ready!(self.wait_for_unpause(writes, context));
        }
        if self.more && !self.is_behind() {
            return Poll::Ready(Event::Go);
        }
        let event = self.read(context);
        if event.is_pending() {
            self.show();
        }
        event
    }

    /// Until a command that writes (or not) is not held back any more. Who ends the pause wakes this task.
    fn wait_for_unpause(&mut self, writes: bool, context: &mut Context<'_>) -> Poll<()> {
        let proxy = &self.session.proxy;
        while let Some(until) = proxy.clients.paused_until(writes).filter(|_| !proxy.shutdown.is_cancelled()) {
            self.client.held_back.store(true, Ordering::Relaxed);
            let pause = self.pause.insert(Box::pin(tokio::time::sleep_until(until.into())));
            ready!(pause.as_mut().poll(context));
        }
        self.client.touch(Instant::now());
        self.client.held_back.store(false, Ordering::Relaxed);
        (self.session.held, self.pause) = (None, None);
        Poll::Ready(())
    }

    /// Writes as much as the socket takes.
    fn write(&mut self, context: &mut Context<'_>) -> Result<(), ()> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.output) {
                Poll::Pending => return self.wait_for_reader(context),
                Poll::Ready(Ok(0) | Err(_)) => return Err(()),
                Poll::Ready(Ok(written)) => {
                    if self.is_held_up {
                        // The client has read. Otherwise what is written was carried out just now.
                        self.client.touch(Instant::now());
                        (self.is_held_up, self.patience) = (false, None);
                    }
                    self.session.proxy.stats.writes.add(1);
                    self.session.proxy.stats.bytes_out.add(written as u64);
                    self.output.advance(written);
                }
            }
        }
        if self.output.capacity() > KEPT_BYTES {
            self.output = BytesMut::new();
        } else {
            self.output.clear();
        }
        // TLS keeps what is written until it is flushed; a plain socket does nothing here.
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Err(_)) => Err(()),
            _ => Ok(()),
        }
    }

    /// The socket takes no more. Who has more than its limit to read has so long to read some of it.
    fn wait_for_reader(&mut self, context: &mut Context<'_>) -> Result<(), ()> {
        self.is_held_up = true;
        let proxy = &self.session.proxy;
        if self.output.len() <= proxy.settings.load().output_bytes_max {
            return Ok(());
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(UNREAD_MAX)));
        if patience.as_mut().poll(context).is_ready() {
            proxy.stats.output_limit_disconnections.add(1);
            return Err(());
        }
        Ok(())
    }

    /// Reads what there is.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        // One command may be as long as the limit, and what is behind it takes one more read.
        if self.more && self.input.len() > self.input_max() {
            return Poll::Pending;
        }
        self.make_room();
        let room = self.input.capacity() - self.input.len();
        match ready!(poll_read_buf(Pin::new(&mut self.stream), context, &mut self.input)) {
            Ok(0) => {
                self.ended = true;
                self.session.closing = true;
                self.wait(context)
            }
            Err(_) => Poll::Ready(Event::Close),
            Ok(read) => {
                self.session.proxy.stats.reads.add(1);
                self.session.proxy.stats.bytes_in.add(read as u64);
                self.read_bytes = if read == room { (self.read_bytes * 4).min(READ_BYTES_MAX) } else { self.read_bytes };
                if !self.is_behind() {
                    return Poll::Ready(Event::Go);
                }
                // Taken in, but not carried out before the client has read some of its replies.
                self.client.touch(Instant::now());
                self.more = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// Whether so many of its replies are unread that nothing more is carried out for the client.
    fn is_behind(&self) -> bool {
        let unread = self.output.len();
        unread >= OUTPUT_HIGH || unread >= STRANGER_OUTPUT && self.session.is_stranger()
    }

    /// How much of what the client sends is taken in before it is carried out, bytes.
    fn input_max(&self) -> usize {
        if self.session.is_stranger() { STRANGER_INPUT } else { self.session.proxy.settings.load().query_bytes_max }
    }

    /// Room for the next read. Long arguments get theirs in steps that double, so that an announced length alone costs nothing.
    fn make_room(&mut self) {
        let missing = self.gate.wanted().saturating_sub(self.input.len());
        if self.input.is_empty() && self.input.capacity() > KEPT_BYTES && missing == 0 {
            self.input = BytesMut::new();
            self.read_bytes = READ_BYTES_MIN;
        }
        let spare = self.input.capacity() - self.input.len();
        let wanted = missing.clamp(self.read_bytes, self.input.len().max(READ_BYTES_MAX));
        if spare < self.read_bytes / 4 || (missing > spare && spare < wanted) {
            self.input.reserve(wanted);
        }
    }

    /// Tells the others how the connection stands.
    fn show(&mut self) {
        let (queued, queued_bytes, watched) = self.session.transaction.figures();
        let last = self.session.last_command();
        let mut shown = self.client.shown.lock();
        shown.last_command = last;
        shown.query_bytes = self.input.len();
        shown.query_room = self.input.capacity() - self.input.len();
        shown.output_bytes = self.output.len();
        (shown.queued, shown.queued_bytes, shown.watched) = (queued, queued_bytes, watched);
    }
}

/// Whether a client that waits has closed the connection. What it sends meanwhile is taken in, as long as it is not much.
fn has_left<S: AsyncRead + Unpin>(stream: &mut S, input: &mut BytesMut, context: &mut Context<'_>) -> bool {
    while input.len() < READ_BYTES_MAX {
        input.reserve(READ_BYTES_MIN);
        match poll_read_buf(Pin::new(&mut *stream), context, input) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0) | Err(_)) => return true,
            Poll::Ready(Ok(_)) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, fakes};

    #[tokio::test]
    async fn who_reads_nothing_for_long_is_cut() {
        let proxy = fakes::proxy(&Default::default());
        proxy.settings.store(Arc::new(Settings { output_bytes_max: 1000, ..Settings::default() }));
        let (_theirs, ours) = tokio::io::duplex(16);
        let mut connection = Connection::new(ours, Session::new(proxy.clone(), fakes::client(1)));
        connection.output.extend_from_slice(&[b'x'; 1017]);
        std::future::poll_fn(|context| {
            assert!(connection.wait(context).is_pending(), "who has just been written to has time to read");
            assert!(connection.patience.is_some(), "but not for ever");
            Poll::Ready(())
        })
        .await;
        connection.patience = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
        connection.run().await;
        assert_eq!(proxy.stats.output_limit_disconnections.get(), 1);
    }

    #[tokio::test]
    async fn the_words_of_a_chunk_are_bounded() {
        let proxy = fakes::proxy(&Default::default());
        let words_max = 1000;
        let query_bytes_max = words_max * resp::WORD_BYTES;
        proxy.settings.store(Arc::new(Settings { query_bytes_max, ..Settings::default() }));
        let (_theirs, ours) = tokio::io::duplex(16);
        let mut connection = Connection::new(ours, Session::new(proxy, fakes::client(1)));
        connection.input.extend_from_slice(b"*4\r\n$3\r\nDEL\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n".repeat(400).as_slice());
        assert_eq!(connection.find_commands(), None);
        assert_eq!(connection.extents.len(), words_max / 4 + 1);
    }
}
