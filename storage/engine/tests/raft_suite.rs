//! openraft's own suite for storage, over the real log and the real state machine.
#![allow(clippy::unwrap_used)]

use engine::log::{Durability, Log, LogOptions};
use engine::raft::log_store::GroupLog;
use engine::raft::machine::Machine;
use engine::raft::types::Types;
use engine::store::{Settings, Shared, Store};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

struct Builder {
    tail_bytes_max: u64,
    durability: Durability,
}

impl StoreBuilder<Types, GroupLog, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupLog, Machine), StorageError<Types>> {
        let directory = tempfile::tempdir().unwrap();
        let options = LogOptions {
            segment_bytes: 4096,
            tail_bytes_max: self.tail_bytes_max,
            durability: self.durability,
            ..LogOptions::new(directory.path().join("log"))
        };
        let log = Log::open(options).unwrap();
        let store = Store::open(&Shared::new(Settings::default()).unwrap(), directory.path().join("store")).unwrap();
        Ok((directory, log.group_log(7), Machine::new(store).unwrap().0))
    }
}

async fn suite(tail_bytes_max: u64, durability: Durability) {
    Suite::test_all(Builder { tail_bytes_max, durability }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_suite_passes() {
    suite(16 << 20, Durability::Always).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_suite_passes_when_entries_are_read_from_segments() {
    suite(0, Durability::Os).await;
}
