//! A connection after the handshake: its calls, its channels and its outbox, under one
//! small lock.
//!
//! # Invariants
//! - A call is answered [`NetError::NotSent`] only if its frame was withdrawn from the
//!   [`Outbox`] before anybody took it to write it, or was turned away unread
//!   (`a_request_that_was_not_written_is_not_sent`).
//! - A caller that goes away leaves nothing behind: neither its frame nor its entry
//!   (`cancelled_calls_leave_nothing_behind`).

mod channels;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use channels::ChannelState;
pub(super) use channels::SendRefused;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::frame::{FrameHeader, FrameKind};
use super::outbox::{Outbox, WriteBatch};
use super::socket::DirectWriter;
use super::{NetError, Peer, Service};

/// Callers wait while the outbox is larger than this.
const OUTBOX_BYTES: usize = 4 << 20;
/// Maximum number of a dialer's calls in flight, and of bytes of their requests; further
/// calls are answered with `Busy`.
const CALLS_MAX: usize = 32 * 1024;
const CALL_BYTES_MAX: usize = 512 << 20;

type CallResult = Result<Bytes, NetError>;

struct PendingCall {
    /// Tells a late answer from one to a newer call in the same place.
    sequence: u32,
    /// Position of its frame in the outbox.
    start: u64,
    answer: oneshot::Sender<CallResult>,
}

#[derive(Default)]
struct ConnectionState {
    outbox: Outbox,
    /// A task is writing.
    writing: bool,
    /// The rest of a batch that a task took and could not write whole; written first.
    unwritten: WriteBatch,
    calls: Slab<PendingCall>,
    sequence: u32,
    channels: HashMap<u64, ChannelState>,
    next_channel: u64,
    /// The other side is draining.
    draining: bool,
    closed: Option<Arc<str>>,
}

/// One connection, either side of it.
pub(super) struct Connection {
    pub(super) peer: Peer,
    /// Largest body that the other side takes.
    frame_bytes_max: usize,
    state: Mutex<ConnectionState>,
    /// The other side's calls that are under way here, and the bytes of their requests.
    serving: AtomicUsize,
    serving_bytes: AtomicUsize,
    /// There is something to write.
    pub(super) work: Notify,
    /// There is room in the outbox again.
    outbox_room: Arc<Notify>,
    /// Cancelled when it is closed.
    pub(super) closed: CancellationToken,
    /// Cancelled when no new calls are taken: closed, or about to be.
    pub(super) no_new_calls: CancellationToken,
    /// Set by the reader and the writer, reset by the keepalive task.
    pub(super) has_received: AtomicBool,
    pub(super) has_sent: AtomicBool,
    /// Calls arrive faster than they are answered, so this side does not read for now:
    /// the other's silence means nothing.
    pub(super) reading_is_paused: AtomicBool,
    direct: Option<DirectWriter>,
}

/// A call that is answered.
pub(super) struct ServedCall {
    pub(super) id: u64,
    /// Of the request.
    pub(super) bytes: usize,
    pub(super) answer: Result<Bytes, String>,
}

/// Why a call did not even get into the outbox.
pub(super) enum CallRefused {
    /// The connection takes no more calls; another may.
    Gone(String),
    /// Wait, then try again.
    Full(OwnedNotified),
}

impl Connection {
    /// Lives at most as long as `parent` is not cancelled.
    pub(super) fn new(
        peer: Peer,
        frame_bytes_max: usize,
        direct: Option<DirectWriter>,
        parent: &CancellationToken,
    ) -> Arc<Self> {
        let closed = parent.child_token();
        Arc::new(Connection {
            peer,
            frame_bytes_max,
            state: Mutex::default(),
            serving: AtomicUsize::new(0),
            serving_bytes: AtomicUsize::new(0),
            work: Notify::new(),
            outbox_room: Arc::new(Notify::new()),
            no_new_calls: closed.child_token(),
            closed,
            has_received: AtomicBool::new(true),
            has_sent: AtomicBool::new(true),
            reading_is_paused: AtomicBool::new(false),
            direct,
        })
    }

    pub(super) fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    pub(super) fn too_large(&self, what: &str, bytes: usize) -> NetError {
        NetError::TooLarge(format!(
            "a {what} of {bytes} bytes is not sent to {}: at most {}",
            self.peer.server, self.frame_bytes_max
        ))
    }

    pub(super) fn takes_no_calls(&self) -> bool {
        self.no_new_calls.is_cancelled()
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.state.lock().closed.as_deref().map(str::to_owned)
    }

    // --- calls that we make ---

    /// Hands a request to the writer.
    pub(super) fn call(
        self: &Arc<Self>,
        service: Service,
        body: &Bytes,
    ) -> Result<OutgoingCall, CallRefused> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state.lock();
        self.check_open(&state)?;
        let sequence = state.sequence;
        state.sequence = sequence.wrapping_add(1);
        let slot = state.calls.vacant_key();
        let id = (u64::from(sequence) << 32) | slot as u64;
        let start =
            state.outbox.push(FrameHeader::new(FrameKind::Call, service as u8, id), body.clone());
        state.calls.insert(PendingCall { sequence, start, answer });
        let is_alone = state.calls.len() == 1;
        drop(state);
        self.flush(is_alone);
        Ok(OutgoingCall { connection: self.clone(), id, start, answered, is_over: false })
    }

    fn check_open(&self, state: &ConnectionState) -> Result<(), CallRefused> {
        if let Some(why) = &state.closed {
            return Err(CallRefused::Gone(why.to_string()));
        }
        if state.draining {
            return Err(CallRefused::Gone("the other side is stopping".to_owned()));
        }
        match state.outbox.bytes() > OUTBOX_BYTES {
            true => Err(CallRefused::Full(self.outbox_room.clone().notified_owned())),
            false => Ok(()),
        }
    }

    /// Gives up a call. True: the other side never saw it.
    fn cancel_call(&self, id: u64, start: u64) -> bool {
        let mut state = self.state.lock();
        let (slot, sequence) = (id as u32 as usize, (id >> 32) as u32);
        if state.calls.get(slot).is_some_and(|call| call.sequence == sequence) {
            state.calls.remove(slot);
            return state.outbox.withdraw(start);
        }
        false
    }

    /// Passes answers on to their callers.
    pub(super) fn complete_calls(&self, answers: &mut Vec<(u64, CallResult)>) {
        let mut state = self.state.lock();
        let take = |(id, answer): (u64, CallResult)| {
            let (slot, sequence) = (id as u32 as usize, (id >> 32) as u32);
            let is_ours = state.calls.get(slot).is_some_and(|call| call.sequence == sequence);
            // An answer to a cancelled call: its slot may belong to a newer one by now.
            is_ours.then(|| (state.calls.remove(slot).answer, answer))
        };
        let found: smallvec::SmallVec<[_; 64]> = answers.drain(..).filter_map(take).collect();
        drop(state);
        for (caller, answer) in found {
            // A caller that went away meanwhile needs no answer.
            let _ = caller.send(answer);
        }
    }

    /// Number of our calls that wait for their answer.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.state.lock().calls.len()
    }

    // --- calls that are made to us ---

    /// True if one more of the other side's calls may be served.
    pub(super) fn may_serve(&self) -> bool {
        self.serving.load(Ordering::Relaxed) < CALLS_MAX
            && self.serving_bytes.load(Ordering::Relaxed) < CALL_BYTES_MAX
    }

    /// Notes a call that is not answered at once.
    pub(super) fn begin_serving(&self, bytes: usize) {
        self.serving.fetch_add(1, Ordering::Relaxed);
        self.serving_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Answers such a call.
    pub(super) fn finish_serving(&self, bytes: usize, id: u64, answer: Result<Bytes, String>) {
        let mut state = self.state.lock();
        self.push_answer(&mut state, id, answer);
        // Under the lock, so that `drain` cannot see zero calls before the answer is in
        // the outbox.
        let is_last = self.serving.fetch_sub(1, Ordering::Relaxed) == 1;
        self.serving_bytes.fetch_sub(bytes, Ordering::Relaxed);
        drop(state);
        self.flush(is_last);
    }

    /// A call that was [begun](Connection::begin_serving) is not answered.
    pub(super) fn abandon_serving(&self, bytes: usize) {
        self.serving.fetch_sub(1, Ordering::Relaxed);
        self.serving_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Answers such calls, together.
    pub(super) fn finish_serving_all(&self, answers: &mut Vec<ServedCall>) {
        let mut state = self.state.lock();
        for ServedCall { id, bytes, answer } in answers.drain(..) {
            self.push_answer(&mut state, id, answer);
            self.serving.fetch_sub(1, Ordering::Relaxed);
            self.serving_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        drop(state);
        self.flush(true);
    }

    /// Answers calls of one read.
    pub(super) fn answer(&self, answers: &mut Vec<(u64, Result<Bytes, String>)>) {
        let mut state = self.state.lock();
        for (id, answer) in answers.drain(..) {
            self.push_answer(&mut state, id, answer);
        }
        drop(state);
        self.flush(true);
    }

    fn push_answer(&self, state: &mut ConnectionState, id: u64, answer: Result<Bytes, String>) {
        if state.closed.is_some() {
            return;
        }
        let bytes = answer.as_ref().map_or_else(String::len, Bytes::len);
        let (kind, body) = match answer {
            _ if bytes > self.frame_bytes_max => {
                let text = format!(
                    "the answer has {bytes} bytes, at most {} can be sent",
                    self.frame_bytes_max
                );
                (FrameKind::Refuse, Bytes::from(text))
            }
            Ok(body) => (FrameKind::Answer, body),
            Err(text) => (FrameKind::Refuse, Bytes::from(text)),
        };
        state.outbox.push(FrameHeader::new(kind, 0, id), body);
    }

    /// A frame without a body.
    pub(super) fn send_control(&self, kind: FrameKind, detail: u8, id: u64) {
        let mut state = self.state.lock();
        if state.closed.is_none() {
            state.outbox.push(FrameHeader::new(kind, detail, id), Bytes::new());
        }
        drop(state);
        self.flush(false);
    }

    /// Sends a ping, unless there is something to write anyway.
    pub(super) fn ping(&self) {
        let is_idle = {
            let state = self.state.lock();
            state.outbox.is_empty() && !state.writing
        };
        if is_idle {
            self.send_control(FrameKind::Ping, 0, 0);
        }
    }

    /// Room in the outbox to wait for, if it is full.
    pub(super) fn outbox_full(&self) -> Option<OwnedNotified> {
        let state = self.state.lock();
        (state.closed.is_none() && state.outbox.bytes() > OUTBOX_BYTES)
            .then(|| self.outbox_room.clone().notified_owned())
    }

    // --- writing ---

    /// Writes the outbox: on the calling task if no other task is writing and the socket
    /// takes it (`directly`), else on the writer's task.
    fn flush(&self, directly: bool) {
        let (true, Some(direct)) = (directly, &self.direct) else { return self.work.notify_one() };
        // Another task is writing: it looks at the outbox again when it is done.
        let Some(mut batch) = self.take() else { return };
        direct.try_write(&mut batch);
        self.has_sent.store(true, Ordering::Relaxed);
        self.written(batch);
    }

    /// The next batch to write; `None` if there is none, or another task is writing.
    pub(super) fn take(&self) -> Option<WriteBatch> {
        let mut state = self.state.lock();
        if state.writing {
            return None;
        }
        let unwritten = std::mem::take(&mut state.unwritten);
        if !unwritten.is_empty() {
            state.writing = true;
            return Some(unwritten);
        }
        if state.outbox.is_empty() {
            return None;
        }
        let was_full = state.outbox.bytes() > OUTBOX_BYTES;
        state.writing = true;
        let batch = state.outbox.take();
        drop(state);
        if was_full {
            self.outbox_room.notify_waiters();
        }
        Some(batch)
    }

    /// Ends a write that left this rest.
    pub(super) fn written(&self, unwritten: WriteBatch) {
        let mut state = self.state.lock();
        state.writing = false;
        let is_more = !unwritten.is_empty() || !state.outbox.is_empty();
        state.unwritten = unwritten;
        drop(state);
        if is_more {
            self.work.notify_one();
        }
    }

    // --- the end ---

    /// Ends everything on it, once.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return;
        }
        state.closed = Some(Arc::from(why));
        let calls = std::mem::take(&mut state.calls);
        let channels = std::mem::take(&mut state.channels);
        let outbox = std::mem::take(&mut state.outbox);
        state.unwritten = WriteBatch::default();
        drop(state);
        self.closed.cancel();
        self.outbox_room.notify_waiters();
        for (_, call) in calls {
            let error = match outbox.is_taken(call.start) {
                true => NetError::Lost(format!(
                    "the connection to {} was lost: {why}",
                    self.peer.server
                )),
                false => NetError::NotSent(format!(
                    "the connection to {} was lost: {why}",
                    self.peer.server
                )),
            };
            // The caller may have given up.
            let _ = call.answer.send(Err(error));
        }
        for (_, flow) in channels {
            flow.changed.notify_waiters();
        }
    }

    /// The other side is draining: no new calls. Those in flight go on.
    pub(super) fn on_go_away(&self) {
        self.state.lock().draining = true;
        self.no_new_calls.cancel();
        self.send_control(FrameKind::GoAway, 0, 0);
    }

    /// The dialer has replied to our GoAway.
    pub(super) fn on_go_away_reply(&self) {
        self.state.lock().draining = true;
    }

    /// Announces the stop to the dialer, and waits for its calls to be answered and its
    /// reply, at most this long.
    pub(super) async fn drain(&self, at_most: Duration) {
        /// Too short to be noticed when a process ends, too long to cost anything.
        const POLL_INTERVAL: Duration = Duration::from_millis(2);
        self.send_control(FrameKind::GoAway, 0, 0);
        let is_over = || {
            let state = self.state.lock();
            let is_written =
                state.outbox.is_empty() && state.unwritten.is_empty() && !state.writing;
            state.closed.is_some()
                || (state.draining && self.serving.load(Ordering::Relaxed) == 0 && is_written)
        };
        let wait = async {
            while !is_over() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        if tokio::time::timeout(at_most, wait).await.is_err() {
            let peer = self.peer.server;
            tracing::warn!(%peer, "calls in flight are dropped: not answered before the stop");
        }
    }
}

/// A request that is under way. Dropping it gives it up.
pub(super) struct OutgoingCall {
    connection: Arc<Connection>,
    id: u64,
    start: u64,
    answered: oneshot::Receiver<CallResult>,
    is_over: bool,
}

impl OutgoingCall {
    /// Its answer, or what is known when the deadline has passed.
    pub(super) async fn answer(mut self, deadline: tokio::time::Instant) -> CallResult {
        let answer = tokio::time::timeout_at(deadline, &mut self.answered).await;
        self.is_over = true;
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NetError::Lost("the connection ended".to_owned())),
            Err(_) => {
                let server = self.connection.peer.server;
                match self.connection.cancel_call(self.id, self.start) {
                    true => Err(NetError::NotSent(format!("{server} takes nothing in"))),
                    // The answer may have arrived between the timeout and the
                    // cancellation.
                    false => self.answered.try_recv().unwrap_or_else(|_| {
                        Err(NetError::Lost(format!("no answer of {server} in time")))
                    }),
                }
            }
        }
    }
}

impl Drop for OutgoingCall {
    fn drop(&mut self) {
        if !self.is_over {
            self.connection.cancel_call(self.id, self.start);
        }
    }
}
