//! The partitions that a connection has written to.

use std::collections::BTreeSet;

use cluster::PartitionId;

/// The partitions that a connection has written to since its last successful WAITAOF.
#[derive(Debug, Default)]
pub(crate) struct WrittenPartitions {
    pub(super) partitions: BTreeSet<PartitionId>,
    /// Fast path, as most connections write to one partition repeatedly.
    last: Option<PartitionId>,
}

impl WrittenPartitions {
    /// Records a request that may write.
    pub(crate) fn note(&mut self, partition: PartitionId) {
        if self.last != Some(partition) {
            self.partitions.insert(partition);
            self.last = Some(partition);
        }
    }

    /// All writes so far are where WAITAOF wants them.
    pub(crate) fn clear(&mut self) {
        *self = WrittenPartitions::default();
    }
}
