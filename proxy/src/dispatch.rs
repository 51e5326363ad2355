//! From a chunk of commands to their replies.
//!
//! A chunk is what was complete in one read. Its commands are looked up and planned one
//! after another; ops on rows are only put into the [`Batches`], so that a pipeline of
//! any length costs few calls. What must not wait for them or be waited for (PING,
//! SELECT) is answered on the spot; everything else the session does makes the chunk
//! carry out first what came before ([`Session::flush`]).
//!
//! # Memory
//! Replies are bounded as they are made: when [`Session::replies_max`] bytes of them
//! wait, nothing more is carried out, and what of a large read has not been asked for is
//! [owed](Session::owes) until the client has read. So a chunk holds at most that, and
//! one command's answer.

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

/// At most so many commands of one slow chunk go to the slow log.
const SLOW_ENTRIES_MAX: usize = 16;

/// Nobody knows how large values are before they are read. So of the ops of a chunk whose
/// answers may be large, few are carried out first, and twice as many at a time as long
/// as their replies are small. (With writes among them, more: those cost a log entry each
/// time.)
const LARGE_OPS_FIRST: usize = 16;
const LARGE_OPS_FIRST_WITH_WRITES: usize = 64;
const DOUBLINGS_MAX: u32 = 8;
/// What an op takes besides its words, with what becomes of it, about.
const PLANNED_BYTES: usize = size_of::<Op>() + size_of::<Outcome>();
/// What counts as small for so many replies.
const SMALL_BYTES: usize = 1 << 20;

/// A client's commands are carried out for so long before others are looked at.
const SLICE: Duration = Duration::from_millis(1);
const SLICE_NS: u64 = 1_000_000;
/// The clock is looked at once in so many commands.
const SLICE_COMMANDS: usize = 8;
/// Plans of commands of so many words, or of so many bytes where each costs time, are
/// made while others are served.
const LONG_PLAN_ARGS: usize = 1000;
const LONG_PLAN_BYTES: usize = 256 << 10;

/// A command as found in the table.
#[derive(Clone, Copy)]
pub(crate) struct ResolvedCommand {
    pub(crate) command: &'static Command,
    pub(crate) index: Option<CommandIndex>,
}

/// The commands of one chunk whose replies have not been written.
pub(crate) struct Chunk {
    pub(crate) batches: Batches,
    entries: VecDeque<PendingReply>,
    /// Some of `entries` have not been answered, as the client is to read first.
    is_owed: bool,
    /// What the session does itself once the replies to `entries` are written: these are
    /// owed.
    stalled: Option<(NextStep, CommandSpan)>,
    /// What the replies in `entries` take, and what the ops in `batches` do, bytes.
    reply_bytes: usize,
    planned_bytes: usize,
    started: Instant,
    /// Since when others of this thread have waited, and for how many commands the clock
    /// was not looked at.
    slice: Instant,
    slice_commands: usize,
    counts: SmallVec<[(CommandIndex, u64); 8]>,
    last: Option<ResolvedCommand>,
    /// Ops in the batches whose answers may be large, and whether there are writes, too.
    large_ops: usize,
    writes: bool,
    /// How often the ops that may be carried out at once have doubled.
    doublings: u32,
    /// There was no table of this name when it was asked for. That holds for all commands
    /// of the chunk, which had come by then, up to one that does something.
    pub(crate) absent: Option<Arc<str>>,
    /// Whether some table is there could not be learnt, or none could be made: the rest
    /// of the chunk is refused without waiting as long again.
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

    /// What is being made of the commands: plans, answers, replies.
    fn made_bytes(&self) -> usize {
        self.planned_bytes + self.reply_bytes + self.batches.held_bytes()
    }

    /// So many large replies may come that they are to be written before more is carried
    /// out, or so many partitions are asked.
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
    /// Waits for its ops, which are in these lines of the batches, and count as looking
    /// keys up or not.
    Waiting(ReplyBuilder, SmallVec<[u16; 4]>, bool),
    /// Is refused with this, as its answers are too large; the outcomes of ops in these
    /// lines are forgotten as they come.
    Refused(Reply, SmallVec<[u16; 4]>),
}

/// What is left to do for a command that could not be finished on the spot.
enum NextStep {
    Done,
    /// Nothing: CLIENT PAUSE holds it back.
    Pause,
    /// Ops on a table that this proxy has not heard of.
    NoTable(RowPlan, ResolvedCommand),
    /// The session's own.
    Local(LocalCommand, ResolvedCommand),
}

impl Session {
    /// Carries out the commands that lie at `spans` in `bytes`, and appends their
    /// replies. How many it took: all, unless CLIENT PAUSE holds one back
    /// ([`Session::held`]), the replies are so large that the client should read them
    /// first, or the connection is to end. While replies are [owed](Session::owes), what
    /// it is given next begins where it stopped, in the same bytes.
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
        // When the last of its commands was done.
        self.client.touch(self.chunk.started);
        taken
    }

    /// Commands have been taken whose replies are still to be made, once the client has
    /// read those before.
    pub(crate) fn owes_replies(&self) -> bool {
        self.chunk.is_owed || self.chunk.stalled.is_some()
    }

    /// As much of a command as can be done without waiting.
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
                    tracing::warn!(client = %self.client.endpoint.address, "closed a connection that speaks HTTP: cross protocol scripting?");
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

    /// From words to ops in the batches, a reply, or what is left to do.
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
                // It may be documentation of all commands.
                self.chunk.slice_commands += SLICE_COMMANDS;
                self.ready(resolved, span, reply)
            }
            Ok(Plan::Rows(rows)) => self.route(rows, resolved, span),
            Ok(Plan::Local(call)) => self.answer_at_once(call, resolved, span),
        };
        // What is left to do is shown when it has been done; SELECT with the table that
        // is selected then.
        if let Some(argv) = shown.filter(|_| !matches!(next, NextStep::Local(..))) {
            self.show(&argv);
        }
        next
    }

    /// Shows a command that has run to those who watch.
    pub(crate) fn show(&self, argv: &[Bytes]) {
        let bytes_max = self.proxy.settings.load().output_max().bytes;
        self.proxy.monitors.feed(&self.client, self.client.database(), argv, bytes_max);
    }

    /// Puts ops into the batches.
    fn route(&mut self, rows: RowPlan, resolved: ResolvedCommand, span: CommandSpan) -> NextStep {
        self.table();
        self.route_on_table(rows, resolved, span)
    }

    /// As [`Session::place`], on the table that was looked up last.
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

    /// Answers what needs nobody, neither rows nor time.
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

    /// The rest of a command, after everything that came before it.
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
                // What operators ask for may be long lists, and so may what they ask
                // with.
                let may_be_long = resolved.command.is(flags::ADMIN) || span.argc >= LONG_PLAN_ARGS;
                let reply = match may_be_long {
                    true => blocking::polled_in_place(self.call(call)).await,
                    false => self.call(call).await,
                };
                if self.proxy.monitors.is_active() && crate::monitor::is_shown(resolved.command) {
                    self.show(&resp::argv(bytes, span));
                }
                self.yield_if_due().await;
                self.chunk.absent = None;
                if let Some(reply) = reply {
                    // CLIENT REPLY ON answers; OFF and SKIP leave out their own reply,
                    // too.
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
                // What follows may depend on it: protocol version, authentication,
                // silence.
                self.flush(bytes, out).await;
            }
        }
    }

    /// What the session does itself, when everything before has been carried out. `None`:
    /// no reply. Boxed, as it is rare and large: the common way stays small. And EXEC
    /// comes back here for its commands.
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

    /// Ops on a table that this proxy has not heard of. If it is not there, they find
    /// nothing, and only one that would write something creates it.
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
                // What would be refused makes no table. Mostly nobody has to be asked.
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

    /// Lets others have the thread, if this client has had it for long enough.
    pub(crate) async fn yield_if_due(&mut self) {
        self.chunk.slice_commands = 0;
        if self.chunk.slice.elapsed() >= SLICE {
            tokio::task::yield_now().await;
            self.chunk.slice = Instant::now();
        }
    }

    /// Carries out all ops so far and appends all replies so far; or, where answers are
    /// large, as many as are enough for now: the others are [owed](Session::owes).
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

    /// Appends the replies whose answers are there, in order, up to one that is not; and
    /// no more than the client is to read first.
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
            let encoding_ns = reply.encoding_ns(blocking::LONG_NS);
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
                // To give back a million elements takes time as well.
                drop(reply);
            };
            if encoding_ns >= blocking::LONG_NS {
                blocking::in_turn(encode).await
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
        // Commands that came together are as slow as the slowest of them, which is no
        // fast one if there is another.
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

    /// The name of the last command carried out, for CLIENT LIST.
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

    /// Answers with an error before anything ran; a transaction that is being queued is
    /// spoilt by it.
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
            // An EXEC that cannot be carried out ends the transaction all the same.
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

/// A command's plan; of many words, or of many bytes where each costs time, it is made
/// while others are served.
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
    if is_long { blocking::in_place(plan) } else { plan() }
}

/// What a command takes beside its own work, about.
const ENTRY_NS: u64 = 500;

/// The reply to outcomes; what takes long is done while others are served.
pub(crate) async fn reply_to(builder: ReplyBuilder, outcomes: Vec<Outcome>) -> Reply {
    match builder.work_ns(&outcomes) >= blocking::LONG_NS {
        true => blocking::in_turn(|| builder.build(outcomes)).await,
        false => builder.build(outcomes),
    }
}

/// The reply to what became of ops in these lines. A write that was done in some
/// partitions only must not look as if nothing was done. If they are look-ups, they are
/// `counted`.
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
        if builder.work_ns(std::slice::from_ref(&outcome)) < blocking::LONG_NS {
            return builder.build([outcome]);
        }
        return blocking::in_turn(|| builder.build([outcome])).await;
    }
    let mut outcomes = Vec::with_capacity(indexes.len());
    let mut failed = None;
    for &index in indexes {
        match batches.take(index) {
            Ok(outcome) => outcomes.push(outcome),
            // An unknown outcome is the one to be told: the others say that nothing was
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

/// Whether a command's ops lie where they must in a table.
fn fits(table: &Table, rows: &RowPlan) -> bool {
    rows.all_partitions || router::places(table, rows).is_some()
}

/// What ops say where there is no row; `None` when one of them would write.
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
