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

pub(crate) mod queue;
mod request;

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::{Boxed, CallError, PartitionId};
use commands::args::Argv;
use commands::transactions::TransactionCommand;
use commands::{Command, Reply, ReplyWriter};
use row::RowOp;
use row::op::{Answer, Op, Request, Response, WatchToken};

use crate::client::memory_usage::MemoryUse;
use crate::execute::ReplySource;
use crate::local::LocalReply;
use crate::resp::Encoder;
use crate::router::{self, Batches, Outcome};
use crate::session::Session;
use crate::{errors, lookups};
use queue::{QueuedCommand, Watch};
use request::{ExecStep, QueuedPlan, TransactionRequest, plan_queued};

/// Estimated memory of a watched row besides its key.
const WATCHED_BYTES: usize = 256;

impl Session {
    /// Runs a command about transactions.
    pub(crate) async fn run_transaction(&mut self, command: TransactionCommand) -> Reply {
        match command {
            TransactionCommand::Multi => self.transaction.open(),
            TransactionCommand::Discard => self.transaction.discard(),
            TransactionCommand::Watch { keys } => {
                let watched: Boxed<'_, Reply> = Box::pin(self.watch(keys));
                watched.await
            }
            TransactionCommand::Unwatch => {
                self.transaction.unwatch();
                Reply::OK
            }
        }
    }

    /// WATCH.
    async fn watch(&mut self, keys: Vec<Bytes>) -> Reply {
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
            (partition, batches.add(partition, Op::Row(RowOp::Watch { key: key.into() }), false))
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
    pub(crate) async fn exec(&mut self, reply: &mut Encoder<'_>) {
        if let Err(error) = self.try_exec(reply).await {
            error.write(reply);
        }
    }

    async fn try_exec(&mut self, reply: &mut Encoder<'_>) -> Result<(), Reply> {
        let Some(queue) = self.transaction.queue.take() else {
            return Err(Reply::error("ERR EXEC without MULTI"));
        };
        let transaction = std::mem::take(&mut self.transaction);
        if transaction.is_dirty {
            return Err(Reply::error(errors::EXECABORT));
        }
        self.track_memory(
            MemoryUse::Transaction,
            transaction.queued_bytes + transaction.planned_bytes + transaction.watched_bytes,
        );
        let table_before = self.table_name.clone();
        // Monitors see the commands when they run.
        let is_shown = |queued: &QueuedCommand| {
            let command = queued.resolved.command;
            crate::monitor::is_shown(command).then(|| (command, queued.argv()))
        };
        let shown = if self.proxy.monitors.is_active() {
            queue.iter().map(is_shown).collect()
        } else {
            Vec::new()
        };
        let request = self.build_request(queue, &transaction.watched).await;
        // The commands are executed from here on, including SELECT.
        self.use_table(table_before);
        let Some((steps, request)) = request? else {
            reply.nil_array();
            return Ok(());
        };
        match self.send(request, transaction.watched).await? {
            Some(outcomes) => self.write_replies(steps, outcomes, shown, reply).await,
            None => reply.nil_array(),
        }
        Ok(())
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

    /// Writes the replies of all commands as one reply, with a limit: the commands are
    /// executed, but a client that asks for too much gets an error instead.
    async fn write_replies(
        &mut self,
        steps: Vec<ExecStep>,
        outcomes: Vec<Outcome>,
        shown: Vec<Option<(&Command, Argv)>>,
        reply: &mut Encoder<'_>,
    ) {
        let (mut outcomes, mut shown) = (outcomes.into_iter(), shown.into_iter());
        reply.array(steps.len());
        for step in steps {
            self.yield_if_due().await;
            let source = match step {
                ExecStep::Ready(made) => ReplySource::Reply(made),
                ExecStep::Answered(builder, outcomes) => ReplySource::Several(builder, outcomes),
                ExecStep::Again(queued) => match plan_queued(&queued, self.next_seed()) {
                    QueuedPlan::Reply(made) => ReplySource::Reply(made),
                    QueuedPlan::Rows(_) | QueuedPlan::Select(_) | QueuedPlan::Local(_) => {
                        ReplySource::Reply(commands::errors::no_answer())
                    }
                },
                ExecStep::Rows(builder, count, is_lookup) => {
                    let outcomes: Vec<_> = outcomes.by_ref().take(count).collect();
                    if is_lookup {
                        lookups::count(&self.proxy.stats, &outcomes);
                    }
                    ReplySource::Several(builder, outcomes)
                }
                ExecStep::Select(name) => {
                    self.use_table(name);
                    ReplySource::Reply(Reply::OK)
                }
                ExecStep::Local(command) => {
                    let made = match self.run_local(command, false).await {
                        LocalReply::Sent(made) | LocalReply::Suppressed(made) => made,
                        LocalReply::None => Reply::OK,
                    };
                    // HELLO and RESET change it.
                    reply.speak(self.protocol);
                    ReplySource::Reply(made)
                }
            };
            let work_ns = source.work_ns();
            source.write(work_ns, reply).await;
            self.executed(shown.next().flatten(), reply);
        }
        if reply.is_too_large() {
            // All was executed all the same; its ops were part of the request.
            let bytes_max = self.proxy.settings.load().answer_max();
            reply.replace(&Reply::error(format!(
                "ERR the transaction was executed, but its replies are larger than {bytes_max}"
            )));
        }
    }

    /// A command of a transaction has been executed.
    fn executed(&mut self, shown: Option<(&Command, Argv)>, reply: &Encoder<'_>) {
        if let Some((command, argv)) = shown {
            self.show(command, &argv);
        }
        if !reply.is_too_large() {
            self.track_memory(MemoryUse::Answers, reply.bytes());
        }
    }
}
