//! MULTI, EXEC, DISCARD, WATCH, UNWATCH.
//!
//! The arguments of a queued command are kept as copies; EXEC plans and executes the
//! commands. All ops go into one request to one partition, so they are atomic and
//! isolated; rows of several partitions are refused as a whole. Watched rows are sent
//! with the request as tokens made by the partition's executor ([`row::op::WatchToken`]),
//! so nothing is registered between WATCH and EXEC, and no server keeps a list.
//!
//! A row of a missing table is watched by the table's name: it is unchanged while the
//! table is missing, or when EXEC creates the table and nothing has been written to it
//! yet. EXEC reads a missing table as empty, unless EXEC creates the table itself: that
//! comes first, so that nothing is read of it before. EXEC creates the table only when
//! every check that can be made before has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cluster::{CallError, PartitionId, Table};
use commands::args::Argv;
use commands::plan::ClientCommand;
use commands::table::flags;
use commands::{Command, LocalCommand, Plan, Reply, ReplyBuilder, RowPlan};
use row::op::{Answer, Op, Request, Response, WatchToken};
use row::view::Fault;
use smallvec::{SmallVec, smallvec};

use crate::client::memory_usage::MemoryUse;
use crate::dispatch::{self, ResolvedCommand, eval_on_empty, reply_to};
use crate::router::{self, Batches, Outcome};
use crate::session::{Session, TableRef};
use crate::settings::ByteLimit;
use crate::{errors, generic, lookups, resp};

/// Estimated memory of a watched row besides its key.
const WATCHED_BYTES: usize = 256;
/// Larger replies that are known before EXEC are not kept, but made again.
const SMALL_REPLY_BYTES: usize = 1024;

/// The transaction of a connection: queued commands and watched rows.
#[derive(Default)]
pub(crate) struct Transaction {
    queue: Option<Vec<QueuedCommand>>,
    /// Memory of the queue.
    queued_bytes: usize,
    /// Memory of the queue when EXEC plans it: arguments count for more than their bytes,
    /// as those of any command.
    planned_bytes: usize,
    /// An error occurred while queueing, so EXEC will refuse (Redis: `DIRTY_EXEC`).
    is_dirty: bool,
    watched: Vec<Watch>,
    watched_bytes: usize,
}

/// A queued command. Its arguments are copied: slices would keep the whole read buffer
/// alive, and a plan may be much larger than its arguments.
struct QueuedCommand {
    resolved: ResolvedCommand,
    /// All arguments, concatenated, and the end of each.
    text: Bytes,
    ends: SmallVec<[usize; 3]>,
}

impl QueuedCommand {
    fn new(resolved: ResolvedCommand, argv: &Argv) -> QueuedCommand {
        let mut text = Vec::with_capacity(argv.iter().map(Bytes::len).sum());
        let end = |arg: &Bytes| {
            text.extend_from_slice(arg);
            text.len()
        };
        let ends = argv.iter().map(end).collect();
        QueuedCommand { resolved, text: text.into(), ends }
    }

    /// Memory of the queued command.
    fn bytes(&self) -> usize {
        let spilled =
            if self.ends.spilled() { self.ends.capacity() * size_of::<usize>() } else { 0 };
        size_of::<QueuedCommand>() + self.text.len() + spilled
    }

    fn argv(&self) -> Argv {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| self.text.slice(start..*end)).collect()
    }

    fn plan(&self, seed: u64) -> Plan {
        dispatch::plan_command(self.resolved.command, self.argv(), self.text.len(), seed)
            .unwrap_or_else(Plan::Reply)
    }
}

/// A watched row.
enum Watch {
    Row(PartitionId, WatchToken),
    /// In a table that did not exist at WATCH.
    NoTable(Arc<str>, Bytes),
}

impl Transaction {
    pub(crate) fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// `true` if a queued command may write.
    pub(crate) fn writes(&self) -> bool {
        self.queue.iter().flatten().any(|queued| queued.resolved.command.is(flags::WRITE))
    }

    /// MULTI.
    pub(crate) fn open(&mut self) -> Reply {
        if self.is_open() {
            return Reply::error("ERR MULTI calls can not be nested");
        }
        self.queue = Some(Vec::new());
        Reply::OK
    }

    /// DISCARD.
    pub(crate) fn discard(&mut self) -> Reply {
        if !self.is_open() {
            return Reply::error("ERR DISCARD without MULTI");
        }
        *self = Transaction::default();
        Reply::OK
    }

    /// UNWATCH.
    pub(crate) fn unwatch(&mut self) {
        (self.watched, self.watched_bytes) = (Vec::new(), 0);
    }

    /// A command was refused while queueing: nothing in the queue will be executed.
    pub(crate) fn mark_dirty(&mut self) {
        if let Some(queue) = &mut self.queue {
            (self.is_dirty, *queue) = (true, Vec::new());
            (self.queued_bytes, self.planned_bytes) = (0, 0);
        }
    }

    /// Queues a command, if the plans of the whole queue stay below `bytes_max`.
    pub(crate) fn queue(
        &mut self,
        resolved: ResolvedCommand,
        argv: &Argv,
        bytes_max: ByteLimit,
    ) -> Reply {
        let Some(queue) = &mut self.queue else { return commands::errors::no_answer() };
        if is_forbidden(resolved.command, argv) {
            self.mark_dirty();
            return Reply::error("ERR Command not allowed inside a transaction");
        }
        if self.is_dirty {
            return Reply::Status("QUEUED".into());
        }
        let planned_bytes = self.planned_bytes
            + argv.iter().map(|arg| arg.len() + resp::ARG_OVERHEAD_BYTES).sum::<usize>();
        if planned_bytes > bytes_max.bytes {
            self.mark_dirty();
            return Reply::error(format!("ERR transaction is larger than {bytes_max}"));
        }
        let queued = QueuedCommand::new(resolved, argv);
        self.planned_bytes = planned_bytes;
        self.queued_bytes += queued.bytes();
        queue.push(queued);
        Reply::Status("QUEUED".into())
    }

    /// Memory of queued commands and watched rows.
    pub(crate) fn bytes(&self) -> usize {
        let room = self
            .queue
            .as_ref()
            .map_or(0, |queue| (queue.capacity() - queue.len()) * size_of::<QueuedCommand>());
        self.queued_bytes + room + self.watched_bytes
    }

    /// For CLIENT LIST: commands queued, their bytes, rows watched.
    pub(crate) fn figures(&self) -> (Option<usize>, usize, usize) {
        (self.queue.as_ref().map(Vec::len), self.queued_bytes, self.watched.len())
    }
}

/// One command of a transaction in execution.
enum ExecStep {
    Ready(Reply),
    /// A large reply that needs no rows: it is made when its turn comes.
    Again(QueuedCommand),
    /// Waits for this many outcomes; the flag is set if they count as look-ups.
    Rows(ReplyBuilder, usize, bool),
    /// SELECT of this table.
    Select(Arc<str>),
    Local(LocalCommand),
}

/// One command of a transaction before its table is looked up.
enum ResolvedStep {
    Rows(Arc<str>, RowPlan),
    Other(ExecStep),
}

/// The request of a transaction while it is built.
#[derive(Default)]
struct TransactionRequest {
    /// The table that this transaction has created.
    made: Option<Arc<str>>,
    partition: Option<PartitionId>,
    ops: Vec<Op>,
}

impl Session {
    /// WATCH.
    pub(crate) async fn watch(&mut self, keys: Vec<Bytes>) -> Reply {
        if self.transaction.is_open() {
            return Reply::error("ERR WATCH inside MULTI is not allowed");
        }
        let bytes = self.transaction.watched_bytes
            + keys.iter().map(|key| key.len() + WATCHED_BYTES).sum::<usize>();
        let bytes_max = self.proxy.settings.load().query_max();
        if bytes > bytes_max.bytes {
            return Reply::error(format!(
                "ERR too many watched keys: they take more than {bytes_max}"
            ));
        }
        self.transaction.watched_bytes = bytes;
        let table = match self.find_table().await {
            Ok(Some(table)) => table,
            Ok(None) => {
                let name = &self.table_name;
                let copies = keys
                    .iter()
                    .map(|key| Watch::NoTable(name.clone(), Bytes::copy_from_slice(key)));
                self.transaction.watched.extend(copies);
                return Reply::OK;
            }
            Err(reply) => return reply,
        };
        let mut batches = Batches::default();
        let add = |key: Bytes| {
            // The key is kept; a slice would keep the whole read buffer alive.
            let key = Bytes::copy_from_slice(&key);
            let partition = router::partition_of(&table, &key);
            (partition, batches.add(partition, Op::Watch { key }, false))
        };
        let places: Vec<_> = keys.into_iter().map(add).collect();
        let deadline = self.deadline();
        batches.execute_small(&self.proxy, deadline).await;
        for (partition, line) in places {
            match batches.take(line) {
                Ok(Ok(Answer::WatchToken(watched))) => {
                    self.transaction.watched.push(Watch::Row(partition, watched))
                }
                Ok(Ok(_)) => return commands::errors::no_answer(),
                Ok(Err(refusal)) => return commands::errors::refusal(refusal),
                Err(error) => return errors::call_error(&error),
            }
        }
        Reply::OK
    }

    /// EXEC.
    pub(crate) async fn exec(&mut self) -> Reply {
        let Some(queue) = self.transaction.queue.take() else {
            return Reply::error("ERR EXEC without MULTI");
        };
        let transaction = std::mem::take(&mut self.transaction);
        if transaction.is_dirty {
            return Reply::error(errors::EXECABORT);
        }
        self.track_memory(
            MemoryUse::Transaction,
            transaction.queued_bytes + transaction.planned_bytes + transaction.watched_bytes,
        );
        let table_before = self.table_name.clone();
        // Monitors see the commands when they run.
        let is_shown = |queued: &QueuedCommand| {
            crate::monitor::is_shown(queued.resolved.command).then(|| queued.argv())
        };
        let shown = if self.proxy.monitors.is_active() {
            queue.iter().map(is_shown).collect()
        } else {
            Vec::new()
        };
        let request = self.build_request(queue, &transaction.watched).await;
        // The commands are executed from here on, including SELECT.
        self.use_table(table_before);
        let (steps, request) = match request {
            Ok(Some(request)) => request,
            Ok(None) => return Reply::NilArray,
            Err(reply) => return reply,
        };
        match self.send(request, transaction.watched).await {
            Ok(Some(outcomes)) => self.replies(steps, outcomes, shown).await,
            Ok(None) => Reply::NilArray,
            Err(reply) => reply,
        }
    }

    /// Collects the ops of the queue for one partition, and the replies' builders;
    /// `None`: a watched row was touched.
    async fn build_request(
        &mut self,
        queue: Vec<QueuedCommand>,
        watched: &[Watch],
    ) -> Result<Option<(Vec<ExecStep>, TransactionRequest)>, Reply> {
        let resolved_steps = self.resolve_steps(queue).await?;
        if self.is_made_since(watched).await? {
            return Ok(None);
        }
        let mut request = TransactionRequest::default();
        let missing = self.missing_of(tables_of(&resolved_steps)).await?;
        let missing_written_table = Self::missing_written_table(&resolved_steps, &missing)?;
        let is_sent = |table: &Arc<str>| {
            !missing.contains(table) || missing_written_table.as_ref() == Some(table)
        };
        let bytes_max = self.proxy.settings.load().write_max();
        if written_bytes(&resolved_steps, is_sent) > bytes_max.bytes + 64 * 1024 {
            return Err(Reply::error(format!("ERR transaction is larger than {bytes_max}")));
        }
        if let Some(table) = missing_written_table {
            if watched.iter().any(|watch| matches!(watch, Watch::Row(..))) {
                // The watched rows are in another table than this one, which did not
                // exist.
                return self.check_watched_elsewhere(watched).await.map(|()| None);
            }
            self.use_table(table.clone());
            if !fits(&router::finest_table(), &table, &resolved_steps, watched)
                && let Some(to_be) = self.table_to_be().await?
                && !fits(&to_be, &table, &resolved_steps, watched)
            {
                return Err(Reply::error(errors::CROSSSLOT));
            }
            self.ensure_table().await?;
            request.made = Some(table);
        }
        let mut steps = Vec::with_capacity(resolved_steps.len());
        for command in resolved_steps {
            self.yield_if_due().await;
            steps.push(match command {
                ResolvedStep::Rows(table, rows) => {
                    self.use_table(table);
                    self.add_rows(rows, &mut request).await?
                }
                ResolvedStep::Other(step) => step,
            });
        }
        Ok(Some((steps, request)))
    }

    /// `true` if a table that was missing at WATCH has been created since. It is unknown
    /// whether the watched row was written, and a needless retry is better than a wrong
    /// result.
    async fn is_made_since(&mut self, watched: &[Watch]) -> Result<bool, Reply> {
        let names = |watch: &Watch| {
            if let Watch::NoTable(name, _) = watch { Some(name.clone()) } else { None }
        };
        for name in watched.iter().filter_map(names).collect::<BTreeSet<_>>() {
            if self.find_named(&name).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Watched rows outside the partition of the transaction: they were touched if one of
    /// their tables was dropped; otherwise the transaction spans several partitions and
    /// is refused.
    async fn check_watched_elsewhere(&mut self, watched: &[Watch]) -> Result<(), Reply> {
        let tables =
            router::find_all(&self.proxy).await.map_err(|error| errors::catalogue_error(&error))?;
        let is_there = |watch: &Watch| match watch {
            Watch::Row(partition, _) => tables.iter().any(|table| table.id == partition.table),
            Watch::NoTable(..) => true,
        };
        if watched.iter().all(is_there) { Err(Reply::error(errors::CROSSSLOT)) } else { Ok(()) }
    }

    /// Plans each command and determines its table, the one selected last. The session
    /// returns to its own table until the commands run.
    async fn resolve_steps(
        &mut self,
        queue: Vec<QueuedCommand>,
    ) -> Result<Vec<ResolvedStep>, Reply> {
        let bytes_max = self.proxy.settings.load().answer_max();
        let mut bytes = 0;
        let mut resolved_steps = Vec::with_capacity(queue.len());
        for queued in queue {
            self.yield_if_due().await;
            let plan = match queued.plan(self.next_seed()) {
                Plan::Local(call) => as_rows(call),
                plan => plan,
            };
            resolved_steps.push(match plan {
                Plan::Rows(rows) => ResolvedStep::Rows(self.table_name.clone(), rows),
                Plan::Reply(reply) => {
                    let size = reply.bytes();
                    bytes += size;
                    if bytes > bytes_max.bytes {
                        return Err(Reply::error(format!(
                            "ERR the transaction's replies are larger than {bytes_max}, nothing \
                             was done"
                        )));
                    }
                    ResolvedStep::Other(if size > SMALL_REPLY_BYTES {
                        ExecStep::Again(queued)
                    } else {
                        ExecStep::Ready(reply)
                    })
                }
                Plan::Local(LocalCommand::Select(arg)) => {
                    ResolvedStep::Other(match self.resolve_table(&arg).await? {
                        TableRef::Table(name) => {
                            self.use_table(name.clone());
                            ExecStep::Select(name)
                        }
                        TableRef::Unknown(reply) => ExecStep::Ready(reply),
                    })
                }
                Plan::Local(call) => ResolvedStep::Other(ExecStep::Local(call)),
            });
        }
        Ok(resolved_steps)
    }

    /// The missing table that will be written. It is created before anything else: other
    /// clients may write between a read of the missing table and the write to the created
    /// one.
    ///
    /// # Errors
    /// CROSSSLOT when there are several such tables, or rows of other tables: each table
    /// has partitions of its own.
    fn missing_written_table(
        resolved_steps: &[ResolvedStep],
        missing: &BTreeSet<Arc<str>>,
    ) -> Result<Option<Arc<str>>, Reply> {
        let (mut written, mut is_another_there) = (BTreeSet::new(), false);
        for command in resolved_steps {
            let ResolvedStep::Rows(table, rows) = command else { continue };
            if !missing.contains(table) {
                is_another_there = true;
            } else if eval_on_empty(&rows.ops).map_err(fault)?.is_none() {
                written.insert(table.clone());
            }
        }
        if written.len() > 1 || is_another_there && !written.is_empty() {
            return Err(Reply::error(errors::CROSSSLOT));
        }
        Ok(written.pop_first())
    }

    /// The tables among these that do not exist.
    async fn missing_of(&mut self, names: BTreeSet<Arc<str>>) -> Result<BTreeSet<Arc<str>>, Reply> {
        let mut missing = BTreeSet::new();
        for name in names {
            self.use_table(name.clone());
            if self.find_table().await?.is_none() {
                missing.insert(name);
            }
        }
        Ok(missing)
    }

    async fn add_rows(
        &mut self,
        rows: RowPlan,
        request: &mut TransactionRequest,
    ) -> Result<ExecStep, Reply> {
        let table = match self.find_table().await? {
            Some(table) => table,
            None => match eval_on_empty(&rows.ops).map_err(fault)? {
                Some(outcomes) => {
                    if rows.ops.first().is_some_and(lookups::is_lookup) {
                        lookups::count(&self.proxy.stats, &outcomes);
                    }
                    return Ok(ExecStep::Ready(rows.builder.build(outcomes)));
                }
                // It was dropped since EXEC created it.
                None => return Err(errors::call_error(&CallError::NoTable)),
            },
        };
        for op in &rows.ops {
            let partition =
                only_partition(&table, &rows, op).ok_or(Reply::error(errors::CROSSSLOT))?;
            if request.partition.is_some_and(|other| other != partition) {
                return Err(Reply::error(errors::CROSSSLOT));
            }
            request.partition = Some(partition);
        }
        let step = ExecStep::Rows(
            rows.builder,
            rows.ops.len(),
            rows.ops.first().is_some_and(lookups::is_lookup),
        );
        request.ops.extend(rows.ops);
        Ok(step)
    }

    /// Sends the request with the watch tokens; `None`: a watched row was touched.
    async fn send(
        &mut self,
        request: TransactionRequest,
        watched: Vec<Watch>,
    ) -> Result<Option<Vec<Outcome>>, Reply> {
        let mut tokens = BTreeMap::<PartitionId, Vec<WatchToken>>::new();
        let mut made = None;
        if let Some(name) = &request.made {
            made = self.find_named(name).await?;
        }
        for watch in &watched {
            match (watch, &made) {
                (Watch::Row(partition, watched), _) => {
                    tokens.entry(*partition).or_default().push(watched.clone())
                }
                // Another client may have written to it since it was created.
                (Watch::NoTable(name, key), Some(table)) if request.made.as_ref() == Some(name) => {
                    tokens
                        .entry(router::partition_of(table, key))
                        .or_default()
                        .push(WatchToken::unwritten(key.clone()));
                }
                (Watch::NoTable(..), _) => {}
            }
        }
        let deadline = self.deadline();
        let Some(partition) = request.partition else {
            // No rows, but EXEC still checks the watched rows.
            for (partition, watched) in tokens {
                let request = Request { ops: Vec::new(), joined: Vec::new(), watched };
                match router::respond(&self.proxy, partition, &request, deadline).await {
                    // A row that was dropped with its table counts as touched.
                    Ok(Response::Touched) | Err(CallError::NoTable) => return Ok(None),
                    Ok(Response::Done(_)) => {}
                    Err(error) => return Err(errors::call_error(&error)),
                }
            }
            return Ok(Some(Vec::new()));
        };
        let tokens_here = tokens.remove(&partition).unwrap_or_default();
        if !tokens.is_empty() {
            return self.check_watched_elsewhere(&watched).await.map(|()| None);
        }
        self.proxy.stats.batch(request.ops.len());
        if request.ops.iter().any(Op::is_write) {
            self.written.note(partition);
        }
        let joined = (1..request.ops.len() as u32).collect();
        let request = Request { ops: request.ops, joined, watched: tokens_here };
        match router::respond(&self.proxy, partition, &request, deadline).await {
            Ok(Response::Done(outcomes)) => Ok(Some(outcomes)),
            Ok(Response::Touched) => Ok(None),
            Err(error) => Err(errors::call_error(&error)),
        }
    }

    /// The replies of all commands as one reply, with a limit: the commands are executed,
    /// but a client that asks for too much gets an error instead.
    async fn replies(
        &mut self,
        steps: Vec<ExecStep>,
        outcomes: Vec<Outcome>,
        shown: Vec<Option<Argv>>,
    ) -> Reply {
        let bytes_max = self.proxy.settings.load().answer_max();
        let mut bytes = 0;
        let (mut outcomes, mut shown) = (outcomes.into_iter(), shown.into_iter());
        let mut replies = Vec::with_capacity(steps.len());
        for step in steps {
            self.yield_if_due().await;
            let reply = match step {
                ExecStep::Ready(reply) => reply,
                ExecStep::Again(queued) => match queued.plan(self.next_seed()) {
                    Plan::Reply(reply) => reply,
                    _ => commands::errors::no_answer(),
                },
                ExecStep::Rows(builder, count, is_lookup) => {
                    let outcomes: Vec<_> = outcomes.by_ref().take(count).collect();
                    if is_lookup {
                        lookups::count(&self.proxy.stats, &outcomes);
                    }
                    reply_to(builder, outcomes).await
                }
                ExecStep::Select(name) => {
                    self.use_table(name);
                    Reply::OK
                }
                ExecStep::Local(LocalCommand::Client(ClientCommand::Reply(mode))) => {
                    self.follow(crate::client::Effect::Mode(mode));
                    Reply::OK
                }
                // Nothing blocks in a transaction, as in Redis: WAITAOF reports the
                // current state.
                ExecStep::Local(LocalCommand::WaitAof { .. }) => {
                    self.wait_for_disks(0, 0, Instant::now()).await
                }
                ExecStep::Local(LocalCommand::Monitor) => {
                    Reply::error("ERR MONITOR isn't allowed for DENY BLOCKING client")
                }
                ExecStep::Local(call) => self.call(call).await.unwrap_or(Reply::OK),
            };
            if let Some(argv) = shown.next().flatten() {
                self.show(&argv);
            }
            bytes += reply.bytes();
            if bytes <= bytes_max.bytes {
                replies.push(reply);
                self.track_memory(MemoryUse::Answers, bytes);
            } else {
                // The rest is executed all the same; its ops were part of the request.
                replies = Vec::new();
            }
        }
        if bytes > bytes_max.bytes {
            return Reply::error(format!(
                "ERR the transaction was executed, but its replies are larger than {bytes_max}"
            ));
        }
        Reply::Array(replies)
    }
}

/// The partition of an op, if there is exactly one.
fn only_partition(table: &Table, rows: &RowPlan, op: &Op) -> Option<PartitionId> {
    let names_no_key = rows.all_partitions || op.first_key().is_none();
    if names_no_key && table.partitions > 1 { None } else { router::partition_of_op(table, op) }
}

/// `true` if everything done and watched in the named table would lie in one partition of
/// a new table.
fn fits(new: &Table, name: &Arc<str>, resolved_steps: &[ResolvedStep], watched: &[Watch]) -> bool {
    let done = resolved_steps.iter().filter_map(|command| {
        if let ResolvedStep::Rows(table, rows) = command { Some((table, rows)) } else { None }
    });
    let done = done.filter(|(table, _)| *table == name);
    let mut places = done
        .flat_map(|(_, rows)| rows.ops.iter().map(|op| only_partition(new, rows, op)))
        .chain(watched.iter().filter_map(|watch| match watch {
            Watch::NoTable(table, key) if table == name => {
                Some(Some(router::partition_of(new, key)))
            }
            _ => None,
        }));
    let Some(first) = places.next() else { return true };
    first.is_some() && places.all(|place| place == first)
}

/// Bytes written by the commands on tables that count.
fn written_bytes(resolved_steps: &[ResolvedStep], counts: impl Fn(&Arc<str>) -> bool) -> usize {
    let ops = |command: &ResolvedStep| match command {
        ResolvedStep::Rows(table, rows) if counts(table) => {
            rows.ops.iter().filter(|op| op.is_write()).map(Op::bytes).sum()
        }
        _ => 0,
    };
    resolved_steps.iter().map(ops).sum()
}

/// The tables whose rows the commands use.
fn tables_of(resolved_steps: &[ResolvedStep]) -> BTreeSet<Arc<str>> {
    let table = |command: &ResolvedStep| {
        if let ResolvedStep::Rows(table, _) = command { Some(table.clone()) } else { None }
    };
    resolved_steps.iter().filter_map(table).collect()
}

fn fault(fault: Fault) -> Reply {
    errors::call_error(&CallError::Fault(fault.0))
}

/// Turns commands that normally take several calls into ops on the one partition of a
/// transaction.
fn as_rows(call: LocalCommand) -> Plan {
    let rows = |op, builder| {
        Plan::Rows(RowPlan {
            ops: smallvec![op],
            same_partition: true,
            all_partitions: true,
            builder,
        })
    };
    match call {
        LocalCommand::Keys { glob } => {
            let all = Op::Scan { cursor: 0, count: u64::MAX, glob: Some(glob), kind: None };
            rows(all, ReplyBuilder::One(generic::names))
        }
        LocalCommand::Scan { cursor, count, glob, kind, none: false } => {
            rows(Op::Scan { cursor, count, glob, kind }, ReplyBuilder::One(generic::page))
        }
        LocalCommand::RandomKey => rows(
            Op::FirstAtOrAfter { cursor: row::key::cursor(rand::random::<u64>() >> 2) },
            ReplyBuilder::One(generic::drawn),
        ),
        call => Plan::Local(call),
    }
}

/// Commands that would block, or do more than a transaction of one partition can. Decided
/// by name and arguments alone; EXEC reports all other errors.
fn is_forbidden(command: &Command, argv: &Argv) -> bool {
    match command.name {
        "move" | "flushall" => true,
        "copy" => argv.iter().skip(3).any(|arg| arg.eq_ignore_ascii_case(b"db")),
        _ => command.is(flags::NO_MULTI),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::CommandIndex;

    #[test]
    fn queued_commands_do_not_keep_the_read_buffer() {
        let chunk = Bytes::from(b"set k a value of some length".to_vec());
        let argv = Argv::from_vec(vec![chunk.slice(0..3), chunk.slice(4..5), chunk.slice(6..)]);
        let command = commands::find(b"set", None).expect("SET is in the table");
        let mut transaction = Transaction::default();
        transaction.open();
        let bytes_max = ByteLimit { bytes: 10_000, name: "limit", is_live: true };
        transaction.queue(
            ResolvedCommand { command, index: CommandIndex::of(command) },
            &argv,
            bytes_max,
        );
        drop(argv);
        assert!(chunk.try_into_mut().is_ok(), "nobody else has a part of it");
        let queued = &transaction.queue.as_ref().expect("open")[0];
        assert_eq!(queued.argv().into_vec(), ["set", "k", "a value of some length"]);
    }

    #[test]
    fn queued_command_takes_little_more_than_its_arguments() {
        let argv =
            Argv::from_vec(vec![Bytes::from_static(b"COMMAND"), Bytes::from_static(b"DOCS")]);
        let command =
            commands::find(b"command", Some(b"docs")).expect("COMMAND DOCS is in the table");
        assert!(QueuedCommand::new(ResolvedCommand { command, index: None }, &argv).bytes() < 200);
    }
}
