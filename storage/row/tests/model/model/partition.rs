//! Ops on the rows of a partition.

use row::PartitionOp;
use row::op::Answer;

use super::{Expected, Model};

impl Model {
    pub(super) fn partition(&mut self, op: &PartitionOp) -> Expected {
        Ok(match op {
            PartitionOp::Clear => {
                self.rows.clear();
                Answer::Ok
            }
            PartitionOp::Scan { .. }
            | PartitionOp::FirstAtOrAfter { .. }
            | PartitionOp::Rows
            | PartitionOp::Expiring
            | PartitionOp::ExpireDue { .. }
            | PartitionOp::SetDefaultTtl { .. }
            | PartitionOp::AdvanceClock { .. }
            | PartitionOp::Sync => panic!("not drawn, or not of the model: {op:?}"),
        })
    }
}
