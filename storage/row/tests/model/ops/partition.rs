//! Ops on the rows of a partition.

use proptest::prelude::*;
use row::PartitionOp;

pub(super) fn op() -> impl Strategy<Value = PartitionOp> {
    prop_oneof![
        // What is due is found as it is done.
        4 => Just(PartitionOp::ExpireDue { items: Vec::new() }),
        1 => Just(PartitionOp::Clear),
    ]
}
