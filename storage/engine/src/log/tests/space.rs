//! The log stays small, waits while the disk is full, and trusts no fsync after a failed
//! one.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::{LogError, segment};
use super::*;

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_stays_bounded_while_an_idle_group_needs_old_entries() {
    for durability in
        [Durability::Always, Durability::Os, Durability::Interval(Duration::from_millis(5))]
    {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = LogOptions { tail_bytes_max: 500, ..options(dir.path(), durability, 4096) };
        let log = Log::open(options.clone()).unwrap();
        let (mut idle, mut busy) = (log.group_log(1), log.group_log(2));
        idle.save_vote(&vote(4)).await.unwrap();
        append(&mut idle, (1..=10).map(|index| entry(1, index, vec![index as u8; 50])).collect())
            .await;
        for index in 1..=600 {
            append(&mut busy, vec![entry(1, index, vec![0; 200])]).await;
            if index % 10 == 0 {
                busy.purge(log_id(1, index - 5)).await.unwrap();
            }
        }
        eventually("the segments go", || segments(dir.path()).len() <= 8).await;
        assert!(log.stats().relocated() >= 10);
        let expected = (image(&log, 1).await, image(&log, 2).await);
        assert_eq!(expected.0.entries.len(), 10);
        log.flush().await.unwrap();
        kill(&log, copy.path());
        let log = Log::open(LogOptions { dir: copy.path().to_owned(), ..options }).unwrap();
        assert_eq!((image(&log, 1).await, image(&log, 2).await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_nobody_needs_becomes_the_next() {
    use std::os::unix::fs::MetadataExt;
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::open(options(dir.path(), Durability::Always, 8192)).unwrap();
    let mut group = log.group_log(1);
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let first = inode(&segments(dir.path())[0]);
    let spare = dir.path().join("spare.tmp");
    let mut index = 5;
    append(&mut group, (1..=index).map(|index| entry(1, index, vec![1; 1000])).collect()).await;
    eventually("the second segment's file is there", || spare.exists()).await;
    // The second segment is hardly filled, so it has no spare behind it yet.
    while segments(dir.path()).len() < 2 {
        index += 1;
        append(&mut group, vec![entry(1, index, vec![1; 1000])]).await;
    }
    group.purge(log_id(1, index - 1)).await.unwrap();
    eventually("it is kept", || spare.exists()).await;
    assert_eq!(inode(&spare), first);
    while segments(dir.path()).last().map(|path| inode(path)) != Some(first) {
        index += 1;
        assert!(index < 100);
        append(&mut group, vec![entry(1, index, vec![2; 1000])]).await;
    }
    // The file's earlier contents lie behind its end, and are taken neither for a torn
    // tail nor for anything else.
    let expected = image(&log, 1).await;
    let (_, end) = kill(&log, copy.path());
    let path = segments(copy.path()).pop().unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(before[end as usize..].iter().take(segment::TRAILER).all(|byte| *byte == 0));
    assert!(before[end as usize..].iter().any(|byte| *byte != 0));
    let log = Log::open(options(copy.path(), Durability::Always, 8192)).unwrap();
    assert_eq!(image(&log, 1).await, expected);
    assert_eq!(std::fs::read(&path).unwrap(), before, "nothing was cut");
    append(&mut log.group_log(1), vec![entry(1, index + 1, "after")]).await;
    drop(log);
    let log = Log::open(options(copy.path(), Durability::Always, 8192)).unwrap();
    assert_eq!(image(&log, 1).await.entries.last(), Some(&entry(1, index + 1, "after")));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_refuses_proposals_and_accepted_writes_wait() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(LogOptions {
        tail_bytes_max: 0,
        ..options(dir.path(), Durability::Always, 8192)
    })
    .unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, vec![1; 5000])]).await;
    eventually("the spare is there", || dir.path().join("spare.tmp").exists()).await;
    log.shared.faults.disk_full.store(true, Ordering::Relaxed);
    // The spare is used up, and no other can be made.
    append(&mut group, vec![entry(1, 2, vec![2; 5000])]).await;
    append(&mut group, vec![entry(1, 3, vec![3; 100])]).await;
    eventually("the log says that it is full", || {
        matches!(log.writable(), Err(LogError::DiskFull { .. }))
    })
    .await;
    // Earlier proposals still have room; the one that does not fit waits.
    append(&mut group, vec![entry(1, 4, vec![4; 100])]).await;
    let mut waiting = start_append(&mut group, vec![entry(1, 5, vec![5; 7500])]).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(waiting.try_recv().is_err(), "there is no space for it");
    assert_eq!(group.try_get_log_entries(1..=5).await.unwrap().len(), 5, "reads go on");
    log.shared.faults.disk_full.store(false, Ordering::Relaxed);
    waiting.await.unwrap().unwrap();
    eventually("the log takes writes again", || log.writable().is_ok()).await;
    append(&mut group, vec![entry(1, 6, "after")]).await;
    drop((group, log));
    let log = Log::open(options(dir.path(), Durability::Always, 8192)).unwrap();
    assert_eq!(image(&log, 1).await.entries.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_directory_is_gone_fails_and_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 8192)).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, "x")]).await;
    dir.close().unwrap();
    let written = start_append(&mut group, vec![entry(1, 2, vec![0; 8192])]).await;
    let outcome =
        tokio::time::timeout(Duration::from_secs(20), written).await.expect("an answer").unwrap();
    assert!(outcome.is_err());
    assert!(matches!(log.writable(), Err(LogError::Poisoned(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_waits_for_space_can_be_closed() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, "x")]).await;
    log.shared.faults.disk_full.store(true, Ordering::Relaxed);
    let mut last = None;
    for index in 2..5 {
        last = Some(start_append(&mut group, vec![entry(1, index, vec![0; 4000])]).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(log.close().is_err());
    assert!(
        last.unwrap().await.unwrap().is_err(),
        "it was not written, so it was not acknowledged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_fsync_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 8192)).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, "durable")]).await;
    log.shared.faults.sync_fails.store(true, Ordering::Relaxed);
    let failed = start_append(&mut group, vec![entry(1, 2, "lost")]).await;
    assert!(failed.await.unwrap().is_err());
    log.shared.faults.sync_fails.store(false, Ordering::Relaxed);
    assert!(
        group.append(vec![entry(1, 3, "x")], Flushed::noop()).await.is_err(),
        "never again, though the disk now says yes"
    );
    assert!(group.save_vote(&vote(2)).await.is_err());
    assert!(matches!(log.writable(), Err(LogError::Poisoned(_))));
    drop((group, log));
    let log = Log::open(options(dir.path(), Durability::Always, 8192)).unwrap();
    assert_eq!(image(&log, 1).await.entries[0], entry(1, 1, "durable"));
}

#[tokio::test]
async fn a_record_larger_than_a_segment_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(LogOptions {
        tail_bytes_max: 0,
        ..options(dir.path(), Durability::Always, 4096)
    })
    .unwrap();
    for index in 1..=3 {
        append(&mut log.group_log(1), vec![entry(1, index, vec![index as u8; 20_000])]).await;
    }
    let expected = image(&log, 1).await;
    drop(log);
    let log = Log::open(options(dir.path(), Durability::Always, 4096)).unwrap();
    assert_eq!(image(&log, 1).await, expected);
}

#[tokio::test]
async fn a_follower_that_asks_for_much_gets_some() {
    let dir = tempfile::tempdir().unwrap();
    for tail_bytes_max in [0, 64 << 20] {
        let log = Log::open(LogOptions {
            tail_bytes_max,
            ..options(dir.path(), Durability::Os, 64 << 20)
        })
        .unwrap();
        let mut group = log.group_log(tail_bytes_max);
        append(&mut group, (1..=10).map(|index| entry(1, index, vec![0; 1 << 20])).collect()).await;
        let some = group.limited_get_log_entries(2, 11).await.unwrap();
        assert!((1..=4).contains(&some.len()), "{}", some.len());
        assert_eq!(some[0].log_id.index, 2);
        assert_eq!(
            group.try_get_log_entries(2..11).await.unwrap().len(),
            9,
            "a plain read gets all"
        );
    }
}
