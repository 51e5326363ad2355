//! The log on a disk that is slow, fails, or does not keep up.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::segment::{self, Segment};
use super::super::{Disk, LogError, WriteOnPark};
use super::*;

/// A disk with injected failures that records its calls.
#[derive(Debug, Default)]
struct Sick {
    /// Duration of each sync, ms.
    slow_ms: AtomicU64,
    /// The next sync fails and later ones succeed, as on Linux.
    fails_once: AtomicBool,
    syncs: AtomicUsize,
    /// From the next sync of a thread with this name on, each sync takes a second.
    stalls_on: Mutex<Option<&'static str>>,
    /// The threads that synced slowly.
    slow_threads: Mutex<Vec<String>>,
    /// The writes, with (0, 0) for each sync between them.
    written: Mutex<Vec<(u64, usize)>>,
}

impl Disk for Sick {
    fn write(&self, file: &std::fs::File, bytes: &[u8], at: u64) -> std::io::Result<()> {
        self.written.lock().push((at, bytes.len()));
        std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
    }

    fn sync(&self, file: &std::fs::File) -> std::io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let mut stalls_on = self.stalls_on.lock();
        if stalls_on.is_some() && std::thread::current().name() == *stalls_on {
            *stalls_on = None;
            self.slow_ms.store(1000, Ordering::Relaxed);
        }
        drop(stalls_on);
        let slow = self.slow_ms.load(Ordering::Relaxed);
        if slow > 0 {
            self.slow_threads
                .lock()
                .push(std::thread::current().name().unwrap_or_default().to_owned());
            std::thread::sleep(Duration::from_millis(slow));
        }
        if self.fails_once.swap(false, Ordering::Relaxed) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        self.written.lock().push((0, 0));
        file.sync_data()
    }
}

fn on(disk: &Arc<Sick>, dir: &Path) -> LogOptions {
    LogOptions { disk: disk.clone(), ..options(dir, Durability::Always, 64 << 10) }
}

#[test]
fn a_failed_fsync_fails_every_later_sync() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(segment::file_name(1));
    let file = std::fs::File::create_new(&path).unwrap();
    let (disk, segment) = (Sick::default(), Segment::new(1, path, file, 4096, 28, 28));
    assert!(!segment.sync(&disk).unwrap(), "there is nothing to sync");
    segment.end.store(100, Ordering::Release);
    disk.fails_once.store(true, Ordering::Relaxed);
    for _caller in ["the maintenance thread", "the writer"] {
        let error = segment.sync(&disk).unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
    }
    assert_eq!(
        (disk.syncs.load(Ordering::Relaxed), segment.synced()),
        (1, 28),
        "no caller gets a success"
    );
}

#[tokio::test]
async fn bytes_of_a_failed_fsync_are_rewritten_at_the_next_start() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(Sick::default()));
    let log = Log::open(on(&disk, dir.path())).unwrap();
    let mut group = log.group_log(1);
    append(&mut group, vec![entry(1, 1, "acknowledged")]).await;
    let synced = u64::from(log.shared.writer.lock().active.end());
    disk.fails_once.store(true, Ordering::Relaxed);
    let told =
        start_append(&mut group, vec![entry(1, 2, "in the page cache only")]).await.await.unwrap();
    assert!(told.is_err());
    assert!(log.writable().is_err() && log.disk_problem().is_some());
    assert!(log.close().is_err());
    let end = u64::from(log.shared.writer.lock().active.end());
    drop((group, log));
    disk.written.lock().clear();
    let log = Log::open(on(&disk, dir.path())).unwrap();
    assert_eq!(image(&log, 1).await.entries.len(), 2, "it is believed");
    let written = disk.written.lock().clone();
    let again = written
        .iter()
        .position(|(at, bytes)| *bytes > 0 && *at <= synced && at + *bytes as u64 >= end);
    let again =
        again.unwrap_or_else(|| panic!("{synced}..{end} was not written again: {written:?}"));
    assert!(written[again + 1..].contains(&(0, 0)), "and synced");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_disk_refuses_before_anything_is_proposed() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(Sick::default()));
    let log = Log::open(LogOptions {
        unwritten_bytes_max: 20_000,
        segment_bytes: 1 << 20,
        ..on(&disk, dir.path())
    })
    .unwrap();
    let (mut one, other) = (log.group_log(1), log.group_log(2));
    append(&mut one, vec![entry(1, 1, "x")]).await;
    assert!(one.writable().is_ok());
    disk.slow_ms.store(700, Ordering::Relaxed);
    let mut waits = vec![start_append(&mut one, vec![entry(1, 2, vec![0; 19_000])]).await];
    assert!(one.writable().is_ok());
    waits.push(start_append(&mut one, vec![entry(1, 3, vec![0; 2_000])]).await);
    assert!(
        matches!(one.writable(), Err(LogError::Behind { bytes: 21_000.. })),
        "{:?}",
        one.writable()
    );
    assert!(other.writable().is_ok(), "others have their own bound");
    waits.push(start_append(&mut one, vec![entry(1, 4, vec![0; 70_000])]).await);
    assert!(matches!(other.writable(), Err(LogError::Behind { .. })), "and one together");
    assert!(log.writable().is_ok());
    disk.slow_ms.store(0, Ordering::Relaxed);
    for wait in waits {
        wait.await.unwrap().unwrap();
    }
    assert!(one.writable().is_ok() && other.writable().is_ok());
}

/// The disk is fast; then one sync stalls for long, and so do all later ones.
#[test]
fn a_disk_that_stalls_holds_up_one_thread_once() {
    let (dir, disk, write_on_park) =
        (tempfile::tempdir().unwrap(), Arc::new(Sick::default()), WriteOnPark::default());
    let options = LogOptions {
        write_on_park: Some(write_on_park.clone()),
        segment_bytes: 1 << 20,
        ..on(&disk, dir.path())
    };
    let log = Log::open(options).unwrap();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name("raft").enable_all();
    let reserve = write_on_park.clone();
    let runtime = builder.on_thread_park(move || write_on_park.write()).build().unwrap();
    reserve.keep_reserve(runtime.handle()).unwrap();
    let beats = runtime.spawn(async {
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        let end = last + Duration::from_secs(4);
        while last < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        longest
    });
    let mut group = log.group_log(1);
    let (log, slow) = (log.clone(), disk.clone());
    let written = runtime.spawn(async move {
        *slow.stalls_on.lock() = Some("raft");
        for index in 1.. {
            // However long they took, they count as fast.
            (0..100).for_each(|_| log.shared.stats.note_fsync(Duration::ZERO));
            append(&mut group, vec![entry(1, index, "quick, then slow")]).await;
            assert!(index < 10_000, "no thread of the runtime writes the log");
            if slow.slow_threads.lock().len() >= 3 {
                break;
            }
        }
        slow.slow_ms.store(0, Ordering::Relaxed);
    });
    runtime.block_on(written).unwrap();
    let longest = runtime.block_on(beats).unwrap();
    reserve.stop();
    assert!(longest < Duration::from_millis(600), "heartbeats would have waited for {longest:?}");
    let threads = disk.slow_threads.lock().clone();
    assert!(
        threads[0] == "raft" && threads[1..].iter().all(|thread| thread != "raft"),
        "{threads:?}"
    );
}

#[tokio::test]
async fn an_idle_log_is_marked_as_synced() {
    let (live, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = Log::open(options(live.path(), Durability::Always, 64 << 10)).unwrap();
    append(&mut log.group_log(1), vec![entry(1, 1, "the last batch")]).await;
    let at = log.shared.writer.lock().active.end();
    let deadline = Instant::now() + Duration::from_secs(20);
    while log.shared.writer.lock().active.end() == at {
        assert!(Instant::now() < deadline, "no mark");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One is enough.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (_, end) = kill(&log, dir.path());
    assert_eq!(end, at + super::super::record::HEADER as u32);
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at as usize - 1] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let said = Log::open(options(dir.path(), Durability::Always, 64 << 10)).unwrap_err();
    assert!(matches!(said, LogError::Corrupt { .. }), "{said}");
}

#[test]
fn a_committed_id_does_not_bring_a_destroyed_group_back() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let log = Log::open(options(dir.path(), Durability::Always, 64 << 10)).unwrap();
    let mut group = log.group_log(1);
    runtime.block_on(append(&mut group, vec![entry(1, 1, "x")]));
    // Nothing is written while the destruction of the group is queued.
    let writer = log.shared.writer.lock();
    let destroying = runtime.spawn({
        let log = log.clone();
        async move { log.destroy(1).await }
    });
    while log.shared.queue.lock().ops.is_empty() {
        std::thread::yield_now();
    }
    runtime.block_on(group.save_committed(Some(log_id(1, 1)))).unwrap();
    log.shared.queue_committed();
    drop(writer);
    runtime.block_on(destroying).unwrap().unwrap();
    drop((group, log));
    assert_eq!(Log::open(options(dir.path(), Durability::Always, 64 << 10)).unwrap().groups(), []);
}
