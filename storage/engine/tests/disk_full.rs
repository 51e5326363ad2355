//! A full disk stops writes with a clear error, reads go on, and writes resume
//! automatically when space returns.
//!
//! The disk is a small tmpfs in a mount namespace of its own, so the test needs Linux
//! with user namespaces (or root); it runs itself again inside.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::batch::{BatchWriter, Family};
use engine::store::{
    EntryWrite, Fault, OnStall, SharedResources, Store, StoreHealth, StoreSettings,
};

/// The mount point; set in the run inside the namespace.
const INSIDE: &str = "ENGINE_TEST_SMALL_DISK";

/// Runs the named test again with a disk of 32 MB; returns the disk in that second run.
fn small_disk(test: &str) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(INSIDE) {
        return Some(disk.into());
    }
    let disk = tempfile::tempdir().unwrap();
    let namespace = |flags: &str| {
        let mut command = Command::new("unshare");
        command.arg(flags);
        command
    };
    let flags = ["-m", "-rm"].into_iter().find(|flags| {
        namespace(flags).arg("true").output().is_ok_and(|output| output.status.success())
    });
    let Some(flags) = flags else {
        println!("not run: this system lets nobody make a mount namespace");
        return None;
    };
    let script =
        "mount -t tmpfs -o size=32m small \"$1\" && exec \"$2\" --exact \"$3\" --nocapture";
    let inner = namespace(flags)
        .args(["sh", "-c", script, "sh"])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(INSIDE, disk.path())
        .output()
        .unwrap();
    assert!(
        inner.status.success(),
        "{}{}",
        String::from_utf8_lossy(&inner.stdout),
        String::from_utf8_lossy(&inner.stderr)
    );
    None
}

/// Fills the disk until only about `leave` bytes are free.
fn fill(disk: &Path, leave: u64) -> PathBuf {
    let stat = rustix::fs::statvfs(disk).unwrap();
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; (stat.f_bavail * stat.f_frsize - leave) as usize]).unwrap();
    ballast
}

/// An entry with 100 kB that do not compress.
fn entry(index: u64) -> EntryWrite {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = Vec::with_capacity(100_000);
    while noise.len() < 100_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let mut writer = BatchWriter::new();
    writer.put(Family::Head, &index.to_be_bytes(), &noise);
    EntryWrite { index, log_id: Bytes::from_static(b"x"), batch: writer.finish(), membership: None }
}

fn within(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_reserve_is_watched() {
    let Some(disk) = small_disk("the_reserve_is_watched") else { return };
    let store =
        Store::open(&SharedResources::new(StoreSettings::default()).unwrap(), disk.join("store"))
            .unwrap();
    store.apply(&[entry(1)], OnStall::Wait).unwrap();
    assert_eq!(store.health(), StoreHealth::Good);
    let ballast = fill(&disk, 1 << 20);
    within(5, "the lack of space is seen", || matches!(store.health(), StoreHealth::DiskFull(_)));
    assert!(store.get(Family::Head, &1u64.to_be_bytes()).unwrap().is_some());
    store.apply(&[entry(2)], OnStall::Wait).unwrap();
    std::fs::remove_file(ballast).unwrap();
    within(5, "the space is seen", || store.health() == StoreHealth::Good);
}

#[test]
fn writes_wait_for_space_and_reads_go_on() {
    let Some(disk) = small_disk("writes_wait_for_space_and_reads_go_on") else { return };
    let settings = StoreSettings {
        memtable_bytes: 2 << 20,
        disk_reserve_bytes: 0,
        ..StoreSettings::default()
    };
    let store =
        Store::open(&SharedResources::new(settings.clone()).unwrap(), disk.join("store")).unwrap();
    store.apply(&[entry(1)], OnStall::Wait).unwrap();
    store.flush().unwrap();
    let ballast = fill(&disk, 3 << 20);
    let mut written = 1;
    let fault = loop {
        match store.apply(&[entry(written + 1)], OnStall::Wait) {
            Ok(()) => written += 1,
            Err(fault) => break fault,
        }
        assert!(written < 1_000, "100 MB fit into 3");
    };
    assert!(matches!(fault, Fault::DiskFull(_)), "{fault:?}");
    assert!(matches!(store.health(), StoreHealth::DiskFull(_)), "{:?}", store.health());
    assert!(matches!(store.flush(), Err(Fault::DiskFull(_))));
    for index in 1..=written {
        assert!(
            store.get(Family::Head, &index.to_be_bytes()).unwrap().is_some(),
            "entry {index} of {written} is readable"
        );
    }
    std::fs::remove_file(ballast).unwrap();
    within(30, "writes go on", || store.apply(&[entry(written + 1)], OnStall::Wait).is_ok());
    // RocksDB checks for space every five seconds.
    within(15, "the store is well", || store.health() == StoreHealth::Good);
    store.close().unwrap();
    drop(store);
    let store = Store::open(&SharedResources::new(settings).unwrap(), disk.join("store")).unwrap();
    assert_eq!(store.applied().unwrap().unwrap().index, written + 1);
    for index in 1..=written + 1 {
        assert!(
            store.get(Family::Head, &index.to_be_bytes()).unwrap().is_some(),
            "entry {index} of {written} survived"
        );
    }
}
