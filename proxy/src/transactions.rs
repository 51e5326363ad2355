//! MULTI, EXEC, DISCARD, WATCH, UNWATCH.
//!
//! The words of a command are kept while it is queued, as copies of their own; EXEC plans
//! and carries out. All ops go into one request to one partition, so they are atomic and
//! isolated; rows of several partitions are refused as a whole. Watched rows travel with
//! the request as tokens that the partition's executor made ([`row::op::WatchToken`]), so
//! nothing is watched between WATCH and EXEC, and no server keeps a list.
//!
//! A table that is missing is watched by its name: it is as it was while there is none,
//! or none before EXEC makes it, in which nothing has been written yet. What EXEC does
//! not find because its table is missing it reads as empty, unless EXEC makes the table
//! itself: that comes first, so that nothing is read of before it. It is only made when
//! nothing speaks against EXEC any more that could be known before.

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

/// What a watched row takes beyond its key, about.
const WATCHED_BYTES: usize = 256;
/// Larger replies that are known before EXEC are not kept meanwhile, but made again.
const SMALL_REPLY_BYTES: usize = 1024;

/// A connection's transaction: what is queued, what is watched.
#[derive(Default)]
pub(crate) struct Transaction {
    queue: Option<Vec<QueuedCommand>>,
    /// What the queue takes.
    queued_bytes: usize,
    /// What it will take when EXEC plans it: the words of a command count for more than
    /// their bytes, as those of any other.
    planned_bytes: usize,
    /// An error while queueing: EXEC will refuse.
    is_dirty: bool,
    watched: Vec<Watch>,
    watched_bytes: usize,
}

/// A command that is queued. Its words are copied: slices would keep the whole read
/// buffer alive, and a plan may be much larger than they are.
struct QueuedCommand {
    resolved: ResolvedCommand,
    /// All words, one behind the other, and where each ends.
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

    /// What it takes while it is kept.
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
    /// In a table that did not exist then.
    NoTable(Arc<str>, Bytes),
}

impl Transaction {
    pub(crate) fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// A queued command may write.
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

    /// Something was refused while queueing: nothing of the queue will be carried out.
    pub(crate) fn mark_dirty(&mut self) {
        if let Some(queue) = &mut self.queue {
            (self.is_dirty, *queue) = (true, Vec::new());
            (self.queued_bytes, self.planned_bytes) = (0, 0);
        }
    }

    /// Queues a command, if what EXEC makes of the whole queue stays below `bytes_max`.
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

    /// What is kept of it: commands that are queued, and rows that are watched.
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

/// One command of a transaction that is being carried out.
enum ExecStep {
    Ready(Reply),
    /// A large reply that needs nobody: it is made when it is its turn.
    Again(QueuedCommand),
    /// Waits for so many outcomes, which count as looking keys up or not.
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

/// The one request of a transaction while it is being put together.
#[derive(Default)]
struct TransactionRequest {
    /// The table that this transaction has made.
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
            // It stays; a slice would keep the whole read buffer alive.
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
        // Monitors are shown them when they run.
        let is_shown = |queued: &QueuedCommand| {
            crate::monitor::is_shown(queued.resolved.command).then(|| queued.argv())
        };
        let shown = if self.proxy.monitors.is_active() {
            queue.iter().map(is_shown).collect()
        } else {
            Vec::new()
        };
        let request = self.build_request(queue, &transaction.watched).await;
        // The commands are carried out from here on, SELECT included.
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

    /// All ops of the queue for one partition, and how each command is answered; `None`:
    /// something watched was touched.
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
                // They are in another table than this one, which was not there.
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

    /// Whether a table that was missing when it was watched has been made since. Whether
    /// that very row was written is not known: better tried again than wrong.
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

    /// What it means that rows are watched that are not where the transaction is carried
    /// out: they have been touched if one of their tables was dropped, and else the
    /// transaction is one of several partitions, which is refused.
    async fn check_watched_elsewhere(&mut self, watched: &[Watch]) -> Result<(), Reply> {
        let tables =
            router::find_all(&self.proxy).await.map_err(|error| errors::catalogue_error(&error))?;
        let is_there = |watch: &Watch| match watch {
            Watch::Row(partition, _) => tables.iter().any(|table| table.id == partition.table),
            Watch::NoTable(..) => true,
        };
        if watched.iter().all(is_there) { Err(Reply::error(errors::CROSSSLOT)) } else { Ok(()) }
    }

    /// What each command means, and of which table: the one that was selected last. The
    /// session goes back to its own until the commands run.
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

    /// The table that is missing and will be written to. It is made before anything else:
    /// between what is read of a table as long as there is none and what is then written
    /// to it, others may write as well.
    ///
    /// # Errors
    /// CROSSSLOT when there are several, or rows of others: each has partitions of its
    /// own.
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

    /// Which of these tables are not there.
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
                // It was dropped since it was made.
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

    /// Sends the request with what is watched; `None`: something watched was touched.
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
                // Somebody else may have written to it since it was made.
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
            // Nothing to do with rows, but EXEC still tells whether they were touched.
            for (partition, watched) in tokens {
                let request = Request { ops: Vec::new(), joined: Vec::new(), watched };
                match router::respond(&self.proxy, partition, &request, deadline).await {
                    // A row that was dropped with its table was touched.
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

    /// The replies of all commands, as one, with a bound: what is done is done, but a
    /// client that asks for too much is told so instead.
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
                // In a transaction nobody waits, as in Redis: it tells what is so.
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
                // The rest is carried out all the same, as is all of it that is rows.
                replies = Vec::new();
            }
        }
        if bytes > bytes_max.bytes {
            return Reply::error(format!(
                "ERR the transaction was carried out, but its replies are larger than {bytes_max}"
            ));
        }
        Reply::Array(replies)
    }
}

/// The partition of an op, if it is one.
fn only_partition(table: &Table, rows: &RowPlan, op: &Op) -> Option<PartitionId> {
    let names_no_key = rows.all_partitions || op.first_key().is_none();
    if names_no_key && table.partitions > 1 { None } else { router::partition_of_op(table, op) }
}

/// Whether all that is done in the table of a name, and watched in it, would lie in one
/// partition of a new one.
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

/// What commands write, bytes, of those on tables that count.
fn written_bytes(resolved_steps: &[ResolvedStep], counts: impl Fn(&Arc<str>) -> bool) -> usize {
    let ops = |command: &ResolvedStep| match command {
        ResolvedStep::Rows(table, rows) if counts(table) => {
            rows.ops.iter().filter(|op| op.is_write()).map(Op::bytes).sum()
        }
        _ => 0,
    };
    resolved_steps.iter().map(ops).sum()
}

/// The tables whose rows commands are about.
fn tables_of(resolved_steps: &[ResolvedStep]) -> BTreeSet<Arc<str>> {
    let table = |command: &ResolvedStep| {
        if let ResolvedStep::Rows(table, _) = command { Some(table.clone()) } else { None }
    };
    resolved_steps.iter().filter_map(table).collect()
}

fn fault(fault: Fault) -> Reply {
    errors::call_error(&CallError::Fault(fault.0))
}

/// Commands that take several calls as a rule, as ops of the one partition that a
/// transaction has.
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

/// Commands that would have to wait for others, or do what a transaction of one partition
/// cannot. By their names and words alone, as what is wrong with them otherwise is told
/// by EXEC.
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
