//! Executes a chunk of commands and appends their replies.
//!
//! A chunk is the complete commands of one read. They are looked up and planned one after
//! another; ops on rows are only added to the [`Batches`], so a pipeline of any length
//! costs few calls. Commands that need no rows (PING, SELECT) are answered immediately;
//! all other local commands first execute everything queued before them
//! ([`Session::flush`]).
//!
//! # Memory
//! Replies are bounded as they are made: with [`Session::replies_max`] bytes pending,
//! nothing more is executed, and the rest of a large read is
//! [owed](Session::owes_replies) until the client has read. So a chunk holds at most
//! that, plus the answer of one command.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster::{Boxed, CallError, Table, blocking};
use commands::args::Argv;
use commands::plan::ClientCommand;
use commands::table::{flags, lookup};
use commands::{Args, Command, LocalCommand, Plan, PlanResult, Reply, ReplyBuilder, RowPlan};
use row::answer_size::AnswerSize;
use row::edits::Edits;
use row::op::{Answer, Op};
use row::view::{Fault, Rules, Stamp, Tx};
use row::{EvalError, Family, View};
use smallvec::SmallVec;

use crate::client::memory_usage::MemoryUse;
use crate::resp::{self, CommandSpan};
use crate::router::{self, Batches, Outcome};
use crate::server;
use crate::session::{ReplySuppression, Session};
use crate::settings::Settings;
use crate::stats::{CommandIndex, Stats};
use crate::{errors, lookups, waits};

/// At most this many commands of one slow chunk go to the slow log.
const SLOW_ENTRIES_MAX: usize = 16;

/// The size of a value is unknown before it is read. So of the ops of a chunk whose
/// answers may be large, a few are executed first, and twice as many each time as long as
/// the replies are small. (With writes among them, more, as each round costs a log
/// entry.)
const LARGE_OPS_FIRST: usize = 16;
const LARGE_OPS_FIRST_WITH_WRITES: usize = 64;
const DOUBLINGS_MAX: u32 = 8;
/// Estimated memory of an op and its outcome besides its arguments.
const PLANNED_BYTES: usize = size_of::<Op>() + size_of::<Outcome>();
/// Replies of one round up to this size count as small.
const SMALL_BYTES: usize = 1 << 20;

/// A client's commands run this long before other clients get the thread.
const SLICE: Duration = Duration::from_millis(1);
const SLICE_NS: u64 = 1_000_000;
/// The clock is read once per this many commands.
const SLICE_COMMANDS: usize = 8;
/// Plans of commands with this many arguments, or this many bytes if
/// [`flags::LONG_PLAN`], are made while other tasks run.
const LONG_PLAN_ARGS: usize = 1000;
const LONG_PLAN_BYTES: usize = 256 << 10;

/// A command and its index in the statistics.
#[derive(Clone, Copy)]
pub(crate) struct ResolvedCommand {
    pub(crate) command: &'static Command,
    pub(crate) index: Option<CommandIndex>,
}

/// The commands of one chunk whose replies are not written yet.
pub(crate) struct Chunk {
    pub(crate) batches: Batches,
    entries: VecDeque<PendingReply>,
    /// Some of `entries` are unanswered because the client must read first.
    is_owed: bool,
    /// A local command to run once the replies to `entries`, which are owed, are written.
    stalled: Option<(NextStep, CommandSpan)>,
    /// Estimated memory of the replies in `entries` and of the ops in `batches`, bytes.
    reply_bytes: usize,
    planned_bytes: usize,
    started: Instant,
    /// Start of the current time slice, and commands since the clock was last read.
    slice: Instant,
    slice_commands: usize,
    counts: SmallVec<[(CommandIndex, u64); 8]>,
    last: Option<ResolvedCommand>,
    /// Ops in the batches whose answers may be large; `true` if there are writes as well.
    large_ops: usize,
    writes: bool,
    /// Number of times the limit of large ops has doubled.
    doublings: u32,
    /// No table of this name existed when the catalogue was asked. This holds for all
    /// commands of the chunk, which had arrived by then, until one has an effect.
    pub(crate) absent: Option<Arc<str>>,
    /// The catalogue could not be asked, or a table could not be created: the rest of the
    /// chunk is refused without waiting again.
    pub(crate) unknown: Option<CallError>,
    pub(crate) unmade: Option<CallError>,
}

impl Default for Chunk {
    fn default() -> Self {
        Chunk {
            batches: Batches::default(),
            entries: VecDeque::new(),
            is_owed: false,
            stalled: None,
            reply_bytes: 0,
            planned_bytes: 0,
            started: Instant::now(),
            slice: Instant::now(),
            slice_commands: 0,
            counts: SmallVec::new(),
            last: None,
            large_ops: 0,
            writes: false,
            doublings: 0,
            absent: None,
            unknown: None,
            unmade: None,
        }
    }
}

impl Chunk {
    fn note(&mut self, op: &Op) {
        self.planned_bytes += PLANNED_BYTES;
        self.large_ops += usize::from(op.answer_size() == AnswerSize::Large);
        self.writes |= op.is_write();
    }

    /// Estimated memory of plans, answers and replies, bytes.
    fn made_bytes(&self) -> usize {
        self.planned_bytes + self.reply_bytes + self.batches.held_bytes()
    }

    /// `true` if so many large replies or partitions are pending that they must be
    /// executed first.
    fn is_full(&self) -> bool {
        if self.batches.is_full() {
            return true;
        }
        let first = if self.writes { LARGE_OPS_FIRST_WITH_WRITES } else { LARGE_OPS_FIRST };
        self.large_ops >= first << self.doublings
    }
}

struct PendingReply {
    resolved: Option<ResolvedCommand>,
    span: CommandSpan,
    silent: bool,
    state: ReplyState,
}

enum ReplyState {
    Ready(Reply),
    /// Waits for its ops, which are in the batches with these indexes; the flag is set if
    /// they count as look-ups.
    Waiting(ReplyBuilder, SmallVec<[u16; 4]>, bool),
    /// Refused because its answers are too large; the outcomes of the ops in these
    /// batches are dropped as they arrive.
    Refused(Reply, SmallVec<[u16; 4]>),
}

/// The rest of a command that could not be completed immediately.
enum NextStep {
    Done,
    /// CLIENT PAUSE holds the command back.
    Pause,
    /// Ops on a table that this proxy does not know.
    NoTable(RowPlan, ResolvedCommand),
    /// A local command.
    Local(LocalCommand, ResolvedCommand),
}

impl Session {
    /// Executes the commands at `spans` in `bytes` and appends their replies. Returns the
    /// number of commands taken: all, unless CLIENT PAUSE holds one back
    /// ([`Session::held`]), the client must read large replies first, or the connection
    /// ends. While replies are [owed](Session::owes_replies), the next call continues in
    /// the same bytes where this one stopped.
    pub(crate) async fn run(
        &mut self,
        bytes: &Bytes,
        spans: &[CommandSpan],
        out: &mut BytesMut,
    ) -> usize {
        self.chunk.started = Instant::now();
        self.chunk.slice = self.chunk.started;
        self.client.work();
        self.chunk.doublings = 0;
        (self.chunk.absent, self.chunk.unknown, self.chunk.unmade) = (None, None, None);
        if self.owes_replies() {
            self.flush(bytes, out).await;
            if let Some((next, span)) = self.chunk.stalled.take_if(|_| !self.chunk.is_owed) {
                self.complete(next, span, bytes, out).await;
            }
        }
        let mut taken = 0;
        for &span in spans {
            if self.closing || self.owes_replies() || self.client.is_killed() {
                break;
            }
            let is_much = out.len() + self.chunk.reply_bytes >= self.replies_max;
            if self.chunk.is_full() || is_much {
                let before = out.len();
                self.flush(bytes, out).await;
                if self.owes_replies() || out.len() >= self.replies_max {
                    break;
                }
                let is_small = out.len() - before <= SMALL_BYTES;
                self.chunk.doublings =
                    if is_small { (self.chunk.doublings + 1).min(DOUBLINGS_MAX) } else { 0 };
            }
            self.chunk.slice_commands += 1;
            if self.chunk.slice_commands >= SLICE_COMMANDS {
                self.yield_if_due().await;
            }
            let argv = resp::argv(bytes, span);
            match self.begin(argv, span) {
                NextStep::Done => {}
                NextStep::Pause => break,
                next => self.complete(next, span, bytes, out).await,
            }
            taken += 1;
        }
        if !self.owes_replies() {
            self.flush(bytes, out).await;
        }
        self.track_memory(MemoryUse::Transaction, self.transaction.bytes());
        // The time of the last command.
        self.client.touch(self.chunk.started);
        taken
    }

    /// `true` while commands have been taken whose replies follow only after the client
    /// has read the replies before them.
    pub(crate) fn owes_replies(&self) -> bool {
        self.chunk.is_owed || self.chunk.stalled.is_some()
    }

    /// Processes a command as far as possible without waiting.
    fn begin(&mut self, argv: Argv, span: CommandSpan) -> NextStep {
        let resolved = match lookup(&argv) {
            Ok(command) => ResolvedCommand { command, index: CommandIndex::of(command) },
            Err((Some(command), reply)) => {
                return self.reject(
                    Some(ResolvedCommand { command, index: CommandIndex::of(command) }),
                    span,
                    reply,
                );
            }
            Err((None, reply)) => {
                if argv.first().is_some_and(|arg| {
                    arg.eq_ignore_ascii_case(b"post") || arg.eq_ignore_ascii_case(b"host:")
                }) {
                    tracing::warn!(
                        client = %self.client.endpoint.address,
                        "client disconnected: HTTP request, possibly cross-protocol scripting"
                    );
                    self.closing = true;
                    return NextStep::Done;
                }
                return self.reject(None, span, reply);
            }
        };
        if !self.authenticated && self.is_unauthenticated() && !resolved.command.is(flags::NO_AUTH)
        {
            return self.reject(Some(resolved), span, Reply::error(errors::NOAUTH));
        }
        let writes = resolved.command.is(flags::WRITE)
            || (resolved.command.name == "exec" && self.transaction.writes());
        if self.proxy.clients.paused_until(writes).is_some() && !self.proxy.shutdown.is_cancelled()
        {
            self.held = Some(writes);
            return NextStep::Pause;
        }
        self.plan(argv, resolved, span)
    }

    /// From arguments to ops in the batches, a reply, or the next step.
    fn plan(&mut self, argv: Argv, resolved: ResolvedCommand, span: CommandSpan) -> NextStep {
        let shown = (self.proxy.monitors.is_active() && crate::monitor::is_shown(resolved.command))
            .then(|| argv.clone());
        let is_queued = self.transaction.is_open()
            && !matches!(
                resolved.command.name,
                "exec" | "discard" | "multi" | "watch" | "quit" | "reset"
            );
        if is_queued {
            let bytes_max = self.proxy.settings.load().query_max();
            let reply = self.transaction.queue(resolved, &argv, bytes_max);
            self.track_memory(MemoryUse::Transaction, self.transaction.bytes());
            return self.ready(resolved, span, reply);
        }
        let seed = self.next_seed();
        let plan = plan_command(resolved.command, argv, span.end - span.start, seed);
        let next = match plan {
            Err(reply) => self.reject(Some(resolved), span, reply),
            Ok(Plan::Reply(reply)) => {
                // This may be the documentation of all commands.
                self.chunk.slice_commands += SLICE_COMMANDS;
                self.ready(resolved, span, reply)
            }
            Ok(Plan::Rows(rows)) => self.route(rows, resolved, span),
            Ok(Plan::Local(call)) => self.answer_at_once(call, resolved, span),
        };
        // A local command is shown to monitors once it has run; SELECT with the new
        // table.
        if let Some(argv) = shown.filter(|_| !matches!(next, NextStep::Local(..))) {
            self.show(&argv);
        }
        next
    }

    /// Shows an executed command to the monitors.
    pub(crate) fn show(&self, argv: &[Bytes]) {
        let bytes_max = self.proxy.settings.load().output_max().bytes;
        self.proxy.monitors.feed(&self.client, self.client.database(), argv, bytes_max);
    }

    /// Adds ops to the batches.
    fn route(&mut self, rows: RowPlan, resolved: ResolvedCommand, span: CommandSpan) -> NextStep {
        self.table();
        self.route_on_table(rows, resolved, span)
    }

    /// As [`Session::route`], on the table of the last look-up.
    fn route_on_table(
        &mut self,
        rows: RowPlan,
        resolved: ResolvedCommand,
        span: CommandSpan,
    ) -> NextStep {
        if resolved.command.is(flags::WRITE) {
            let bytes_max = self.proxy.settings.load().write_max();
            if rows.ops.iter().map(Op::bytes).sum::<usize>() > bytes_max.bytes + 64 * 1024 {
                let line = format!("ERR request is larger than {bytes_max}");
                return self.reject(Some(resolved), span, Reply::error(line));
            }
        }
        let Some(table) = self.table.as_deref() else { return NextStep::NoTable(rows, resolved) };
        rows.ops.iter().for_each(|op| self.chunk.note(op));
        let is_lookup = rows.ops.first().is_some_and(lookups::is_lookup);
        let mut indexes = SmallVec::new();
        if rows.all_partitions {
            for partition in router::partitions(table) {
                indexes.extend(
                    rows.ops.iter().map(|op| self.chunk.batches.add(partition, op.clone(), false)),
                );
            }
        } else if table.partitions <= 1 {
            for (at, op) in rows.ops.into_iter().enumerate() {
                indexes.push(self.chunk.batches.add(router::partition_of(table, b""), op, at > 0));
            }
        } else {
            let Some(places) = router::places(table, &rows) else {
                return self.reject(Some(resolved), span, Reply::error(errors::CROSSSLOT));
            };
            for (at, (op, place)) in rows.ops.into_iter().zip(&places).enumerate() {
                let joins = places[..at].contains(place);
                indexes.push(self.chunk.batches.add(*place, op, joins));
            }
        }
        let silent = self.is_silent();
        self.chunk.entries.push_back(PendingReply {
            resolved: Some(resolved),
            span,
            silent,
            state: ReplyState::Waiting(rows.builder, indexes, is_lookup),
        });
        NextStep::Done
    }

    /// Answers commands that need neither rows nor waiting.
    fn answer_at_once(
        &mut self,
        call: LocalCommand,
        resolved: ResolvedCommand,
        span: CommandSpan,
    ) -> NextStep {
        let reply = match call {
            LocalCommand::Ping(None) => Reply::Status("PONG".into()),
            LocalCommand::Ping(Some(arg)) | LocalCommand::Echo(arg) => Reply::Bulk(arg),
            LocalCommand::Select(arg) => match self.resolve_table_now(&arg) {
                Some(named) => self.select(named),
                None => return NextStep::Local(LocalCommand::Select(arg), resolved),
            },
            LocalCommand::Multi => self.transaction.open(),
            LocalCommand::Discard => self.transaction.discard(),
            LocalCommand::Unwatch => {
                self.transaction.unwatch();
                Reply::OK
            }
            LocalCommand::Client(
                call @ (ClientCommand::Id
                | ClientCommand::GetName
                | ClientCommand::SetName(_)
                | ClientCommand::SetInfo { .. }),
            ) => self.proxy.clients.call(&self.client, call).0,
            call => return NextStep::Local(call, resolved),
        };
        self.ready(resolved, span, reply)
    }

    /// Completes a command after everything before it.
    async fn complete(
        &mut self,
        next: NextStep,
        span: CommandSpan,
        bytes: &Bytes,
        out: &mut BytesMut,
    ) {
        self.flush(bytes, out).await;
        if self.chunk.is_owed {
            self.chunk.stalled = Some((next, span));
            return;
        }
        match next {
            NextStep::Done | NextStep::Pause => {}
            NextStep::NoTable(rows, resolved) => {
                let placed: Boxed<'_, NextStep> =
                    Box::pin(self.without_table(rows, resolved, span));
                if let NextStep::NoTable(..) = placed.await {
                    self.reject(Some(resolved), span, errors::call_error(&CallError::NoTable));
                }
            }
            NextStep::Local(call, resolved) => {
                self.client.info.lock().last_command = Some(resolved.command.name);
                let is_reply_mode = matches!(call, LocalCommand::Client(ClientCommand::Reply(_)));
                // Administrators' commands may reply with long lists, and may have long
                // arguments.
                let may_be_long = resolved.command.is(flags::ADMIN) || span.argc >= LONG_PLAN_ARGS;
                let reply = match may_be_long {
                    true => blocking::poll_in_place(self.call(call)).await,
                    false => self.call(call).await,
                };
                if self.proxy.monitors.is_active() && crate::monitor::is_shown(resolved.command) {
                    self.show(&resp::argv(bytes, span));
                }
                self.yield_if_due().await;
                self.chunk.absent = None;
                if let Some(reply) = reply {
                    // CLIENT REPLY ON is answered; OFF and SKIP suppress their own reply
                    // as well.
                    let silent = if is_reply_mode {
                        self.silence != ReplySuppression::None
                    } else {
                        self.is_silent()
                    };
                    self.chunk.entries.push_back(PendingReply {
                        resolved: Some(resolved),
                        span,
                        silent,
                        state: ReplyState::Ready(reply),
                    });
                }
                // The following commands may depend on it: protocol version,
                // authentication, reply suppression.
                self.flush(bytes, out).await;
            }
        }
    }

    /// Runs a local command after everything before it. `None`: no reply. Boxed because
    /// it is rare and large, which keeps the common path small, and because EXEC calls it
    /// for its commands.
    pub(crate) fn call(&mut self, call: LocalCommand) -> Boxed<'_, Option<Reply>> {
        Box::pin(self.run_local_unboxed(call))
    }

    async fn run_local_unboxed(&mut self, call: LocalCommand) -> Option<Reply> {
        Some(match call {
            LocalCommand::Ping(None) => Reply::Status("PONG".into()),
            LocalCommand::Ping(Some(arg)) | LocalCommand::Echo(arg) => Reply::Bulk(arg),
            LocalCommand::Select(arg) => match self.resolve_table(&arg).await {
                Ok(named) => self.select(named),
                Err(reply) => reply,
            },
            LocalCommand::Quit => {
                self.closing = true;
                Reply::OK
            }
            LocalCommand::Reset => self.reset(),
            LocalCommand::Hello(hello) => self.hello(hello),
            LocalCommand::Auth { user, password } => self.authenticate(user.as_deref(), &password),
            LocalCommand::Client(call) => {
                let (reply, effect) = self.proxy.clients.call(&self.client, call);
                self.follow(effect);
                reply
            }
            LocalCommand::Exec => self.exec().await,
            LocalCommand::Watch(keys) => self.watch(keys).await,
            LocalCommand::Multi => self.transaction.open(),
            LocalCommand::Discard => self.transaction.discard(),
            LocalCommand::Unwatch => {
                self.transaction.unwatch();
                Reply::OK
            }
            LocalCommand::Keys { glob } => self.keys(glob).await,
            LocalCommand::Scan { cursor, count, glob, kind, none } => {
                self.scan(cursor, count, glob, kind, none).await
            }
            LocalCommand::RandomKey => self.random_key().await,
            LocalCommand::Move { key, table } => self.move_row(key, &table).await,
            LocalCommand::CopyTo { from, to, table, replace } => {
                self.copy_row(from, to, &table, replace).await
            }
            LocalCommand::Wait { .. } => self.wait_for_copies(),
            LocalCommand::WaitAof { local, replicas, timeout_ms } => {
                self.wait_for_disks(local, replicas, waits::deadline(timeout_ms)).await
            }
            LocalCommand::FlushAll => {
                let reply = server::flush_all(&self.proxy).await;
                let tables = self.proxy.catalogue.tables();
                tables
                    .iter()
                    .flat_map(|table| router::partitions(table))
                    .for_each(|partition| self.written.note(partition));
                reply
            }
            other => match (Box::pin(server::call(&self.proxy, &self.client, other))
                as Boxed<'_, server::ServerOutcome>)
                .await
            {
                server::ServerOutcome::Reply(reply) => reply,
                server::ServerOutcome::Close => {
                    self.closing = true;
                    return None;
                }
                server::ServerOutcome::NotHandled => commands::errors::no_answer(),
            },
        })
    }

    /// Ops on a table that this proxy does not know. If the table does not exist, reads
    /// find nothing, and only an op that writes creates it.
    async fn without_table(
        &mut self,
        rows: RowPlan,
        resolved: ResolvedCommand,
        span: CommandSpan,
    ) -> NextStep {
        let found = match eval_on_empty(&rows.ops) {
            Ok(Some(outcomes)) => match self.find_table().await {
                Ok(None) => {
                    if rows.ops.first().is_some_and(lookups::is_lookup) {
                        lookups::count(&self.proxy.stats, &outcomes);
                    }
                    let reply = rows.builder.build(outcomes);
                    return self.ready(resolved, span, reply);
                }
                found => found.map(drop),
            },
            Ok(None) => {
                // A command that would be refused creates no table. Mostly this is known
                // without asking the catalogue.
                let to_be = if fits(&router::finest_table(), &rows) {
                    Ok(None)
                } else {
                    self.table_to_be().await
                };
                match to_be {
                    Ok(Some(table)) if !fits(&table, &rows) => Err(Reply::error(errors::CROSSSLOT)),
                    Ok(_) => self.ensure_table().await.map(drop),
                    Err(reply) => Err(reply),
                }
            }
            Err(fault) => Err(errors::call_error(&CallError::Fault(fault.0))),
        };
        match found {
            Ok(()) => self.route_on_table(rows, resolved, span),
            Err(reply) => self.reject(Some(resolved), span, reply),
        }
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
    pub(crate) async fn flush(&mut self, bytes: &Bytes, out: &mut BytesMut) {
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
    async fn answer(&mut self, bytes: &Bytes, out: &mut BytesMut) {
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
                entry.state =
                    ReplyState::Refused(errors::answer_too_large(bytes_max), indexes.clone());
            }
            let is_there = match &mut entry.state {
                ReplyState::Ready(_) => true,
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
            let mut reply = match state {
                ReplyState::Ready(reply) | ReplyState::Refused(reply, _) => reply,
                ReplyState::Waiting(builder, indexes, is_lookup) => {
                    let writes = resolved.is_some_and(|resolved| resolved.command.is(flags::WRITE));
                    let counted = is_lookup.then_some(&self.proxy.stats);
                    build_reply(&mut self.chunk.batches, builder, &indexes, writes, counted).await
                }
            };
            if reply.bytes() > bytes_max.bytes {
                reply = errors::answer_too_large(bytes_max);
            }
            let encoding_ns = reply.encoding_ns(blocking::LONG_WORK_NS);
            worked_ns += ENTRY_NS + encoding_ns;
            if worked_ns >= SLICE_NS {
                tokio::task::yield_now().await;
                worked_ns = 0;
            }
            if let (Some(ResolvedCommand { index: Some(index), .. }), Reply::Error(line)) =
                (resolved, &reply)
            {
                self.proxy.stats.failed(index, line);
            }
            let encode = || {
                if !silent {
                    resp::encode(&reply, self.protocol, out);
                }
                // Freeing a million elements takes time as well.
                drop(reply);
            };
            if encoding_ns >= blocking::LONG_WORK_NS {
                blocking::block_in_place_with_permit(encode).await
            } else {
                encode()
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

    fn note_slow(
        &self,
        entries: &[(Option<ResolvedCommand>, CommandSpan)],
        took: Duration,
        bytes: &Bytes,
        settings: &Settings,
    ) {
        // Commands of one chunk share the time, which is attributed to the slow commands
        // if there are any.
        let is_fast = |entry: &(Option<ResolvedCommand>, CommandSpan)| {
            entry.0.is_none_or(|resolved| resolved.command.is(flags::FAST))
        };
        if crate::slowlog::is_slow(took, settings.slowlog_slower_than_us) {
            let name = self.client.name();
            let all_fast = entries.iter().all(is_fast);
            let is_noted = |entry: &&(Option<ResolvedCommand>, CommandSpan)| {
                (all_fast || !is_fast(entry))
                    && entry.0.is_some_and(|resolved| !resolved.command.is(flags::SKIP_SLOWLOG))
            };
            for (_, span) in entries.iter().filter(is_noted).take(SLOW_ENTRIES_MAX) {
                let argv = resp::argv(bytes, *span);
                self.proxy.slowlog.add(
                    &argv,
                    took,
                    &self.client.endpoint.address,
                    &name,
                    settings.slowlog_len_max,
                );
            }
        }
        if settings.latency_threshold_ms > 0 {
            let event = if entries.iter().all(is_fast) { "fast-command" } else { "command" };
            self.proxy.latency.add(event, took, settings.latency_threshold_ms);
        }
    }

    /// The last executed command, for CLIENT LIST.
    pub(crate) fn last_command(&self) -> Option<&'static str> {
        self.chunk.last.map(|resolved| resolved.command.name)
    }

    fn is_silent(&mut self) -> bool {
        match self.silence {
            ReplySuppression::None => false,
            ReplySuppression::All => true,
            ReplySuppression::NextReply => {
                self.silence = ReplySuppression::None;
                true
            }
        }
    }

    fn ready(&mut self, resolved: ResolvedCommand, span: CommandSpan, reply: Reply) -> NextStep {
        let silent = self.is_silent();
        self.chunk.reply_bytes += reply.bytes();
        self.chunk.entries.push_back(PendingReply {
            resolved: Some(resolved),
            span,
            silent,
            state: ReplyState::Ready(reply),
        });
        NextStep::Done
    }

    /// Answers with an error before anything ran. A transaction that is being queued is
    /// aborted.
    fn reject(
        &mut self,
        resolved: Option<ResolvedCommand>,
        span: CommandSpan,
        mut reply: Reply,
    ) -> NextStep {
        self.transaction.mark_dirty();
        if let (Some("exec"), Reply::Error(line)) =
            (resolved.map(|resolved| resolved.command.name), &reply)
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
        self.chunk.reply_bytes += reply.bytes();
        self.chunk.entries.push_back(PendingReply {
            resolved: None,
            span,
            silent,
            state: ReplyState::Ready(reply),
        });
        NextStep::Done
    }
}

fn count(counts: &mut SmallVec<[(CommandIndex, u64); 8]>, index: CommandIndex) {
    match counts.iter_mut().find(|(other, _)| *other == index) {
        Some((_, calls)) => *calls += 1,
        None => counts.push((index, 1)),
    }
}

/// The plan of a command. Plans that take long are made while other tasks run.
pub(crate) fn plan_command(
    command: &'static Command,
    argv: Argv,
    bytes: usize,
    seed: u64,
) -> PlanResult {
    let is_long =
        argv.len() >= LONG_PLAN_ARGS || command.is(flags::LONG_PLAN) && bytes >= LONG_PLAN_BYTES;
    let name_args = 1 + usize::from(command.parts().is_some());
    let plan = move || (command.plan)(Args::new(argv, name_args, seed));
    if is_long { blocking::block_in_place(plan) } else { plan() }
}

/// Estimated cost of a command besides its own work.
const ENTRY_NS: u64 = 500;

/// The reply to the outcomes. Long work is done while other tasks run.
pub(crate) async fn reply_to(builder: ReplyBuilder, outcomes: Vec<Outcome>) -> Reply {
    match builder.work_ns(&outcomes) >= blocking::LONG_WORK_NS {
        true => blocking::block_in_place_with_permit(|| builder.build(outcomes)).await,
        false => builder.build(outcomes),
    }
}

/// The reply to the next outcomes of these batches. A write that was done in some
/// partitions must not look as if nothing was done. Look-ups are `counted`.
async fn build_reply(
    batches: &mut Batches,
    builder: ReplyBuilder,
    indexes: &[u16],
    writes: bool,
    counted: Option<&Stats>,
) -> Reply {
    let count = |outcomes: &[Outcome]| {
        counted.into_iter().for_each(|stats| lookups::count(stats, outcomes))
    };
    if let [index] = indexes {
        let outcome = match batches.take(*index) {
            Ok(outcome) => outcome,
            Err(error) => return errors::call_error(&error),
        };
        count(std::slice::from_ref(&outcome));
        if builder.work_ns(std::slice::from_ref(&outcome)) < blocking::LONG_WORK_NS {
            return builder.build([outcome]);
        }
        return blocking::block_in_place_with_permit(|| builder.build([outcome])).await;
    }
    let mut outcomes = Vec::with_capacity(indexes.len());
    let mut failed = None;
    for &index in indexes {
        match batches.take(index) {
            Ok(outcome) => outcomes.push(outcome),
            // An unknown outcome takes precedence: the other errors mean that nothing was
            // done.
            Err(error) if failed.is_none() || matches!(error, CallError::Unknown(_)) => {
                failed = Some(error)
            }
            Err(_) => {}
        }
    }
    match failed {
        None => {
            count(&outcomes);
            reply_to(builder, outcomes).await
        }
        Some(error) if writes && !outcomes.is_empty() => errors::partly_done(&error),
        Some(error) => errors::call_error(&error),
    }
}

/// `true` if the ops of a command meet its routing rules in this table.
fn fits(table: &Table, rows: &RowPlan) -> bool {
    rows.all_partitions || router::places(table, rows).is_some()
}

/// The outcomes of the ops on an empty table; `None` if one of them would write.
pub(crate) fn eval_on_empty(ops: &[Op]) -> Result<Option<Vec<Outcome>>, Fault> {
    let mut edits = Edits::default();
    let mut outcomes = Vec::with_capacity(ops.len());
    let rules = Rules::default();
    for op in ops {
        if matches!(op, Op::Clear) {
            outcomes.push(Ok(Answer::Ok));
            continue;
        }
        let stamp = Stamp { now_ms: crate::now_ms(), timetag: 0 };
        let mut tx = Tx { view: &EmptyView, edits: &mut edits, stamp, rules };
        match row::eval(op, &mut tx) {
            Ok(answer) => outcomes.push(Ok(answer)),
            Err(EvalError::Refused(refusal)) => outcomes.push(Err(refusal)),
            Err(EvalError::Fault(fault)) => return Err(fault),
        }
    }
    Ok(edits.is_empty().then_some(outcomes))
}

/// A partition without rows.
struct EmptyView;

impl View for EmptyView {
    fn get(&self, _: Family, _: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(None)
    }

    fn range(
        &self,
        _: Family,
        _: &[u8],
        _: &[u8],
        _: bool,
        _: &mut dyn FnMut(&[u8], &[u8]) -> std::ops::ControlFlow<()>,
    ) -> Result<(), Fault> {
        Ok(())
    }
}
