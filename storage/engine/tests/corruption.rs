//! Damaged files are reported by name, at open or at the first read that meets them, and
//! never skipped.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use engine::batch::{BatchWriter, Family};
use engine::store::{EntryWrite, Fault, OnStall, SharedResources, Store, StoreSettings};

fn shared() -> SharedResources {
    SharedResources::new(StoreSettings { zstd_bottom: false, ..StoreSettings::default() }).unwrap()
}

/// A closed store with 2,000 heads in one table file.
fn written(path: &Path) {
    let store = Store::open(&shared(), path).unwrap();
    let mut writer = BatchWriter::new();
    for key in 0..2_000u64 {
        writer.put(
            Family::Head,
            &key.to_be_bytes(),
            &key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().repeat(8),
        );
    }
    store
        .apply(
            &[EntryWrite {
                index: 1,
                log_id: Bytes::new(),
                batch: writer.finish(),
                membership: None,
            }],
            OnStall::Wait,
        )
        .unwrap();
    store.close().unwrap();
}

fn largest(path: &Path, pick: impl Fn(&str) -> bool) -> PathBuf {
    let files = std::fs::read_dir(path.join("db-0")).unwrap().map(|entry| entry.unwrap().path());
    let matching = files.filter(|file| pick(file.file_name().unwrap().to_str().unwrap()));
    matching.max_by_key(|file| file.metadata().unwrap().len()).unwrap()
}

fn damage(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(file, bytes).unwrap();
}

fn file_of(fault: &Fault) -> String {
    match fault {
        Fault::Corrupt { file, .. } => {
            Path::new(file).file_name().unwrap().to_string_lossy().into_owned()
        }
        other => panic!("not reported as corrupt: {other:?}"),
    }
}

fn name(file: &Path) -> String {
    file.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_damaged_block_is_reported_with_its_file_and_offset() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let table = largest(directory.path(), |name| name.ends_with(".sst"));
    damage(&table, 5_000);
    let store = Store::open(&shared(), directory.path()).unwrap();
    let faults: Vec<Fault> =
        (0..2_000u64).filter_map(|key| store.get(Family::Head, &key.to_be_bytes()).err()).collect();
    assert!(!faults.is_empty(), "no read met the damage");
    assert!(faults.len() < 1_000, "one block is damaged, not all");
    assert_eq!(file_of(&faults[0]), name(&table));
    assert!(faults[0].to_string().contains("offset"), "{}", faults[0]);
    let mut seen = 0;
    let each = &mut |_: &[u8], _: &[u8]| {
        seen += 1;
        ControlFlow::Continue(())
    };
    let fault = store.range(Family::Head, b"", b"", false, each).unwrap_err();
    assert_eq!(file_of(&fault), name(&table));
    assert!(seen < 2_000, "the scan ends at the damage and says so");
    let fault = store.compact().unwrap().wait().unwrap_err();
    assert_eq!(file_of(&fault), name(&table));
}

#[test]
fn a_missing_table_is_reported_at_open() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let table = largest(directory.path(), |name| name.ends_with(".sst"));
    std::fs::remove_file(&table).unwrap();
    let fault = Store::open(&shared(), directory.path()).err().unwrap();
    assert_eq!(file_of(&fault), name(&table), "{fault}");
}

#[test]
fn a_damaged_manifest_is_reported_at_open() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    let manifest = largest(directory.path(), |name| name.starts_with("MANIFEST"));
    damage(&manifest, 20);
    let fault = Store::open(&shared(), directory.path()).err().unwrap();
    assert!(matches!(&fault, Fault::Corrupt { .. }), "{fault:?}");
    assert!(fault.to_string().contains("db-0"), "{fault}");
}

#[test]
fn a_lost_or_damaged_pointer_is_reported_at_open() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    std::fs::write(directory.path().join("current"), "../elsewhere").unwrap();
    assert_eq!(file_of(&Store::open(&shared(), directory.path()).err().unwrap()), "current");
    std::fs::remove_file(directory.path().join("current")).unwrap();
    assert_eq!(file_of(&Store::open(&shared(), directory.path()).err().unwrap()), "current");
    assert!(directory.path().join("db-0").exists(), "nothing was removed");
}

#[test]
fn a_damaged_pointer_of_rocksdb_is_reported_at_open() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path());
    std::fs::write(directory.path().join("db-0/CURRENT"), "MANIFEST-0000").unwrap();
    let fault = Store::open(&shared(), directory.path()).err().unwrap();
    assert!(matches!(&fault, Fault::Corrupt { .. }), "{fault:?}");
}
