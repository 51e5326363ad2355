//! Carries out commands: look-up, plan, and then ops on rows, rounds of them, a reply, or a
//! local command.

use bytes::BytesMut;
use cluster::{Boxed, CallError, blocking};
use commands::args::Argv;
use commands::table::{flags, lookup};
use commands::{Command, Plan, PlanResult, Reply, ReplyBuilder, RowPlan};
use row::op::Op;
use smallvec::SmallVec;

use crate::client::memory_usage::MemoryUse;
use crate::local::LocalReply;
use crate::pipeline::chunk::{NextStep, PendingReply, ReplyState};
use crate::resp::{self, ChunkBytes, CommandSpan, Encoder};
use crate::router::{self, Batches, Outcome};
use crate::session::{Session, TableRef};
use crate::stats::{CommandIndex, ResolvedCommand, Stats};
use crate::{errors, lookups};

/// Plans of commands with this many arguments, or this many bytes if
/// [`flags::LONG_PLAN`], are made while other tasks run.
const LONG_PLAN_ARGS: usize = 1000;
const LONG_PLAN_BYTES: usize = 256 << 10;

impl Session {
    /// Processes a command as far as possible without waiting.
    pub(crate) fn begin(&mut self, argv: Argv, span: CommandSpan) -> NextStep {
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
            || (resolved.command.is(flags::RUNS_QUEUE) && self.transaction.writes());
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
        if self.transaction.is_open() && !resolved.command.is(flags::RUNS_IN_MULTI) {
            let bytes_max = self.proxy.settings.load().query_max();
            let reply = self.transaction.queue(resolved, &argv, bytes_max);
            self.track_memory(MemoryUse::Transaction, self.transaction.bytes());
            return self.ready(resolved, span, reply);
        }
        let seed = self.next_seed();
        let plan = plan_command(resolved.command, argv, span.end - span.start, seed);
        let next = match plan {
            Err(reply) => self.reject(Some(resolved), span, reply),
            Ok(Plan::Reply(reply)) => self.ready(resolved, span, reply),
            Ok(Plan::Rows(rows)) => self.route(rows, resolved, span),
            Ok(Plan::Rounds(machine)) => NextStep::Rounds(machine, resolved),
            Ok(Plan::Select(arg)) => match self.resolve_table_now(&arg) {
                Some(table) => {
                    let reply = self.select(table);
                    self.ready(resolved, span, reply)
                }
                None => NextStep::Select(arg, resolved),
            },
            Ok(Plan::Exec) => NextStep::Exec(resolved),
            Ok(Plan::Local(command)) if resolved.command.is(flags::AT_ONCE) => {
                NextStep::AtOnce(command, resolved)
            }
            Ok(Plan::Local(command)) => NextStep::Local(command, resolved),
        };
        // A command that runs later is shown to monitors once it has run; SELECT with the
        // new table.
        if let Some(argv) = shown.filter(|_| !next.is_local()) {
            self.show(resolved.command, &argv);
        }
        next
    }

    /// Adds ops to the batches.
    fn route(&mut self, rows: RowPlan, resolved: ResolvedCommand, span: CommandSpan) -> NextStep {
        self.table();
        self.route_on_table(rows, resolved, span)
    }

    /// As [`Session::route`], on the table of the last look-up.
    pub(crate) fn route_on_table(
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
        let copies = if rows.all_partitions { table.partitions as usize } else { 1 };
        self.chunk.note(&rows.ops, copies, span.end - span.start);
        let is_lookup = rows.is_lookup;
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

    /// Completes a command, mostly after everything before it.
    pub(crate) async fn complete(
        &mut self,
        next: NextStep,
        span: CommandSpan,
        bytes: ChunkBytes<'_>,
        out: &mut BytesMut,
    ) {
        if !matches!(next, NextStep::AtOnce(..)) {
            self.flush(bytes, out).await;
            if self.chunk.is_owed {
                self.chunk.stalled = Some((next, span));
                return;
            }
        }
        match next {
            NextStep::Done | NextStep::Pause => {}
            NextStep::AtOnce(command, resolved) => {
                let reply = self.run_local(command, true).await;
                self.finish_local(reply, resolved, span, bytes);
            }
            NextStep::NoTable(rows, resolved) => {
                let placed: Boxed<'_, NextStep> =
                    Box::pin(self.without_table(rows, resolved, span));
                if let NextStep::NoTable(..) = placed.await {
                    self.reject(Some(resolved), span, errors::call_error(&CallError::NoTable));
                }
            }
            NextStep::Rounds(machine, resolved) => {
                self.client.info.lock().last_command = Some(resolved.command.name);
                let reply = self.drive(machine).await;
                self.finish_local(reply.into(), resolved, span, bytes);
                self.end_local(bytes, out).await;
            }
            NextStep::Select(arg, resolved) => {
                let found: Boxed<'_, Result<TableRef, Reply>> = Box::pin(self.resolve_table(&arg));
                let found = found.await;
                let reply = found.map_or_else(|reply| reply, |table| self.select(table));
                self.finish_local(reply.into(), resolved, span, bytes);
            }
            NextStep::Local(command, resolved) => {
                self.client.info.lock().last_command = Some(resolved.command.name);
                let is_long = resolved.command.is(flags::LONG_RUN) || span.argc >= LONG_PLAN_ARGS;
                let reply = match is_long {
                    true => blocking::poll_in_place(self.run_local(command, true)).await,
                    false => self.run_local(command, true).await,
                };
                self.finish_local(reply, resolved, span, bytes);
                self.end_local(bytes, out).await;
            }
            NextStep::Exec(resolved) => {
                self.client.info.lock().last_command = Some(resolved.command.name);
                let bytes_max = self.proxy.settings.load().answer_max();
                let start = out.len();
                let mut reply = Encoder::new(out, self.protocol, bytes_max.bytes);
                let exec: Boxed<'_, ()> = Box::pin(self.exec(&mut reply));
                exec.await;
                if reply.is_too_large() {
                    reply.replace(&commands::errors::answer_too_large(&bytes_max));
                }
                self.show_executed(resolved, span, bytes);
                let silent = self.is_silent();
                self.chunk.entries.push_back(PendingReply {
                    resolved: Some(resolved),
                    span,
                    silent,
                    state: ReplyState::InOutput(start),
                });
                self.end_local(bytes, out).await;
            }
        }
    }

    /// The commands after a local command may depend on it: protocol version,
    /// authentication, reply suppression, tables. So its reply is written before them.
    async fn end_local(&mut self, bytes: ChunkBytes<'_>, out: &mut BytesMut) {
        self.yield_if_due().await;
        self.chunk.absent = None;
        self.flush(bytes, out).await;
    }

    /// Shows a command that has run to monitors.
    fn show_executed(&self, resolved: ResolvedCommand, span: CommandSpan, bytes: ChunkBytes<'_>) {
        if self.proxy.monitors.is_active() && crate::monitor::is_shown(resolved.command) {
            self.show(resolved.command, &resp::argv(bytes, span));
        }
    }

    /// A local command has run: shows it to monitors, and queues its reply.
    fn finish_local(
        &mut self,
        reply: LocalReply,
        resolved: ResolvedCommand,
        span: CommandSpan,
        bytes: ChunkBytes<'_>,
    ) {
        self.show_executed(resolved, span, bytes);
        match reply {
            LocalReply::Sent(reply) => {
                self.ready(resolved, span, reply);
            }
            LocalReply::Suppressed(reply) => self.add_reply(Some(resolved), span, reply, true),
            LocalReply::None => {}
        }
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
    let plan = move || command.plan_call(argv, seed);
    if is_long { blocking::block_in_place(plan) } else { plan() }
}

/// The makings of a reply.
pub(crate) enum ReplySource {
    Reply(Reply),
    /// The outcome of the only op.
    One(ReplyBuilder, Outcome),
    /// The outcomes of all ops.
    Several(ReplyBuilder, Vec<Outcome>),
}

impl ReplySource {
    /// Estimated time to write the reply, ns.
    pub(crate) fn work_ns(&self) -> u64 {
        match self {
            ReplySource::Reply(reply) => reply.encoding_ns(blocking::LONG_WORK_NS),
            ReplySource::One(builder, outcome) => builder.work_ns(std::slice::from_ref(outcome)),
            ReplySource::Several(builder, outcomes) => builder.work_ns(outcomes),
        }
    }

    /// Writes the reply, which takes this long. Long work is done while other tasks run.
    pub(crate) async fn write(self, work_ns: u64, reply: &mut Encoder<'_>) {
        if work_ns < blocking::LONG_WORK_NS {
            return self.write_at_once(reply);
        }
        // Freeing a million values takes time as well.
        blocking::block_in_place_with_permit(move || self.write_at_once(reply)).await;
    }

    fn write_at_once(self, reply: &mut Encoder<'_>) {
        match self {
            ReplySource::Reply(made) => made.write(reply),
            ReplySource::One(builder, outcome) => builder.write([outcome], reply),
            ReplySource::Several(builder, outcomes) => builder.write(outcomes, reply),
        }
    }
}

/// Takes the outcomes of a command from the batches. A write that was done in some
/// partitions must not look as if nothing was done. Look-ups are `counted`.
pub(crate) fn take_answers(
    batches: &mut Batches,
    builder: ReplyBuilder,
    indexes: &[u16],
    writes: bool,
    counted: Option<&Stats>,
) -> ReplySource {
    let count = |outcomes: &[Outcome]| {
        counted.into_iter().for_each(|stats| lookups::count(stats, outcomes))
    };
    if let [index] = indexes {
        return match batches.take(*index) {
            Ok(outcome) => {
                count(std::slice::from_ref(&outcome));
                ReplySource::One(builder, outcome)
            }
            Err(error) => ReplySource::Reply(errors::call_error(&error)),
        };
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
            ReplySource::Several(builder, outcomes)
        }
        Some(error) if writes && !outcomes.is_empty() => {
            ReplySource::Reply(errors::partly_done(&error))
        }
        Some(error) => ReplySource::Reply(errors::call_error(&error)),
    }
}
