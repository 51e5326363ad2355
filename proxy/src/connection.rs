//! One client connection: reads, executes, writes.
//!
//! Each connection has one task with one wait ([`Connection::wait`]) for all events:
//! bytes to read, room to write, pushed output, the end. A chunk of commands costs one
//! read and one write. Replies that needed no waiting are written only after other ready
//! connections have run: a client with many connections then wakes up once for many
//! replies, which halves the cost on both sides (GET over 50 connections at pipeline 16,
//! two cores: 455,000 -> 765,000 per second).
//!
//! # Memory
//! Input that a client sends ahead is bounded (`client-query-buffer-limit`), and so are
//! its unread replies. With [`OUTPUT_HIGH`] bytes of replies pending, nothing more is
//! executed, but input is still read: a client that sends a whole long pipeline before it
//! reads the first reply gets its replies. When the input is full as well, commands are
//! executed up to `client-output-buffer-limit`, since a client that goes on sending would
//! wait forever. When both are full, the server stops reading, and the client has
//! [`UNREAD_TIMEOUT`] to read something. All memory is reported to the session's tracker
//! ([`crate::client::memory_usage`]).
//!
//! # Invariants
//! - A client that reads its replies is never disconnected for their size alone; one that
//!   does not is held at the bounds (test `client_that_never_reads_is_disconnected`;
//!   `tests/clients.rs`, `reading_client_gets_a_reply_of_any_size`).
//! - Client and server never wait for each other forever (`tests/memory.rs`,
//!   `pipeline_may_be_sent_whole_before_replies_are_read`).
//! - A mostly empty buffer is released: its rest is copied ([`crate::buffers`]), never
//!   kept as a slice of it.
//! - When the server stops, commands that have arrived completely are answered first.

mod command;

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

use crate::buffers::{IDLE_CAPACITY_MAX, OUTPUT_HIGH, READ_BYTES_MAX, grow, release_excess};
use crate::client::Client;
use crate::client::memory_usage::MemoryUse;
use crate::listener::ConnectionPermit;
use crate::oversized::{Discarding, linger};
use crate::resp::{self, ChunkBytes, CommandSpan, Framer, Limits, ProtocolError};
use crate::session::Session;

/// Maximum number of commands of a chunk; fewer when their replies are large.
const CHUNK_COMMANDS_MAX: usize = 4096;
/// Target size of the replies of one chunk, estimated from the replies before.
const CHUNK_REPLY_BYTES: usize = 4 << 20;
/// Estimated size of a reply before the first one is known.
const REPLY_BYTES_GUESS: usize = 2048;
/// With this much output pending, it is written before more commands run.
const OUTPUT_FIRST: usize = 256 * 1024;
/// As `OUTPUT_HIGH`, for unauthenticated clients.
const UNAUTHENTICATED_OUTPUT_MAX: usize = 64 * 1024;
/// Input that an unauthenticated client may send ahead of its replies: more than its
/// largest command.
const UNAUTHENTICATED_INPUT_MAX: usize = 256 * 1024;
/// Size of a connection's first reads.
const READ_BYTES_MIN: usize = 4 * 1024;
/// A client with more than `client-output-buffer-limit` unread is disconnected if it
/// reads nothing for this long. Redis's seconds for a soft limit.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that has closed its sending side is given this long to receive its replies
/// while a command waits.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_millis(500);
/// Limit for closing a connection: TLS sends a message, which a client that reads nothing
/// cannot receive.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Result of a wait.
enum Wakeup {
    /// Commands may be ready.
    Go,
    /// The connection ends.
    Close,
}

pub(crate) struct Connection<S> {
    /// `None`: it was closed while commands were executing.
    stream: Option<S>,
    /// Its permit under `maxclients`, if it needs one.
    permit: Option<ConnectionPermit>,
    client: Arc<Client>,
    session: Session,
    framer: Framer,
    input: BytesMut,
    /// Capacity that `input` and `chunk` were allocated with.
    input_room: usize,
    output: BytesMut,
    output_room: usize,
    /// The chunk being executed, its commands' positions in it, and the number of
    /// commands done.
    chunk: Bytes,
    spans: Vec<CommandSpan>,
    taken: usize,
    /// The error in the input behind these commands.
    protocol_error: Option<ProtocolError>,
    /// An oversized command whose rest is read and discarded.
    discarding: Option<Discarding>,
    /// More complete commands are in `input` or `chunk`, or replies are owed.
    more: bool,
    /// Size of the next read.
    read_bytes: usize,
    reply_bytes: usize,
    /// The client has closed its sending side.
    ended: bool,
    /// The end of the CLIENT PAUSE that holds a command back.
    pause: Option<Pin<Box<Sleep>>>,
    /// The socket did not take all output at the last write.
    is_write_blocked: bool,
    /// Disconnects a client that has more than its limit unread and reads nothing.
    unread_timer: Option<Pin<Box<Sleep>>>,
    /// Bytes that may still be read and discarded after an error.
    linger_bytes: u64,
}

/// `true` if `work` completed without waiting.
async fn completed_immediately(work: impl Future<Output = ()>) -> bool {
    let (mut work, mut polls) = (std::pin::pin!(work), 0);
    std::future::poll_fn(|context| {
        polls += 1;
        work.as_mut().poll(context)
    })
    .await;
    polls == 1
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S, permit: Option<ConnectionPermit>, session: Session) -> Self {
        Connection {
            stream: Some(stream),
            permit,
            client: session.client.clone(),
            session,
            framer: Framer::default(),
            input: BytesMut::new(),
            input_room: 0,
            output: BytesMut::new(),
            output_room: 0,
            chunk: Bytes::new(),
            spans: Vec::new(),
            taken: 0,
            protocol_error: None,
            discarding: None,
            more: false,
            read_bytes: READ_BYTES_MIN,
            reply_bytes: REPLY_BYTES_GUESS,
            ended: false,
            pause: None,
            is_write_blocked: false,
            unread_timer: None,
            linger_bytes: 0,
        }
    }

    /// Runs until the connection ends.
    pub(crate) async fn run(mut self) {
        loop {
            match std::future::poll_fn(|context| self.wait(context)).await {
                Wakeup::Close => break,
                Wakeup::Go => {
                    if completed_immediately(self.execute()).await {
                        // Other ready connections run before these replies are written:
                        // then replies leave together, and a client that receives several
                        // of them wakes up once.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        // Everything else is released first. Best effort: the client may be gone.
        let linger_bytes = self.linger_bytes;
        let (stream, _place) = self.into_stream();
        let Some(mut stream) = stream else { return };
        let told = tokio::time::timeout(SHUTDOWN_TIMEOUT, stream.shutdown()).await;
        if linger_bytes > 0 && matches!(told, Ok(Ok(()))) {
            linger(stream, linger_bytes).await;
        }
    }

    fn into_stream(self) -> (Option<S>, Option<ConnectionPermit>) {
        (self.stream, self.permit)
    }

    /// Executes complete commands, a chunk at a time, while there is room for replies.
    async fn execute(&mut self) {
        self.more = true;
        loop {
            if !self.is_at_work() {
                self.next_chunk();
            }
            if self.is_at_work() {
                let before = self.output.len();
                let taken = self.run_chunk().await;
                let each = (self.output.len() - before) / taken.max(1);
                // The estimate rises immediately and falls slowly.
                self.reply_bytes = each.max(self.reply_bytes - self.reply_bytes / 8).max(1);
                self.taken += taken;
                if self.is_at_work() && !self.session.closing {
                    self.more = true;
                    return;
                }
                self.chunk = Bytes::new();
            } else {
                // Part of a command has arrived.
                self.client.touch(Instant::now());
            }
            // Input behind QUIT is ignored.
            if let Some(error) = self.protocol_error.take().filter(|_| !self.session.closing) {
                self.refuse(error);
            }
            if !self.more
                || self.session.closing
                || self.client.is_killed()
                || self.output.len() >= OUTPUT_FIRST
            {
                break;
            }
        }
    }

    /// `true` while commands of the chunk are unexecuted, or replies are owed.
    fn is_at_work(&self) -> bool {
        self.taken < self.spans.len() || self.session.owes_replies()
    }

    /// Takes the next chunk from the input.
    fn next_chunk(&mut self) {
        self.taken = 0;
        self.protocol_error = self.find_commands();
        if self.spans.is_empty() {
            return;
        }
        let passed = self.framer.passed();
        self.chunk = self.input.split_to(passed).freeze();
        self.framer.taken(passed);
        if let Some(ProtocolError { rest: Some(rest), .. }) = &mut self.protocol_error {
            rest.taken(passed);
        }
    }

    /// Continues the chunk; returns the number of commands taken. The socket is polled
    /// meanwhile: if the client is killed or leaves, the socket is closed and the permit
    /// returned, while the commands run to their end.
    async fn run_chunk(&mut self) -> usize {
        self.session.replies_max = self.replies_max();
        if self.output.len() >= OUTPUT_HIGH
            && self.output.capacity() - self.output.len() < OUTPUT_HIGH
        {
            grow(&mut self.output, OUTPUT_HIGH);
            self.output_room = self.output.capacity();
        }
        let input_max = self.input_max();
        let Connection {
            stream,
            permit,
            client,
            session,
            framer,
            input,
            output,
            spans,
            chunk,
            taken,
            ended,
            ..
        } = self;
        let (before, proxy) = (input.len(), session.proxy.clone());
        let taken = {
            let chunk = ChunkBytes { bytes: chunk, args: framer.args() };
            let mut run = std::pin::pin!(session.run(chunk, &spans[*taken..], output));
            let mut unread_timer = None;
            std::future::poll_fn(|context| {
                if let Poll::Ready(taken) = run.as_mut().poll(context) {
                    return Poll::Ready(taken);
                }
                let Some(socket) = stream.as_mut() else { return Poll::Pending };
                client.waker.register(context.waker());
                if !*ended {
                    match poll_peer(socket, input, input_max, context) {
                        PeerState::Open => {}
                        // It may still read its replies.
                        PeerState::HalfClosed => *ended = true,
                        PeerState::Closed => client.kill(),
                    }
                }
                if *ended {
                    let unread_timer = unread_timer
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED_TIMEOUT)));
                    if unread_timer.as_mut().poll(context).is_ready() {
                        client.kill();
                    }
                }
                if client.is_killed() {
                    (*stream, *permit) = (None, None);
                    proxy.clients.leave(client.id);
                    // Ends DEBUG SLEEP.
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            })
            .await
        };
        if input.len() > before {
            proxy.stats.bytes_in.add((input.len() - before) as u64);
            self.more = true;
        }
        self.count_held();
        taken
    }

    /// Finds the positions of the next chunk's commands, and the error behind them, if
    /// any.
    fn find_commands(&mut self) -> Option<ProtocolError> {
        self.spans.clear();
        let settings = self.session.proxy.settings.load();
        let limits = Limits {
            bulk: settings.bulk_max(),
            command: settings.query_max(),
            is_unauthenticated: self.session.is_unauthenticated(),
        };
        // Commands of an unauthenticated client may change its limits: one at a time.
        let commands_max = if limits.is_unauthenticated {
            1
        } else {
            (CHUNK_REPLY_BYTES / self.reply_bytes).clamp(1, CHUNK_COMMANDS_MAX)
        };
        // All arguments of a chunk are in memory together.
        let args_max = limits.args_max();
        let mut argc = 0;
        while self.spans.len() < commands_max && argc <= args_max {
            match self.framer.next(&self.input, limits) {
                Ok(Some(span)) => {
                    argc += span.argc;
                    self.spans.push(span);
                }
                Ok(None) => {
                    self.more = false;
                    // Blank lines and empty arrays alone form no chunk and are dropped.
                    if self.spans.is_empty() {
                        let passed = self.framer.passed();
                        self.input.advance(passed);
                        self.framer.taken(passed);
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

    /// Sends the error in the input and closes the connection; for an oversized command,
    /// once the client has sent all of it.
    fn refuse(&mut self, error: ProtocolError) {
        tracing::debug!(client = %self.client.endpoint.address, %error, "malformed input");
        resp::encode(
            &Reply::error(format!("ERR {error}")),
            self.session.protocol,
            &mut self.output,
        );
        self.session.closing = true;
        if let Some(rest) = error.rest.clone() {
            let stats = &self.session.proxy.stats;
            if error.exceeds_query_buffer {
                &stats.query_limit_disconnections
            } else {
                &stats.oversized_disconnections
            }
            .add(1);
            let is_unauthenticated = self.session.is_unauthenticated();
            self.discarding =
                Some(Discarding::new(error, rest, is_unauthenticated, &mut self.input));
        }
        (self.input, self.input_room) = (BytesMut::new(), 0);
        self.framer = Framer::default();
    }

    /// Reads and discards the rest of an oversized command while its error is written.
    fn discard_rest(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (Some(discarding), Some(stream)) = (&mut self.discarding, &mut self.stream) else {
            return Poll::Ready(());
        };
        if self.output.is_empty() && !discarding.is_told {
            // Half-closes the socket, so that the client sees the end of the replies. If
            // that fails, closing the socket does it.
            discarding.is_told = Pin::new(&mut *stream).poll_shutdown(context).is_ready();
        }
        let before = discarding.bytes;
        let why = discarding.poll(stream, context);
        if discarding.bytes > before {
            self.client.touch(Instant::now());
            self.session.proxy.stats.bytes_in.add(discarding.bytes - before);
        }
        let why = ready!(why);
        discarding.log(&self.client, why);
        self.linger_bytes = discarding.bytes_max.saturating_sub(discarding.bytes);
        self.discarding = None;
        Poll::Ready(())
    }

    /// Waits for the next event, and reads and writes meanwhile.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Wakeup> {
        self.client.waker.register(context.waker());
        let is_pushed = self.client.take_pushed(&mut self.output);
        if self.client.is_killed() {
            return Poll::Ready(Wakeup::Close);
        }
        if self.write(context).is_err() {
            return Poll::Ready(Wakeup::Close);
        }
        // Pushed output grows without the client's doing, so the client gets no time to
        // read it.
        if is_pushed && self.output.len() > self.output_max() {
            self.disconnect_slow_reader("pushed output exceeds client-output-buffer-limit");
            return Poll::Ready(Wakeup::Close);
        }
        if self.discarding.is_some() {
            self.show();
            ready!(self.discard_rest(context));
        }
        // Commands that arrived completely before the end are executed.
        let is_over = self.session.closing || (self.ended && !self.more);
        if self.output.is_empty() {
            if is_over || (!self.more && self.session.proxy.shutdown.is_cancelled()) {
                return Poll::Ready(Wakeup::Close);
            }
        } else if is_over {
            return Poll::Pending;
        }
        if let Some(writes) = self.session.held {
            ready!(self.wait_for_unpause(writes, context));
        }
        if self.more && !self.is_behind() {
            return Poll::Ready(Wakeup::Go);
        }
        let event = self.read(context);
        if event.is_pending() {
            self.go_idle();
        }
        event
    }

    /// Nothing to do for now: releases unused buffers and publishes the state of the
    /// connection.
    fn go_idle(&mut self) {
        if self.input.is_empty() && self.input_room > IDLE_CAPACITY_MAX && self.framer.wanted() == 0
        {
            (self.input, self.input_room) = (BytesMut::new(), 0);
            self.read_bytes = READ_BYTES_MIN;
        }
        if !self.is_at_work() {
            self.framer.release_args(IDLE_CAPACITY_MAX);
            if self.spans.capacity() * size_of::<CommandSpan>() > IDLE_CAPACITY_MAX {
                (self.spans, self.taken) = (Vec::new(), 0);
            }
        }
        self.show();
    }

    /// Waits until a command that writes (or not) is no longer paused. The end of a pause
    /// wakes this task.
    fn wait_for_unpause(&mut self, writes: bool, context: &mut Context<'_>) -> Poll<()> {
        let proxy = &self.session.proxy;
        while let Some(until) =
            proxy.clients.paused_until(writes).filter(|_| !proxy.shutdown.is_cancelled())
        {
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
        self.output_room = self.output_room.max(self.output.capacity());
        while !self.output.is_empty() {
            let Some(stream) = &mut self.stream else { return Err(()) };
            match Pin::new(stream).poll_write(context, &self.output) {
                Poll::Pending => return self.wait_for_reader(context),
                Poll::Ready(Ok(0) | Err(_)) => return Err(()),
                Poll::Ready(Ok(written)) => {
                    if self.is_write_blocked {
                        // The client has read. Otherwise the output comes from commands
                        // that ran just now.
                        self.client.touch(Instant::now());
                        (self.is_write_blocked, self.unread_timer) = (false, None);
                    }
                    self.session.proxy.stats.writes.add(1);
                    self.session.proxy.stats.bytes_out.add(written as u64);
                    self.output.advance(written);
                    release_excess(&mut self.output, &mut self.output_room);
                }
            }
        }
        if self.output_room > IDLE_CAPACITY_MAX {
            (self.output, self.output_room) = (BytesMut::new(), 0);
        } else {
            self.output.clear();
        }
        // TLS buffers output until it is flushed; on a plain socket this does nothing.
        let Some(stream) = &mut self.stream else { return Err(()) };
        match Pin::new(stream).poll_flush(context) {
            Poll::Ready(Err(_)) => Err(()),
            _ => Ok(()),
        }
    }

    /// The socket is full. A client with more than its limit unread, or one whose input
    /// is no longer read, has [`UNREAD_TIMEOUT`] to read some of it.
    fn wait_for_reader(&mut self, context: &mut Context<'_>) -> Result<(), ()> {
        self.is_write_blocked = true;
        if self.output.len() < self.output_max() && !(self.is_behind() && self.is_input_full()) {
            return Ok(());
        }
        let unread_timer =
            self.unread_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(UNREAD_TIMEOUT)));
        if unread_timer.as_mut().poll(context).is_ready() {
            self.disconnect_slow_reader("nothing read for 60 s");
            return Err(());
        }
        Ok(())
    }

    /// Disconnects a client that does not read its replies.
    fn disconnect_slow_reader(&self, why: &str) {
        self.session.proxy.stats.output_limit_disconnections.add(1);
        let (address, name) = (&self.client.endpoint.address, self.client.name());
        let name = String::from_utf8_lossy(&name);
        let (unread, sent_ahead) = (self.output.len(), self.sent_ahead());
        tracing::warn!(
            client = %address, %name, unread, sent_ahead, why,
            "client disconnected: it does not read its replies"
        );
    }

    /// Reads the available input.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Wakeup> {
        if self.ended || self.is_input_full() {
            return Poll::Pending;
        }
        self.reserve_input();
        let Some(stream) = &mut self.stream else { return Poll::Ready(Wakeup::Close) };
        let room = self.input.capacity() - self.input.len();
        match ready!(poll_read_buf(Pin::new(stream), context, &mut self.input)) {
            Ok(0) => {
                self.ended = true;
                self.wait(context)
            }
            Err(_) => Poll::Ready(Wakeup::Close),
            Ok(read) => {
                self.session.proxy.stats.reads.add(1);
                self.session.proxy.stats.bytes_in.add(read as u64);
                self.read_bytes = if read == room {
                    (self.read_bytes * 4).min(READ_BYTES_MAX)
                } else {
                    self.read_bytes
                };
                self.count_held();
                if !self.is_behind() {
                    return Poll::Ready(Wakeup::Go);
                }
                // Read, but not executed before the client has read some replies or the
                // input is full.
                self.client.touch(Instant::now());
                self.more = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// `true` while the client has so many unread replies that nothing more is executed
    /// for it.
    fn is_behind(&self) -> bool {
        self.output.len() >= self.replies_max()
    }

    /// Unread replies, in bytes, up to which commands are executed.
    fn replies_max(&self) -> usize {
        if self.session.is_unauthenticated() {
            return UNAUTHENTICATED_OUTPUT_MAX;
        }
        let output_max = self.output_max();
        if !self.is_input_full() {
            return OUTPUT_HIGH.min(output_max);
        }
        // The client may be sending on and read only after it has sent everything: a bit
        // more at a time, up to the limit.
        (self.output.len() + OUTPUT_HIGH).clamp(OUTPUT_HIGH.min(output_max), output_max)
    }

    /// Limit of unread replies, at most half of the memory of all clients, since the
    /// other half may be input.
    fn output_max(&self) -> usize {
        let settings = self.session.proxy.settings.load();
        settings.output_max().bytes.min(settings.clients_max().bytes / 2)
    }

    /// Limit of input read ahead of execution, bytes.
    fn input_max(&self) -> usize {
        if self.session.is_unauthenticated() {
            return UNAUTHENTICATED_INPUT_MAX;
        }
        let settings = self.session.proxy.settings.load();
        settings.query_max().bytes.min(settings.clients_max().bytes / 2)
    }

    /// Input that is not executed yet, bytes.
    fn sent_ahead(&self) -> usize {
        self.input.len() + self.chunk.len()
    }

    /// Nothing more is read before something is executed. One command may be as long as
    /// the limit, and finding the bytes behind it takes one more read.
    fn is_input_full(&self) -> bool {
        self.more && self.sent_ahead() > self.input_max()
    }

    /// Updates the memory used by the buffers, and releases mostly empty ones.
    fn count_held(&mut self) {
        if self.chunk.is_empty() {
            release_excess(&mut self.input, &mut self.input_room);
        }
        self.input_room = self.input_room.max(self.input.capacity() + self.chunk.len());
        self.output_room = self.output_room.max(self.output.capacity());
        let spans = self.spans.capacity() * size_of::<CommandSpan>() + self.framer.args_bytes();
        let (query, output) = (self.input_room + spans, self.output_room);
        self.session.track_memory(MemoryUse::Query, query);
        self.session.track_memory(MemoryUse::Output, output);
    }

    /// Reserves room for the next read. For long arguments the room doubles step by step,
    /// so that an announced length alone costs nothing.
    fn reserve_input(&mut self) {
        let missing = self.framer.wanted().saturating_sub(self.input.len());
        if self.input.is_empty() && self.input.capacity() > IDLE_CAPACITY_MAX && missing == 0 {
            (self.input, self.input_room) = (BytesMut::new(), 0);
            self.read_bytes = READ_BYTES_MIN;
        }
        let spare = self.input.capacity() - self.input.len();
        let wanted = missing.clamp(self.read_bytes, self.input.len().max(READ_BYTES_MAX));
        if spare < self.read_bytes / 4 || (missing > spare && spare < wanted) {
            grow(&mut self.input, wanted);
            if self.chunk.is_empty() {
                self.input_room = self.input.capacity();
            }
        }
    }

    /// Publishes the state of the connection for other tasks.
    fn show(&mut self) {
        self.count_held();
        if self.session.memory_usage.settle() {
            self.session.proxy.evict_clients();
        }
        let (queued, queued_bytes, watched) = self.session.transaction.figures();
        let last = self.session.last_command();
        let mut shown = self.client.info.lock();
        shown.last_command = last;
        shown.query_bytes = self.input.len() + self.chunk.len();
        shown.query_room = self.input_room - shown.query_bytes.min(self.input_room);
        shown.output_bytes = self.output.len();
        (shown.queued, shown.queued_bytes, shown.watched) = (queued, queued_bytes, watched);
    }
}

/// State of the connection of a client whose command waits.
enum PeerState {
    Open,
    /// The client has closed its sending side at least.
    HalfClosed,
    Closed,
}

/// Polls the connection of a client whose command waits. Input that arrives is buffered
/// up to a limit.
fn poll_peer<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut BytesMut,
    bytes_max: usize,
    context: &mut Context<'_>,
) -> PeerState {
    while input.len() < bytes_max {
        if input.capacity() - input.len() < READ_BYTES_MIN / 4 {
            input.reserve(READ_BYTES_MIN.max(input.len()).min(READ_BYTES_MAX));
        }
        match poll_read_buf(Pin::new(&mut *stream), context, input) {
            Poll::Pending => return PeerState::Open,
            Poll::Ready(Ok(0)) => return PeerState::HalfClosed,
            Poll::Ready(Err(_)) => return PeerState::Closed,
            Poll::Ready(Ok(_)) => {}
        }
    }
    PeerState::Open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, fakes};

    #[tokio::test]
    async fn client_that_never_reads_is_disconnected() {
        let proxy = fakes::proxy(&Default::default());
        proxy.settings.store(Arc::new(Settings { output_bytes_max: 1000, ..Settings::default() }));
        let (_theirs, ours) = tokio::io::duplex(16);
        let mut connection =
            Connection::new(ours, None, Session::new(proxy.clone(), fakes::client(1)));
        connection.output.extend_from_slice(&[b'x'; 1017]);
        std::future::poll_fn(|context| {
            assert!(
                connection.wait(context).is_pending(),
                "who has just been written to has time to read"
            );
            assert!(connection.unread_timer.is_some(), "but not for ever");
            Poll::Ready(())
        })
        .await;
        connection.unread_timer = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
        connection.run().await;
        assert_eq!(proxy.stats.output_limit_disconnections.get(), 1);
    }

    #[tokio::test]
    async fn arguments_of_a_chunk_are_bounded() {
        let proxy = fakes::proxy(&Default::default());
        let args_max = 1000;
        let query_bytes_max = args_max * crate::resp::ARG_OVERHEAD_BYTES;
        proxy.settings.store(Arc::new(Settings { query_bytes_max, ..Settings::default() }));
        let (_theirs, ours) = tokio::io::duplex(16);
        let mut connection = Connection::new(ours, None, Session::new(proxy, fakes::client(1)));
        connection.input.extend_from_slice(
            b"*4\r\n$3\r\nDEL\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n".repeat(400).as_slice(),
        );
        assert_eq!(connection.find_commands(), None);
        assert_eq!(connection.spans.len(), args_max / 4 + 1);
        assert_eq!(connection.framer.args().len(), args_max + 4);
    }
}
