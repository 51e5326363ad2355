//! Many groups write at once, and each reads what it wrote.

use std::time::Duration;

use super::*;
use crate::log::WriteOnPark;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn groups_that_write_at_once_do_not_disturb_each_other() {
    for durability in [Durability::Always, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let options =
            LogOptions { tail_bytes_max: 10_000, ..options(dir.path(), durability, 32 << 10) };
        let log = Log::open(options.clone()).unwrap();
        let writers: Vec<_> = (1..=8).map(|id| tokio::spawn(write(log.group_log(id)))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
        if durability == Durability::Always {
            assert!(log.stats().fsyncs() < 8 * 200, "groups share fsyncs");
        }
        drop(log);
        let log = Log::open(options).unwrap();
        for id in 1..=8 {
            let image = image(&log, id).await;
            assert_eq!(image.purged, Some(log_id(1, 100)));
            let expected: Vec<Entry> = (101..=200)
                .map(|index| entry(1, index, vec![id as u8; 100 + index as usize]))
                .collect();
            assert_eq!(image.entries, expected);
        }
    }
}

async fn write(mut group: GroupLog) {
    let id = group.id() as u8;
    for index in 1..=200 {
        append(&mut group, vec![entry(1, index, vec![id; 100 + index as usize])]).await;
        let from = if index > 100 { 101 } else { 1 };
        assert_eq!(
            group.try_get_log_entries(from..=index).await.unwrap().len() as u64,
            index + 1 - from
        );
        if index > 100 {
            group.purge(log_id(1, 100)).await.unwrap();
        }
    }
}

/// A runtime with this number of threads, which write the log on park.
fn runtime(threads: usize, write_on_park: &WriteOnPark) -> tokio::runtime::Runtime {
    let write_on_park = write_on_park.clone();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(threads)
        .on_thread_park(move || write_on_park.write())
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn groups_written_on_park_do_not_disturb_each_other() {
    for threads in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let write_on_park = WriteOnPark::default();
        let options = LogOptions {
            write_on_park: Some(write_on_park.clone()),
            ..options(dir.path(), Durability::Always, 32 << 10)
        };
        let log = Log::open(options.clone()).unwrap();
        let runtime = runtime(threads, &write_on_park);
        let writers: Vec<_> = (1..=8).map(|id| runtime.spawn(write(log.group_log(id)))).collect();
        let written = async {
            for writer in writers {
                writer.await.unwrap();
            }
        };
        runtime.block_on(written);
        drop(runtime);
        drop(log);
        let log = Log::open(LogOptions { write_on_park: None, ..options }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for id in 1..=8 {
            let image = runtime.block_on(image(&log, id));
            let expected: Vec<Entry> = (101..=200)
                .map(|index| entry(1, index, vec![id as u8; 100 + index as usize]))
                .collect();
            assert_eq!(image.entries, expected, "group {id}, {threads} threads");
        }
    }
}

/// This thread plays one that parks now and then.
#[tokio::test]
async fn appends_are_deferred_only_to_a_thread_about_to_park() {
    let dir = tempfile::tempdir().unwrap();
    let write_on_park = WriteOnPark::default();
    let options = LogOptions {
        write_on_park: Some(write_on_park.clone()),
        ..options(dir.path(), Durability::Always, 32 << 10)
    };
    let log = Log::open(options).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, "by the log's own thread")]).await;
    write_on_park.write();
    // However long the first fsync took, fsyncs count as fast; and the log's own thread
    // sleeps.
    (0..100).for_each(|_| log.shared.stats.note_fsync(Duration::ZERO));
    while !log.shared.queue.lock().sleeping {
        std::thread::yield_now();
    }
    let (batches, fsyncs) = (log.stats().batches(), log.stats().fsyncs());
    let wait = start_append(&mut group, vec![entry(1, 2, "by this one")]).await;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(log.stats().batches(), batches, "it is left to this thread");
    write_on_park.write();
    assert_eq!((log.stats().batches(), log.stats().fsyncs()), (batches + 1, fsyncs + 1));
    wait.await.unwrap().unwrap();

    // Votes are written at once.
    group.save_vote(&vote(1)).await.unwrap();
    // Too many to be deferred any longer.
    let mut waits = Vec::new();
    for index in 3..=22 {
        waits.push(start_append(&mut group, vec![entry(1, index, "many")]).await);
    }
    for wait in waits {
        wait.await.unwrap().unwrap();
    }
    // At the end of a segment.
    for index in 23..=33 {
        let wait = start_append(&mut group, vec![entry(1, index, vec![7; 6_000])]).await;
        write_on_park.write();
        wait.await.unwrap().unwrap();
    }
    assert!(segments(dir.path()).len() > 1, "no segment ended: the test proves nothing");
    // Fsyncs are slow.
    (0..20).for_each(|_| log.shared.stats.note_fsync(Duration::from_millis(20)));
    append(&mut group, vec![entry(1, 34, "by the log's own thread again")]).await;
}
