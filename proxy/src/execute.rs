//! Carries out commands: look-up, plan, and then ops on rows, a reply, or a local command.

use bytes::BytesMut;
use cluster::{Boxed, CallError, blocking};
use commands::args::Argv;
use commands::plan::ClientCommand;
use commands::table::{flags, lookup};
use commands::{Args, Command, LocalCommand, Plan, PlanResult, Reply, ReplyBuilder, RowPlan};
use row::op::Op;
use smallvec::SmallVec;

use crate::client::memory_usage::MemoryUse;
use crate::pipeline::chunk::{NextStep, PendingReply, ReplyState, SLICE_COMMANDS};
use crate::resp::{self, ChunkBytes, CommandSpan, Encoder};
use crate::router::{self, Batches, Outcome};
use crate::session::{ReplySuppression, Session};
use crate::stats::{CommandIndex, ResolvedCommand, Stats};
use crate::{errors, lookups, server, waits};

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
    pub(crate) async fn complete(
        &mut self,
        next: NextStep,
        span: CommandSpan,
        bytes: ChunkBytes<'_>,
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
                let bytes_max = self.proxy.settings.load().answer_max();
                let start = out.len();
                let mut reply = Encoder::new(out, self.protocol, bytes_max.bytes);
                let is_answered = match may_be_long {
                    true => blocking::poll_in_place(self.call(call, &mut reply)).await,
                    false => self.call(call, &mut reply).await,
                };
                if reply.is_too_large() {
                    reply.replace(&errors::answer_too_large(bytes_max));
                }
                if self.proxy.monitors.is_active() && crate::monitor::is_shown(resolved.command) {
                    self.show(&resp::argv(bytes, span));
                }
                self.yield_if_due().await;
                self.chunk.absent = None;
                if is_answered {
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
                        state: ReplyState::InOutput(start),
                    });
                }
                // The following commands may depend on it: protocol version,
                // authentication, reply suppression.
                self.flush(bytes, out).await;
            }
        }
    }

    /// Runs a local command after everything before it, and writes its reply. `false`:
    /// there is none. Boxed because it is rare and large, which keeps the common path
    /// small, and because EXEC calls it for its commands.
    pub(crate) fn call<'a>(
        &'a mut self,
        call: LocalCommand,
        reply: &'a mut Encoder<'_>,
    ) -> Boxed<'a, bool> {
        Box::pin(self.run_local_unboxed(call, reply))
    }

    async fn run_local_unboxed(&mut self, call: LocalCommand, reply: &mut Encoder<'_>) -> bool {
        let made = match call {
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
            LocalCommand::Exec => {
                self.exec(reply).await;
                return true;
            }
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
                    return false;
                }
                server::ServerOutcome::NotHandled => commands::errors::no_answer(),
            },
        };
        // HELLO and RESET change it.
        reply.speak(self.protocol);
        let source = ReplySource::Reply(made);
        let work_ns = source.work_ns();
        source.write(work_ns, reply).await;
        true
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
