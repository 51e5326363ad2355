//! Ops on a table that does not exist: reads find nothing, and the first op that writes
//! creates it.

use bytes::Bytes;
use cluster::Table;
use commands::{Reply, RowPlan};
use row::edits::Edits;
use row::op::{Answer, Op};
use row::view::{Fault, Rules, Stamp, Tx};
use row::{EvalError, Family, PartitionOp, View};

use crate::pipeline::chunk::NextStep;
use crate::resp::CommandSpan;
use crate::router::{self, Outcome};
use crate::session::Session;
use crate::stats::ResolvedCommand;
use crate::{errors, lookups};

impl Session {
    /// Ops on a table that this proxy does not know. If the table does not exist, reads
    /// find nothing, and only an op that writes creates it.
    pub(crate) async fn without_table(
        &mut self,
        rows: RowPlan,
        resolved: ResolvedCommand,
        span: CommandSpan,
    ) -> NextStep {
        let found = match eval_on_empty(&rows.ops) {
            Ok(Some(outcomes)) => match self.find_table().await {
                Ok(None) => {
                    if rows.is_lookup {
                        lookups::count(&self.proxy.stats, &outcomes);
                    }
                    return self.answered(resolved, span, rows.builder, outcomes);
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
            Err(fault) => Err(errors::op_fault(fault)),
        };
        match found {
            Ok(()) => self.route_on_table(rows, resolved, span),
            Err(reply) => self.reject(Some(resolved), span, reply),
        }
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
        if matches!(op, Op::Partition(PartitionOp::Clear)) {
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
