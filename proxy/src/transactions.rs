//! MULTI, EXEC, DISCARD, WATCH, UNWATCH.
//!
//! Commands are planned while they are queued and carried out by EXEC. All their ops go into one request to one partition, so they are
//! atomic and isolated; rows of several partitions are refused as a whole. Watched rows travel with the request as tokens that the
//! partition's executor made ([`row::op::Watched`]), so nothing is watched between WATCH and EXEC, and no server keeps a list.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cluster::{PartitionId, Table};
use commands::plan::ClientCall;
use commands::table::flags;
use commands::{Plan, Planned, Reply, Rows, Session as Call, Wording};
use row::op::{Answer, Op, Request, Response, Watched};
use smallvec::smallvec;

use crate::dispatch::{Known, Queued, on_nothing};
use crate::router::{self, Batches, Outcome};
use crate::session::Session;
use crate::{keys, words};

/// What a queued command takes beyond its words, about.
const QUEUED_BYTES: usize = 256;

/// A connection's transaction: what is queued, what is watched.
#[derive(Default)]
pub(crate) struct Transaction {
    queue: Option<Vec<Queued>>,
    queued_bytes: usize,
    /// An error while queueing: EXEC will refuse.
    spoilt: bool,
    watched: Vec<Watch>,
}

/// A watched row.
enum Watch {
    Row(PartitionId, Watched),
    /// In a table that did not exist then.
    NoTable(Arc<str>),
}

impl Transaction {
    pub(crate) fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// A queued command may write.
    pub(crate) fn writes(&self) -> bool {
        self.queue.iter().flatten().any(|(known, _)| known.command.is(flags::WRITE))
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
        self.watched.clear();
    }

    /// Something was refused while queueing.
    pub(crate) fn spoil(&mut self) {
        self.spoilt |= self.is_open();
    }

    /// Queues a command of so many bytes.
    pub(crate) fn queue(&mut self, known: Known, planned: Planned, bytes: usize, bytes_max: usize) -> Reply {
        let Some(queue) = &mut self.queue else { return commands::words::no_answer() };
        self.queued_bytes += bytes + QUEUED_BYTES;
        if self.queued_bytes > bytes_max {
            self.spoilt = true;
            queue.clear();
            return Reply::error("ERR transaction is larger than client-query-buffer-limit");
        }
        queue.push((known, planned));
        Reply::Status("QUEUED".into())
    }

    /// For CLIENT LIST: commands queued, their bytes, rows watched.
    pub(crate) fn figures(&self) -> (Option<usize>, usize, usize) {
        (self.queue.as_ref().map(Vec::len), self.queued_bytes, self.watched.len())
    }
}

/// One command of a transaction that is being carried out.
enum Step {
    Ready(Reply),
    /// Waits for so many outcomes.
    Rows(Wording, usize),
    Call(Call),
}

/// The one request of a transaction while it is being put together.
#[derive(Default)]
struct Gathered {
    partition: Option<PartitionId>,
    ops: Vec<Op>,
    bytes: usize,
}

impl Session {
    /// WATCH.
    pub(crate) async fn watch(&mut self, keys: Vec<Bytes>) -> Reply {
        if self.transaction.is_open() {
            return Reply::error("ERR WATCH inside MULTI is not allowed");
        }
        let watched_max = self.proxy.settings.load().query_bytes_max / QUEUED_BYTES;
        if self.transaction.watched.len() + keys.len() > watched_max {
            return Reply::error("ERR too many watched keys");
        }
        let Some(table) = self.table().cloned() else {
            let name = self.table_name.clone();
            self.transaction.watched.push(Watch::NoTable(name));
            return Reply::OK;
        };
        let mut batches = Batches::default();
        let add = |key: Bytes| {
            let partition = router::partition_of(&table, &key);
            (partition, batches.add(partition, Op::Watch { key }, false))
        };
        let places: Vec<_> = keys.into_iter().map(add).collect();
        let deadline = self.deadline();
        batches.carry_out(&self.proxy, deadline).await;
        for (partition, line) in places {
            match batches.take(line) {
                Ok(Ok(Answer::Watched(watched))) => self.transaction.watched.push(Watch::Row(partition, watched)),
                Ok(Ok(_)) => return commands::words::no_answer(),
                Ok(Err(refusal)) => return commands::words::refusal(refusal),
                Err(error) => return words::call_error(&error),
            }
        }
        Reply::OK
    }

    /// EXEC.
    pub(crate) async fn exec(&mut self) -> Reply {
        let transaction = std::mem::take(&mut self.transaction);
        let Some(queue) = transaction.queue else {
            self.transaction.watched = transaction.watched;
            return Reply::error("ERR EXEC without MULTI");
        };
        if transaction.spoilt {
            return Reply::error(words::EXECABORT);
        }
        let table_before = self.table_name.clone();
        let gathered = self.gather(queue).await;
        // The commands are carried out from here on, SELECT included.
        self.use_table(table_before);
        let (steps, gathered) = match gathered {
            Ok(gathered) => gathered,
            Err(reply) => return reply,
        };
        match self.send(gathered, transaction.watched).await {
            Ok(Some(outcomes)) => self.replies(steps, outcomes).await,
            Ok(None) => Reply::NilArray,
            Err(reply) => reply,
        }
    }

    /// All ops of the queue for one partition, and how each command is answered.
    async fn gather(&mut self, queue: Vec<Queued>) -> Result<(Vec<Step>, Gathered), Reply> {
        let mut gathered = Gathered::default();
        let mut steps = Vec::with_capacity(queue.len());
        for (_, planned) in queue {
            let step = match planned {
                Err(reply) | Ok(Plan::Reply(reply)) => Step::Ready(reply),
                Ok(Plan::Rows(rows)) => self.gather_rows(rows, &mut gathered).await?,
                Ok(Plan::Session(call)) => match as_rows(call) {
                    Plan::Rows(rows) => self.gather_rows(rows, &mut gathered).await?,
                    Plan::Reply(reply) => Step::Ready(reply),
                    Plan::Session(Call::Select(word)) => {
                        // Later commands mean this table. The session goes back to its own until the commands run.
                        self.select(&word);
                        Step::Call(Call::Select(word))
                    }
                    Plan::Session(call) => Step::Call(call),
                },
            };
            steps.push(step);
        }
        let bytes_max = self.proxy.settings.load().write_bytes_max;
        if gathered.bytes > bytes_max + 64 * 1024 {
            return Err(Reply::error(format!("ERR transaction is larger than max_write_size ({bytes_max} bytes)")));
        }
        Ok((steps, gathered))
    }

    async fn gather_rows(&mut self, rows: Rows, gathered: &mut Gathered) -> Result<Step, Reply> {
        let table = match self.table().cloned() {
            Some(table) => table,
            None => match on_nothing(&rows.ops) {
                Ok(Some(outcomes)) => return Ok(Step::Ready(rows.wording.reply(outcomes))),
                Ok(None) => self.ensure_table().await?,
                Err(fault) => return Err(words::call_error(&cluster::CallError::Fault(fault.0))),
            },
        };
        for op in &rows.ops {
            let partition = self.only_partition(&table, &rows, op).ok_or(Reply::error(words::CROSSSLOT))?;
            if gathered.partition.is_some_and(|other| other != partition) {
                return Err(Reply::error(words::CROSSSLOT));
            }
            gathered.partition = Some(partition);
            gathered.bytes += if op.is_write() { op.bytes() } else { 0 };
        }
        let step = Step::Rows(rows.wording, rows.ops.len());
        gathered.ops.extend(rows.ops);
        Ok(step)
    }

    /// The partition of an op, if it is one.
    fn only_partition(&self, table: &Table, rows: &Rows, op: &Op) -> Option<PartitionId> {
        let names_no_key = rows.everywhere || op.first_key().is_none();
        if names_no_key && table.partitions > 1 { None } else { router::partition_of_op(table, op) }
    }

    /// Sends the request with what is watched; `None`: something watched was touched.
    async fn send(&mut self, gathered: Gathered, watched: Vec<Watch>) -> Result<Option<Vec<Outcome>>, Reply> {
        let mut tokens = BTreeMap::<PartitionId, Vec<Watched>>::new();
        for watch in watched {
            match watch {
                Watch::Row(partition, watched) => tokens.entry(partition).or_default().push(watched),
                // Somebody has written to the table since. Whether to that very row is not known: better tried again than wrong.
                Watch::NoTable(name) if self.proxy.catalogue.table(&name).is_some() => return Ok(None),
                Watch::NoTable(_) => {}
            }
        }
        let deadline = self.deadline();
        let Some(partition) = gathered.partition else {
            // Nothing to do with rows, but EXEC still tells whether they were touched.
            for (partition, watched) in tokens {
                let request = Request { ops: Vec::new(), watched };
                let response = router::respond(&self.proxy, partition, request, deadline).await;
                if response.map_err(|error| words::call_error(&error))? == Response::Touched {
                    return Ok(None);
                }
            }
            return Ok(Some(Vec::new()));
        };
        let watched = tokens.remove(&partition).unwrap_or_default();
        if !tokens.is_empty() {
            return Err(Reply::error(words::CROSSSLOT));
        }
        self.proxy.stats.batch(gathered.ops.len());
        let request = Request { ops: gathered.ops, watched };
        match router::respond(&self.proxy, partition, request, deadline).await {
            Ok(Response::Done(outcomes)) => Ok(Some(outcomes)),
            Ok(Response::Touched) => Ok(None),
            Err(error) => Err(words::call_error(&error)),
        }
    }

    async fn replies(&mut self, steps: Vec<Step>, outcomes: Vec<Outcome>) -> Reply {
        let mut outcomes = outcomes.into_iter();
        let mut replies = Vec::with_capacity(steps.len());
        for step in steps {
            replies.push(match step {
                Step::Ready(reply) => reply,
                Step::Rows(wording, count) => wording.reply(outcomes.by_ref().take(count).collect::<Vec<_>>()),
                Step::Call(Call::Client(ClientCall::Reply(mode))) => {
                    self.follow(crate::client::Effect::Mode(mode));
                    Reply::OK
                }
                Step::Call(Call::Monitor) => Reply::error("ERR MONITOR isn't allowed for DENY BLOCKING client"),
                Step::Call(call) if is_barred(&call) => Reply::error("ERR Command not allowed inside a transaction"),
                Step::Call(call) => self.call(call).await.unwrap_or(Reply::OK),
            });
        }
        Reply::Array(replies)
    }
}

/// Commands that take several calls as a rule, as ops of the one partition that a transaction has.
fn as_rows(call: Call) -> Plan {
    let rows = |op, wording| Plan::Rows(Rows { ops: smallvec![op], together: true, everywhere: true, wording });
    match call {
        Call::Keys { glob } => {
            let all = Op::Scan { cursor: 0, count: u64::MAX, glob: Some(glob), kind: None };
            rows(all, Wording::One(keys::names))
        }
        Call::Scan { cursor, count, glob, kind, none: false } => rows(Op::Scan { cursor, count, glob, kind }, Wording::One(keys::page)),
        Call::RandomKey => rows(Op::Nearest { cursor: rand::random::<u64>() >> 2 }, Wording::One(commands::answers::bulk)),
        call => Plan::Session(call),
    }
}

/// What would have to wait for others, or does what a transaction of one partition cannot.
fn is_barred(call: &Call) -> bool {
    matches!(call, Call::Shutdown { .. } | Call::Move { .. } | Call::CopyTo { .. } | Call::FlushAll)
}
