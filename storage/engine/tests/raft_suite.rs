//! openraft's own suite for storage, over the real log and the real state machine.
#![allow(clippy::unwrap_used)]

use engine::log::{Durability, Log, LogOptions};
use engine::raft::log_store::GroupLog;
use engine::raft::machine::{Machine, SnapshotSource};
use engine::raft::types::{LogId, SnapshotMeta, StoredMembership, Types};
use engine::store::{SharedResources, Store, StoreSettings};
use futures::Stream;
use openraft::StorageError;
use openraft::alias::SnapshotOf;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};

/// The state machine with a transfer between two replicas: the suite passes one replica's
/// snapshot to another as it is, where a real one is sent as files.
struct Delivered {
    machine: Machine,
    received: tempfile::TempDir,
}

impl RaftStateMachine<Types> for Delivered {
    type SnapshotData = SnapshotSource;
    type SnapshotBuilder = <Machine as RaftStateMachine<Types>>::SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), std::io::Error> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), std::io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, std::io::Error>> + Unpin + Send,
    {
        self.machine.apply(entries).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Self::SnapshotBuilder> {
        self.machine.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.machine.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotSource,
    ) -> Result<(), std::io::Error> {
        let files = self.received.path().join("state");
        snapshot.checkpoint(&files)?;
        self.machine.install_snapshot(meta, SnapshotSource::Received(files)).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, SnapshotSource>>, std::io::Error> {
        self.machine.get_current_snapshot().await
    }
}

struct Builder {
    tail_bytes_max: u64,
    durability: Durability,
}

impl StoreBuilder<Types, GroupLog, Delivered, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupLog, Delivered), StorageError<Types>> {
        let directory = tempfile::tempdir().unwrap();
        let options = LogOptions {
            segment_bytes: 4096,
            tail_bytes_max: self.tail_bytes_max,
            durability: self.durability,
            ..LogOptions::new(directory.path().join("log"))
        };
        let log = Log::open(options).unwrap();
        let store = Store::open(
            &SharedResources::new(StoreSettings::default()).unwrap(),
            directory.path().join("store"),
        )
        .unwrap();
        let machine = Machine::new(store).unwrap().0;
        Ok((
            directory,
            log.group_log(7),
            Delivered { machine, received: tempfile::tempdir().unwrap() },
        ))
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
async fn openrafts_suite_passes_reading_from_segments() {
    suite(0, Durability::Os).await;
}
