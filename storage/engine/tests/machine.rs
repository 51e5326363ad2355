//! A group of one over the real log and a real store: acknowledged writes survive, purged
//! entries were flushed, a full disk only makes writes wait.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::batch::{BatchWriter, Family};
use engine::log::{Durability, Log, LogOptions};
use engine::raft::purge::{LogPolicy, run_log_compaction};
use engine::raft::{Group, Leadership, Progress};
use engine::store::{SharedResources, Store, StoreSettings};

struct Replica {
    group: Group,
    leadership: Leadership,
    store: Store,
    progress: Progress,
    log: std::sync::Arc<Log>,
}

impl Replica {
    async fn start(path: &Path) -> Self {
        let mut options = LogOptions::new(path.join("log"));
        options.durability = Durability::Os;
        options.segment_bytes = 1 << 20;
        let log = Log::open(options).unwrap();
        let store = Store::open(
            &SharedResources::new(StoreSettings::default()).unwrap(),
            path.join("store"),
        )
        .unwrap();
        let group = Group::start_standalone(1, "test".into(), log.group_log(1), store.clone())
            .await
            .unwrap();
        let progress = group.progress();
        let leadership = group.acquire_leadership().await.unwrap();
        Self { group, leadership, store, progress, log }
    }

    async fn put(&self, key: u64, value: &[u8]) {
        self.group.propose(&self.leadership, batch(key, value)).await.unwrap();
    }

    /// Ends without flushing the store: the memtables are lost, as in a crash.
    async fn crash(self, path: &Path) -> tempfile::TempDir {
        self.group.shutdown().await;
        // The log's files first: the store may flush when it is dropped.
        self.log.flush().await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        copy_tree(path, copy.path());
        copy
    }
}

fn batch(key: u64, value: &[u8]) -> Bytes {
    let mut writer = BatchWriter::new();
    writer.put(Family::Head, &key.to_be_bytes(), value);
    writer.finish()
}

/// Newest first: the log may be removing its oldest segments, and a copy that lacks one
/// must not have an older one.
fn copy_tree(from: &Path, to: &Path) {
    let mut entries: Vec<_> =
        std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else if entry.file_name() != "LOCK" {
            copy_file(&entry.path(), &target);
        }
    }
}

/// The log removes segments, oldest first, while it is copied; a missing one was not
/// needed.
fn copy_file(from: &Path, to: &Path) {
    match std::fs::copy(from, to) {
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound
                && from.extension().is_some_and(|extension| extension != "sst") => {}
        copied => drop(copied.unwrap()),
    }
}

fn tree_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().flatten();
    entries
        .map(|entry| {
            entry.metadata().map_or(0, |metadata| {
                if metadata.is_dir() { tree_bytes(&entry.path()) } else { metadata.len() }
            })
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_the_loss_of_memtables() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::start(directory.path()).await;
    for key in 0..300 {
        replica.put(key, b"v").await;
        if key == 100 {
            replica.store.flush().unwrap();
        }
    }
    assert!(
        replica.store.flushed().unwrap().unwrap().index
            < replica.store.applied().unwrap().unwrap().index
    );
    assert_eq!(
        replica.progress.borrow().as_ref().unwrap().index,
        replica.store.applied().unwrap().unwrap().index
    );
    let copy = replica.crash(directory.path()).await;
    let again = Replica::start(copy.path()).await;
    for key in 0..300u64 {
        assert!(again.store.get(Family::Head, &key.to_be_bytes()).unwrap().is_some(), "key {key}");
    }
    again.put(7, b"w").await;
    assert_eq!(again.store.get(Family::Head, &7u64.to_be_bytes()).unwrap().unwrap(), "w");
    again.group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_flushed_entries_are_purged() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::start(directory.path()).await;
    let policy = LogPolicy {
        bytes_max: 4 << 20,
        entries_max: 1_000_000,
        age_max: Duration::from_secs(600),
        ..LogPolicy::default()
    };
    let keeper = tokio::spawn(run_log_compaction(
        replica.group.clone(),
        replica.store.clone(),
        replica.progress.clone(),
        policy,
    ));
    // 64 MB through a log of which 4 MB may wait.
    for key in 0..1_000u64 {
        replica.put(key, &[key as u8; 64_000]).await;
        let purged = replica.group.stats().purged;
        let flushed = replica.store.flushed().unwrap().map_or(0, |flushed| flushed.index);
        assert!(purged <= flushed, "purged to {purged}, flushed to {flushed}");
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while tree_bytes(&directory.path().join("log")) > 12 << 20 {
        assert!(
            Instant::now() < deadline,
            "the log has {} bytes",
            tree_bytes(&directory.path().join("log"))
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(replica.group.stats().purged > 500);
    let copy = replica.crash(directory.path()).await;
    tokio::time::timeout(Duration::from_secs(5), keeper)
        .await
        .expect("the keeper ends with its group")
        .unwrap();
    let again = Replica::start(copy.path()).await;
    for key in 0..1_000u64 {
        assert_eq!(
            again.store.get(Family::Head, &key.to_be_bytes()).unwrap().unwrap()[0],
            key as u8,
            "key {key}"
        );
    }
    again.group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_does_not_cause_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::start(directory.path()).await;
    let policy = LogPolicy { bytes_max: 4 << 20, entries_max: u64::MAX, ..LogPolicy::default() };
    let keeper = tokio::spawn(run_log_compaction(
        replica.group.clone(),
        replica.store.clone(),
        replica.progress.clone(),
        policy,
    ));
    let (began, mut flushes) = (Instant::now(), std::collections::BTreeSet::new());
    for key in 0.. {
        replica.put(key % 100, &[key as u8; 40]).await;
        flushes.extend(replica.store.flushed().unwrap().map(|flushed| flushed.index));
        if !flushes.is_empty() && began.elapsed() > Duration::from_secs(5) {
            break;
        }
    }
    let due = (replica.store.applied_bytes() / policy.bytes_max) as usize;
    assert!(flushes.len() <= due + 1, "{} flushes, {due} were due", flushes.len());
    // openraft was told of the flushes, or nothing would be purged.
    assert!(replica.group.stats().purged > 0);
    replica.group.shutdown().await;
    tokio::time::timeout(Duration::from_secs(5), keeper)
        .await
        .expect("the keeper ends with its group")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_store_is_flushed_in_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::start(directory.path()).await;
    let policy = LogPolicy { age_max: Duration::from_millis(300), ..LogPolicy::default() };
    let keeper = tokio::spawn(run_log_compaction(
        replica.group.clone(),
        replica.store.clone(),
        replica.progress.clone(),
        policy,
    ));
    replica.put(1, b"v").await;
    let applied = replica.store.applied().unwrap().unwrap().index;
    let deadline = Instant::now() + Duration::from_secs(5);
    while replica.store.flushed().unwrap().is_none_or(|flushed| flushed.index < applied)
        || replica.group.stats().purged < applied
    {
        assert!(
            Instant::now() < deadline,
            "flushed {:?} purged {}",
            replica.store.flushed(),
            replica.group.stats().purged
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    replica.group.shutdown().await;
    tokio::time::timeout(Duration::from_secs(5), keeper)
        .await
        .expect("the keeper ends with its group")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_writes_are_applied_too() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::start(directory.path()).await;
    for key in 0..5 {
        replica.put(key, &vec![1; 2 << 20]).await;
    }
    assert_eq!(
        replica.store.get(Family::Head, &4u64.to_be_bytes()).unwrap().unwrap().len(),
        2 << 20
    );
    assert!(replica.store.applied_bytes() > 10 << 20);
    replica.group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_stops_the_group() {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::start(directory.path()).await;
    let bad = replica.group.propose(&replica.leadership, Bytes::from_static(b"\x09")).await;
    assert!(bad.is_err());
    assert!(
        replica.group.propose(&replica.leadership, batch(1, b"v")).await.is_err(),
        "the group has stopped"
    );
    assert_eq!(replica.store.get(Family::Head, &1u64.to_be_bytes()).unwrap(), None);
}
