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
//! before it reads the first reply gets its replies. Only when both are full does the server stop to read.
//!
//! # Invariants
//! - A client that reads its replies is never closed for their size alone; one that does not is held at the bounds.
//! - When the server stops, commands that have arrived whole are answered first.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use commands::Reply;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::resp::{self, Extent, Gate, Limits};
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

/// Why a connection goes on, or ends.
enum Event {
    /// There may be commands to carry out.
    Go,
    /// It is over.
    Close,
}

pub(crate) struct Connection<S> {
    stream: S,
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
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
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
        // Best effort: the other side may be gone.
        let _ = std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_shutdown(context)).await;
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
                let taken = self.session.run(&chunk, &self.extents, &mut self.output).await;
                let each = (self.output.len() - before) / taken.max(1);
                // Up at once, down slowly.
                self.reply_bytes = each.max(self.reply_bytes - self.reply_bytes / 8).max(1);
                if taken < self.extents.len() && !self.session.closing {
                    self.put_back(&chunk[self.extents[taken].start..]);
                    return;
                }
            }
            // Behind QUIT nothing is looked at.
            if let Some(error) = malformed.filter(|_| !self.session.closing) {
                self.refuse(&error);
            }
            if !self.more || self.session.closing || self.session.client.is_killed() || self.output.len() >= OUTPUT_FIRST {
                break;
            }
        }
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
    fn find_commands(&mut self) -> Option<resp::Malformed> {
        self.extents.clear();
        let settings = self.session.proxy.settings.load();
        let limits = Limits {
            bulk_bytes_max: settings.bulk_bytes_max,
            command_bytes_max: settings.query_bytes_max,
            is_stranger: self.session.is_stranger(),
        };
        // A stranger's commands change what comes after them: one at a time.
        let commands_max = if limits.is_stranger { 1 } else { (CHUNK_REPLY_BYTES / self.reply_bytes).clamp(1, CHUNK_COMMANDS_MAX) };
        while self.extents.len() < commands_max {
            match self.gate.next(&self.input, limits) {
                Ok(Some(extent)) => self.extents.push(extent),
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
    fn refuse(&mut self, error: &resp::Malformed) {
        tracing::debug!(client = %self.session.client.endpoint.address, %error, "malformed input");
        resp::encode(&Reply::error(format!("ERR {error}")), self.session.protocol, &mut self.output);
        self.session.closing = true;
        self.input.clear();
    }

    /// Waits for the next event, and meanwhile moves bytes in both directions.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        self.session.client.waker.register(context.waker());
        self.session.client.take_pushed(&mut self.output);
        if self.session.client.is_killed() {
            return Poll::Ready(Event::Close);
        }
        if self.write(context).is_err() {
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
            self.session.client.held_back.store(true, Ordering::Relaxed);
            let pause = self.pause.insert(Box::pin(tokio::time::sleep_until(until.into())));
            ready!(pause.as_mut().poll(context));
        }
        self.session.client.held_back.store(false, Ordering::Relaxed);
        (self.session.held, self.pause) = (None, None);
        Poll::Ready(())
    }

    /// Writes as much as the socket takes.
    fn write(&mut self, context: &mut Context<'_>) -> Result<(), ()> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.output) {
                Poll::Pending => {
                    let limit = self.session.proxy.settings.load().output_bytes_max;
                    if self.output.len() > limit {
                        self.session.proxy.stats.output_limit_disconnections.add(1);
                        return Err(());
                    }
                    return Ok(());
                }
                Poll::Ready(Ok(0) | Err(_)) => return Err(()),
                Poll::Ready(Ok(written)) => {
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
        let mut shown = self.session.client.shown.lock();
        shown.last_command = last;
        shown.query_bytes = self.input.len();
        shown.query_room = self.input.capacity() - self.input.len();
        shown.output_bytes = self.output.len();
        (shown.queued, shown.queued_bytes, shown.watched) = (queued, queued_bytes, watched);
    }
}
