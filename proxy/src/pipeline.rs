//! Executes a chunk of commands and appends their replies.
//!
//! A chunk is the complete commands of one read. They are looked up and planned one after
//! another; ops on rows are only added to the chunk's batches, so a pipeline of any
//! length costs few calls. Commands that need no rows (PING), and those whose entry says so
//! ([`flags::AT_ONCE`]), are answered immediately; all other local commands first execute
//! everything queued before them ([`Session::flush`]).
//!
//! # Memory
//! Replies are bounded as they are made: with [`Session::replies_max`] bytes pending,
//! nothing more is executed, and the rest of a large read is
//! [owed](Session::owes_replies) until the client has read. So a chunk holds at most
//! that, plus the answer of one command.

pub(crate) mod chunk;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use commands::errors::answer_too_large;
use commands::table::flags;
use commands::{Reply, ReplyBuilder};

use crate::client::memory_usage::MemoryUse;
use crate::execute::{ReplySource, take_answers};
use crate::observe::count;
use crate::resp::{self, ChunkBytes, CommandSpan};
use crate::router::Outcome;
use crate::session::{ReplySuppression, Session};
use crate::stats::ResolvedCommand;
use chunk::{NextStep, PendingReply, ReplyState, SLICE_COMMANDS};

/// A client's commands run this long before other clients get the thread.
const SLICE: Duration = Duration::from_millis(1);
const SLICE_NS: u64 = 1_000_000;
/// After a reply of this size, such as the documentation of all commands, the clock is
/// read.
const LONG_REPLY_BYTES: usize = 16 * 1024;
/// Estimated cost of a command besides its own work.
const ENTRY_NS: u64 = 500;

impl Session {
    /// `true` while commands have been taken whose replies follow only after the client
    /// has read the replies before them.
    pub(crate) fn owes_replies(&self) -> bool {
        self.chunk.is_owed || self.chunk.stalled.is_some()
    }

    /// Yields the thread to other tasks when this client's time slice is over.
    pub(crate) async fn yield_if_due(&mut self) {
        self.chunk.slice_commands = 0;
        if self.chunk.slice.elapsed() >= SLICE {
            tokio::task::yield_now().await;
            self.chunk.slice = Instant::now();
        }
    }

    /// Executes all ops and appends all replies so far; of large answers, as many as are
    /// enough for now: the others are [owed](Session::owes_replies).
    pub(crate) async fn flush(&mut self, bytes: ChunkBytes<'_>, out: &mut BytesMut) {
        self.chunk.is_owed = false;
        while !self.chunk.entries.is_empty() {
            if !self.chunk.batches.is_done() {
                self.track_memory(MemoryUse::Answers, self.chunk.made_bytes());
                let deadline = self.chunk.started
                    + Duration::from_millis(self.proxy.settings.load().call_deadline_ms);
                self.chunk.batches.written().for_each(|partition| self.written.note(partition));
                self.chunk.batches.execute(&self.proxy, deadline).await;
                self.chunk.absent = None;
            }
            self.answer(bytes, out).await;
            self.track_memory(MemoryUse::Answers, self.chunk.made_bytes());
            if !self.chunk.entries.is_empty()
                && (out.len() >= self.replies_max || self.client.is_killed())
            {
                self.chunk.is_owed = true;
                return;
            }
        }
        self.chunk.batches.clear();
        (self.chunk.large_ops, self.chunk.writes) = (0, false);
        (self.chunk.reply_bytes, self.chunk.planned_bytes) = (0, 0);
        self.track_memory(MemoryUse::Answers, 0);
    }

    /// Appends available replies in order, up to the first missing one, and not more than
    /// the client must read first.
    async fn answer(&mut self, bytes: ChunkBytes<'_>, out: &mut BytesMut) {
        let settings = self.proxy.settings.load_full();
        let bytes_max = settings.answer_max();
        let now = Instant::now();
        self.chunk.slice = now;
        let took = now.saturating_duration_since(self.chunk.started);
        let is_noted = crate::slowlog::is_slow(took, settings.slowlog_slower_than_us)
            || settings.latency_threshold_ms > 0;
        let (mut commands, mut noted, mut worked_ns) = (0, Vec::new(), 0);
        while let Some(entry) = self.chunk.entries.front_mut() {
            let batches = &mut self.chunk.batches;
            if let ReplyState::Waiting(_, indexes, _) = &entry.state
                && !batches.has(indexes)
                && batches.held_bytes() > bytes_max.bytes
            {
                entry.state = ReplyState::Refused(answer_too_large(&bytes_max), indexes.clone());
            }
            let is_there = match &mut entry.state {
                ReplyState::Ready(_) | ReplyState::Answered(..) | ReplyState::InOutput(_) => true,
                ReplyState::Waiting(_, indexes, _) => batches.has(indexes),
                ReplyState::Refused(_, indexes) => {
                    *indexes = batches.forget(indexes);
                    indexes.is_empty()
                }
            };
            if !is_there || (commands > 0 && out.len() >= self.replies_max) {
                break;
            }
            let Some(PendingReply { resolved, span, silent, state }) =
                self.chunk.entries.pop_front()
            else {
                break;
            };
            let mut start = out.len();
            let source = match state {
                ReplyState::InOutput(at) => {
                    start = at;
                    None
                }
                ReplyState::Ready(reply) | ReplyState::Refused(reply, _) => {
                    Some(ReplySource::Reply(reply))
                }
                ReplyState::Answered(builder, outcomes) => {
                    Some(ReplySource::Several(builder, outcomes))
                }
                ReplyState::Waiting(builder, indexes, is_lookup) => {
                    let writes = resolved.is_some_and(|resolved| resolved.command.is(flags::WRITE));
                    let counted = is_lookup.then_some(&self.proxy.stats);
                    Some(take_answers(&mut self.chunk.batches, builder, &indexes, writes, counted))
                }
            };
            worked_ns += ENTRY_NS;
            if let Some(source) = source {
                let work_ns = source.work_ns();
                worked_ns += work_ns;
                if worked_ns >= SLICE_NS {
                    tokio::task::yield_now().await;
                    worked_ns = 0;
                }
                let mut reply =
                    resp::Encoder::new(out, self.protocol, bytes_max.bytes).silent(silent);
                source.write(work_ns, &mut reply).await;
                if reply.is_too_large() {
                    reply.replace(&answer_too_large(&bytes_max));
                }
            }
            if let (Some(ResolvedCommand { index: Some(index), .. }), Some(line)) =
                (resolved, resp::error_line(&out[start..]))
            {
                self.proxy.stats.failed(index, line);
            }
            if silent {
                out.truncate(start);
            }
            if let Some(ResolvedCommand { index: Some(index), .. }) = resolved {
                count(&mut self.chunk.counts, index);
            }
            if is_noted {
                noted.push((resolved, span));
            }
            self.chunk.last = resolved.or(self.chunk.last);
            commands += 1;
        }
        if is_noted {
            self.note_slow(&noted, took, bytes, &settings);
        }
        for (index, calls) in self.chunk.counts.drain(..) {
            self.proxy.stats.record(index, calls, took, commands);
        }
        self.chunk.started = now;
    }

    pub(crate) fn is_silent(&mut self) -> bool {
        match self.silence {
            ReplySuppression::None => false,
            ReplySuppression::All => true,
            ReplySuppression::NextReply => {
                self.silence = ReplySuppression::None;
                true
            }
        }
    }

    /// Answers with a reply that waits for nothing.
    pub(crate) fn ready(
        &mut self,
        resolved: ResolvedCommand,
        span: CommandSpan,
        reply: Reply,
    ) -> NextStep {
        let silent = self.is_silent();
        self.add_reply(Some(resolved), span, reply, silent);
        NextStep::Done
    }

    /// Answers with outcomes that are known without executing the ops.
    pub(crate) fn answered(
        &mut self,
        resolved: ResolvedCommand,
        span: CommandSpan,
        builder: ReplyBuilder,
        outcomes: Vec<Outcome>,
    ) -> NextStep {
        let silent = self.is_silent();
        self.chunk.reply_bytes += outcomes.capacity() * size_of::<Outcome>();
        self.chunk.entries.push_back(PendingReply {
            resolved: Some(resolved),
            span,
            silent,
            state: ReplyState::Answered(builder, outcomes),
        });
        NextStep::Done
    }

    /// Adds the next reply; `resolved` if the command counts as executed.
    pub(crate) fn add_reply(
        &mut self,
        resolved: Option<ResolvedCommand>,
        span: CommandSpan,
        reply: Reply,
        silent: bool,
    ) {
        let bytes = reply.bytes();
        if bytes >= LONG_REPLY_BYTES {
            self.chunk.slice_commands += SLICE_COMMANDS;
        }
        self.chunk.reply_bytes += bytes;
        let state = ReplyState::Ready(reply);
        self.chunk.entries.push_back(PendingReply { resolved, span, silent, state });
    }

    /// Answers with an error before anything ran. A transaction that is being queued is
    /// aborted.
    pub(crate) fn reject(
        &mut self,
        resolved: Option<ResolvedCommand>,
        span: CommandSpan,
        mut reply: Reply,
    ) -> NextStep {
        self.transaction.mark_dirty();
        if let Reply::Error(line) = &reply
            && resolved.is_some_and(|resolved| resolved.command.is(flags::RUNS_QUEUE))
        {
            // EXEC ends the transaction even if it cannot be executed.
            let why = line.strip_prefix("ERR ").unwrap_or(line);
            reply = Reply::error(format!("EXECABORT Transaction discarded because of: {why}"));
            self.transaction.discard();
        }
        if let Reply::Error(line) = &reply {
            self.proxy.stats.rejected(resolved.and_then(|resolved| resolved.index), line);
        }
        let silent = self.is_silent();
        self.add_reply(None, span, reply, silent);
        NextStep::Done
    }
}
