//! The request of a transaction: EXEC plans the queued commands, and finds the one
//! partition that they all lie in.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use cluster::{CallError, PartitionId, Table};
use commands::rounds::InTransaction;
use commands::{LocalCommand, Plan, Reply, ReplyBuilder, RowPlan};
use row::op::Op;

use super::queue::{QueuedCommand, Watch, not_in_transactions};
use crate::execute::plan_command;
use crate::missing_table::eval_on_empty;
use crate::router::{self, Outcome};
use crate::session::{Session, TableRef};
use crate::{errors, lookups};

/// Larger replies that are known before EXEC are not kept, but made again.
const SMALL_REPLY_BYTES: usize = 1024;

/// One command of a transaction in execution.
pub(super) enum ExecStep {
    Ready(Reply),
    /// The outcomes of its ops are known without executing them.
    Answered(ReplyBuilder, Vec<Outcome>),
    /// A large reply that needs no rows: it is made when its turn comes.
    Again(QueuedCommand),
    /// Waits for this many outcomes; the flag is set if they count as look-ups.
    Rows(ReplyBuilder, usize, bool),
    /// SELECT of this table.
    Select(Arc<str>),
    Local(LocalCommand),
}

/// The plan of a command in a transaction, where there is one round.
pub(super) enum QueuedPlan {
    Rows(RowPlan),
    Reply(Reply),
    Select(Bytes),
    Local(LocalCommand),
}

/// One command of a transaction before its table is looked up.
enum ResolvedStep {
    Rows(Arc<str>, RowPlan),
    Other(ExecStep),
}

/// The request of a transaction while it is built.
#[derive(Default)]
pub(super) struct TransactionRequest {
    /// The table that this transaction has created.
    pub(super) made: Option<Arc<str>>,
    pub(super) partition: Option<PartitionId>,
    pub(super) ops: Vec<Op>,
}

impl Session {
    /// Collects the ops of the queue for one partition, and the replies' builders;
    /// `None`: a watched row was touched.
    pub(super) async fn build_request(
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
    pub(super) async fn check_watched_elsewhere(&mut self, watched: &[Watch]) -> Result<(), Reply> {
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
            resolved_steps.push(match plan_queued(&queued, self.next_seed()) {
                QueuedPlan::Rows(rows) => ResolvedStep::Rows(self.table_name.clone(), rows),
                QueuedPlan::Reply(reply) => {
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
                QueuedPlan::Select(arg) => {
                    ResolvedStep::Other(match self.resolve_table(&arg).await? {
                        TableRef::Table(name) => {
                            self.use_table(name.clone());
                            ExecStep::Select(name)
                        }
                        TableRef::Unknown(reply) => ExecStep::Ready(reply),
                    })
                }
                QueuedPlan::Local(command) => ResolvedStep::Other(ExecStep::Local(command)),
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
            } else if eval_on_empty(&rows.ops).map_err(errors::op_fault)?.is_none() {
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
            None => match eval_on_empty(&rows.ops).map_err(errors::op_fault)? {
                Some(outcomes) => {
                    if rows.is_lookup {
                        lookups::count(&self.proxy.stats, &outcomes);
                    }
                    return Ok(ExecStep::Answered(rows.builder, outcomes));
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
        let step = ExecStep::Rows(rows.builder, rows.ops.len(), rows.is_lookup);
        request.ops.extend(rows.ops);
        Ok(step)
    }
}

/// The plan of a queued command. An error is its reply.
pub(super) fn plan_queued(queued: &QueuedCommand, seed: u64) -> QueuedPlan {
    match plan_command(queued.resolved.command, queued.argv(), queued.text.len(), seed) {
        Ok(Plan::Rows(rows)) => QueuedPlan::Rows(rows),
        Ok(Plan::Local(command)) => QueuedPlan::Local(command),
        Ok(Plan::Select(arg)) => QueuedPlan::Select(arg),
        // EXEC is never queued.
        Ok(Plan::Exec) => QueuedPlan::Reply(Reply::error("ERR EXEC without MULTI")),
        Ok(Plan::Reply(reply)) | Err(reply) => QueuedPlan::Reply(reply),
        Ok(Plan::Rounds(machine)) => match machine.in_transaction() {
            InTransaction::Rows(rows) => QueuedPlan::Rows(rows),
            InTransaction::Reply(reply) => QueuedPlan::Reply(reply),
            InTransaction::Refused => QueuedPlan::Reply(not_in_transactions()),
        },
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
