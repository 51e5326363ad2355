//! A store's promises: whole entries or nothing, snapshots of one moment, errors that
//! name damaged files.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::batch::{BatchDependency, BatchWriter, Family};
use engine::store::{EntryWrite, Fault, OnStall, SharedResources, Snapshot, Store, StoreSettings};

fn shared() -> SharedResources {
    SharedResources::new(StoreSettings::default()).unwrap()
}

fn entry(index: u64, fill: impl FnOnce(&mut BatchWriter)) -> EntryWrite {
    let mut writer = BatchWriter::new();
    fill(&mut writer);
    EntryWrite {
        index,
        log_id: Bytes::copy_from_slice(&index.to_be_bytes()),
        batch: writer.finish(),
        membership: None,
    }
}

fn apply(store: &Store, index: u64, fill: impl FnOnce(&mut BatchWriter)) {
    store.apply(&[entry(index, fill)], OnStall::Wait).unwrap();
}

fn keys(snapshot: &Snapshot, family: Family, from: &[u8], to: &[u8], reverse: bool) -> Vec<String> {
    let mut keys = Vec::new();
    snapshot
        .range(family, from, to, reverse, &mut |key, _| {
            keys.push(String::from_utf8_lossy(key).into_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
    keys
}

#[test]
fn records_are_read_back_by_key_and_by_range() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&shared(), directory.path()).unwrap();
    apply(&store, 1, |batch| {
        for key in ["a", "b", "c", "d"] {
            batch.put(Family::Head, key.as_bytes(), key.to_uppercase().as_bytes());
        }
        batch.delete(Family::Head, b"d");
    });
    assert_eq!(store.get(Family::Head, b"b").unwrap().unwrap(), "B");
    assert_eq!(store.get(Family::Head, b"d").unwrap(), None);
    assert_eq!(store.get(Family::Cell, b"b").unwrap(), None);
    let snapshot = store.snapshot().unwrap();
    apply(&store, 2, |batch| batch.delete_range(Family::Head, b"a", b"c"));
    assert_eq!(
        keys(&snapshot, Family::Head, b"", b"", false),
        ["a", "b", "c"],
        "a snapshot does not move"
    );
    assert_eq!(keys(&snapshot, Family::Head, b"a", b"c", false), ["a", "b"]);
    assert_eq!(keys(&snapshot, Family::Head, b"b", b"", true), ["c", "b"]);
    assert_eq!(keys(&snapshot, Family::Head, b"c", b"a", false), [""; 0]);
    assert_eq!(snapshot.get(Family::Head, b"a").unwrap().unwrap(), "A");
    assert_eq!(keys(&store.snapshot().unwrap(), Family::Head, b"", b"", false), ["c"]);
    let mut first = Vec::new();
    let each = &mut |key: &[u8], _: &[u8]| {
        first.push(key.to_vec());
        ControlFlow::Break(())
    };
    snapshot.range(Family::Head, b"", b"", false, each).unwrap();
    assert_eq!(first, [b"a".to_vec()], "the walk ends when asked");
}

#[test]
fn a_damaged_entry_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&shared(), directory.path()).unwrap();
    apply(&store, 1, |batch| batch.put(Family::Head, b"a", b"1"));
    let mut damaged = entry(3, |batch| batch.put(Family::Head, b"a", b"3"));
    damaged.batch = damaged.batch.slice(..damaged.batch.len() - 1);
    let good = entry(2, |batch| batch.put(Family::Head, b"a", b"2"));
    assert!(matches!(store.apply(&[good, damaged], OnStall::Wait), Err(Fault::BadBatch(_))));
    assert_eq!(store.get(Family::Head, b"a").unwrap().unwrap(), "1");
    assert_eq!(store.applied().unwrap().unwrap().index, 1);
}

#[test]
fn flushed_and_applied_indexes_differ_until_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&shared(), directory.path()).unwrap();
    assert_eq!(store.applied().unwrap(), None);
    assert_eq!(store.flushed().unwrap(), None);
    apply(&store, 1, |batch| batch.put(Family::Head, b"a", b"1"));
    let mut second = entry(2, |_| {});
    second.membership = Some(Bytes::from_static(b"members"));
    store.flush().unwrap();
    store.apply(&[second], OnStall::Wait).unwrap();
    assert_eq!(store.applied().unwrap().unwrap().index, 2);
    assert_eq!(store.applied().unwrap().unwrap().membership.unwrap(), "members");
    assert_eq!(store.flushed().unwrap().unwrap().index, 1);
    assert_eq!(store.flushed().unwrap().unwrap().membership, None);
    store.flush().unwrap();
    assert_eq!(store.flushed().unwrap(), store.applied().unwrap());
}

#[test]
fn flushes_that_rocksdb_starts_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let small =
        SharedResources::new(StoreSettings { memtable_bytes: 1 << 20, ..StoreSettings::default() })
            .unwrap();
    let store = Store::open(&small, directory.path()).unwrap();
    let (mut index, deadline) = (0, Instant::now() + Duration::from_secs(20));
    while store.flushed().unwrap().is_none_or(|flushed| flushed.index < 100) {
        assert!(Instant::now() < deadline, "nothing is flushed");
        index += 1;
        let mut write = entry(index, |batch| {
            batch.put(Family::Cell, &index.to_be_bytes(), &[index as u8; 30_000])
        });
        write.membership = (index == 7).then(|| Bytes::from_static(b"members"));
        store.apply(&[write], OnStall::Wait).unwrap();
    }
    let flushed = store.flushed().unwrap().unwrap();
    assert_eq!(flushed.membership.unwrap(), "members");
    assert_eq!(flushed.log_id, flushed.index.to_be_bytes()[..]);
    store.close().unwrap();
    let store = Store::open(&small, directory.path()).unwrap();
    assert_eq!(
        (store.flushed().unwrap().unwrap().index, store.applied().unwrap().unwrap().index),
        (index, index)
    );
}

/// The directory of the child of `a_crash_loses_whole_entries_only`; unset in the parent.
const CHILD: &str = "ENGINE_TEST_CRASHING_STORE";

/// Not a claim by itself: the child process of the test below, which writes until it is
/// killed.
#[test]
fn child_that_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let small = StoreSettings { memtable_bytes: 1 << 20, ..StoreSettings::default() };
    let store = Store::open(&SharedResources::new(small).unwrap(), directory).unwrap();
    let applied = store.applied().unwrap().map_or(0, |applied| applied.index);
    for index in applied + 1.. {
        apply(&store, index, |batch| {
            // Families of different sizes, so that their memtables fill at different
            // times.
            batch.put(Family::Default, b"last", &index.to_be_bytes());
            batch.put(Family::Head, b"last", &index.to_be_bytes());
            batch.put(Family::Cell, b"last", &index.to_be_bytes());
            batch.put(Family::Cell, &index.to_be_bytes(), &vec![index as u8; 2_000]);
        });
    }
}

#[test]
fn a_crash_loses_whole_entries_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut survived = 0;
    for round in 0..5u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed"])
            .env(CHILD, directory.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(300 + 130 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&shared(), directory.path()).unwrap();
        let applied = store.applied().unwrap().map_or(0, |applied| applied.index);
        for family in Family::ALL {
            let last = store
                .get(family, b"last")
                .unwrap()
                .map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()));
            assert_eq!(last, applied, "{family:?} in round {round}");
        }
        for index in 1..=applied {
            assert!(
                store.get(Family::Cell, &index.to_be_bytes()).unwrap().is_some(),
                "entry {index} of {applied} in round {round}"
            );
        }
        assert!(applied >= survived, "what was flushed once is never lost");
        survived = applied;
    }
    assert!(survived > 0, "no flush came between two kills: the test proves nothing");
}

#[test]
fn a_closed_store_reopens_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared();
    let store = Store::open(&shared, directory.path()).unwrap();
    apply(&store, 7, |batch| batch.put(Family::Cell, b"a", b"1"));
    assert!(
        matches!(Store::open(&shared, directory.path()), Err(Fault::InUse(_))),
        "a second opening is refused"
    );
    store.close().unwrap();
    assert_eq!(store.get(Family::Cell, b"a"), Err(Fault::Closed));
    let store = Store::open(&shared, directory.path()).unwrap();
    assert_eq!(store.applied().unwrap().unwrap().index, 7);
    assert_eq!(store.get(Family::Cell, b"a").unwrap().unwrap(), "1");
    store.destroy().unwrap();
    assert!(!directory.path().exists());
}

#[test]
fn a_checkpoint_is_installed_while_readers_read() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared();
    let source = Store::open(&shared, directory.path().join("source")).unwrap();
    apply(&source, 9, |batch| batch.put(Family::Head, b"a", b"new"));
    let target = Store::open(&shared, directory.path().join("target")).unwrap();
    apply(&target, 3, |batch| batch.put(Family::Head, b"a", b"old"));
    let received = directory.path().join("received");
    source.checkpoint(&received).unwrap();
    let reader = target.snapshot().unwrap();
    target.install(&received).unwrap();
    assert_eq!(reader.get(Family::Head, b"a").unwrap().unwrap(), "old");
    assert_eq!(target.get(Family::Head, b"a").unwrap().unwrap(), "new");
    assert_eq!(target.applied().unwrap().unwrap().index, 9);
    drop(reader);
    target.close().unwrap();
    let target = Store::open(&shared, directory.path().join("target")).unwrap();
    assert_eq!(target.get(Family::Head, b"a").unwrap().unwrap(), "new");
    assert_eq!(source.get(Family::Head, b"a").unwrap().unwrap(), "new", "the source goes on");
}

/// However entries are grouped into writes, and across a restart.
#[test]
fn sizes_stay_while_nothing_is_said_to_have_changed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&shared(), directory.path()).unwrap();
    let mut before = store.changes();
    let mut changed = || std::mem::replace(&mut before, store.changes()) < store.changes();
    assert!(!changed());
    for index in 1..=3 {
        apply(&store, index, |batch| {
            batch.put(Family::Cell, format!("{index}").as_bytes(), &[7; 10_000])
        });
        assert!(changed());
        store.flush().unwrap();
        assert!(changed());
        let sizes = store.sizes().unwrap();
        let stats = store.stats().unwrap();
        assert_eq!(
            (sizes.live_file_bytes, sizes.memtable_bytes),
            (stats.live_file_bytes, stats.memtable_bytes)
        );
        assert!(sizes.live_file_bytes > 0);
        assert!(!changed(), "looking changes nothing");
    }
    store.compact().unwrap().wait().unwrap();
    assert!(changed());
    let copy = directory.path().join("copy");
    store.checkpoint(&copy).unwrap();
    changed();
    store.install(&copy).unwrap();
    assert!(changed());
}

#[test]
fn a_batch_whose_base_never_took_effect_is_void() {
    let dependency = |chain, position| BatchDependency { term: 4, chain, position };
    let with_dependency = |index, dependency, key: &[u8]| {
        let mut writer = BatchWriter::with_dependency(dependency, 0);
        writer.put(Family::Head, key, b"");
        EntryWrite {
            index,
            log_id: Bytes::from_static(b"id"),
            batch: writer.finish(),
            membership: None,
        }
    };
    let entries = [
        with_dependency(1, dependency(1, 0), b"a"),
        with_dependency(2, dependency(1, 1), b"b"),
        with_dependency(3, dependency(1, 3), b"void"),
        with_dependency(4, dependency(1, 4), b"void"),
        entry(5, |batch| batch.put(Family::Head, b"c", b"")),
        with_dependency(6, dependency(1, 2), b"d"),
        with_dependency(7, dependency(2, 0), b"e"),
        with_dependency(8, dependency(1, 3), b"void"),
        with_dependency(9, dependency(2, 1), b"f"),
        with_dependency(10, BatchDependency { term: 5, ..dependency(2, 2) }, b"void"),
        with_dependency(11, dependency(2, 2), b"g"),
    ];
    for at_once in 1..=entries.len() {
        let directory = tempfile::tempdir().unwrap();
        for group in entries.chunks(at_once) {
            let store = Store::open(&shared(), directory.path()).unwrap();
            store.apply(group, OnStall::Wait).unwrap();
            store.close().unwrap();
        }
        let store = Store::open(&shared(), directory.path()).unwrap();
        assert_eq!(
            keys(&store.snapshot().unwrap(), Family::Head, b"", b"", false),
            ["a", "b", "c", "d", "e", "f", "g"]
        );
        let applied = store.applied().unwrap().unwrap();
        assert_eq!((applied.index, applied.dependency), (11, Some(dependency(2, 2))));
    }
}

/// Waits until the applied entries are in the memtables.
fn drained(shared: &SharedResources) {
    let since = Instant::now();
    while shared.write_buffer_bytes() > 0 {
        assert!(
            since.elapsed() < Duration::from_secs(30),
            "{} bytes still wait",
            shared.write_buffer_bytes()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn applied_entries_reach_the_memtables_automatically() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared();
    let stores: Vec<Store> = (0..3)
        .map(|n| Store::open(&shared, directory.path().join(n.to_string())).unwrap())
        .collect();
    for index in 1..=200 {
        for store in &stores {
            apply(store, index, |batch| {
                batch.put(Family::Head, &index.to_be_bytes(), &[7; 10_000])
            });
        }
    }
    assert!(shared.write_buffer_bytes() > 0);
    drained(&shared);
    for store in &stores {
        assert!(store.sizes().unwrap().memtable_bytes > 2_000_000);
        assert!(
            (1..=200u64)
                .all(|index| store.get(Family::Head, &index.to_be_bytes()).unwrap().is_some())
        );
    }
}

#[test]
fn a_dropped_store_can_be_opened_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared();
    for index in 1..=40 {
        let store = Store::open(&shared, directory.path()).unwrap();
        // This many immutable memtables are written at once.
        for n in 10 * index..10 * index + 10 {
            apply(&store, n, |batch| batch.put(Family::Head, b"a", &[7; 1_000]));
            drop(store.snapshot().unwrap());
        }
        std::thread::sleep(Duration::from_micros(25 * index));
        if index % 2 == 0 {
            store.close().unwrap();
        }
    }
}

#[test]
fn many_stores_with_little_in_each_are_not_flushed_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let shared =
        SharedResources::new(StoreSettings { memtable_bytes: 4 << 20, ..StoreSettings::default() })
            .unwrap();
    let stores: Vec<Store> = (0..100)
        .map(|n| Store::open(&shared, directory.path().join(n.to_string())).unwrap())
        .collect();
    for index in 1..=10 {
        for store in &stores {
            apply(store, index, |batch| {
                for family in Family::ALL {
                    batch.put(family, format!("key{index}").as_bytes(), &[7; 64]);
                }
            });
        }
        drained(&shared);
    }
    let flushed = stores.iter().filter(|store| store.flushed().unwrap().is_some()).count();
    assert_eq!(flushed, 0, "of 100 stores with 10 records of 64 bytes in each family");
    drop(stores);
    let store = Store::open(&shared, directory.path().join("one")).unwrap();
    for index in 1..=80 {
        apply(&store, index, |batch| {
            batch.put(Family::Head, format!("key{index}").as_bytes(), &[7; 100 << 10])
        });
    }
    // A store that is written to is not idle: it is flushed because of the budget.
    let since = Instant::now();
    for index in 81.. {
        if store.flushed().unwrap().is_some() {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "8 MiB of records within a budget of 4");
        apply(&store, index, |batch| batch.put(Family::Head, b"key", &[7; 64]));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_idle_store_is_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let shared = shared();
    let store = Store::open(&shared, directory.path()).unwrap();
    for index in 1..=30 {
        apply(&store, index, |batch| {
            batch.put(Family::Head, &index.to_be_bytes(), &vec![7; 100_000])
        });
    }
    let since = Instant::now();
    while store.flushed().unwrap() != store.applied().unwrap() {
        assert!(since.elapsed() < Duration::from_secs(30), "{:?}", store.stats().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        store.sizes().unwrap().memtable_bytes < 1_000_000
            && shared.memtable_bytes_used() < 1_000_000
    );
}

/// For tens of thousands of a million new keys a Bloom filter errs; the blocks that are
/// read then would fill the cache.
#[test]
fn reads_before_inserts_do_not_fill_the_block_cache() {
    const RECORDS: u32 = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let shared = shared();
    let store = Store::open(&shared, directory.path()).unwrap();
    // In random order, so that the files overlap.
    let key = |n: u32| n.wrapping_mul(0x9e37_79b1).to_be_bytes();
    for file in 0..4 {
        let records = file * RECORDS..(file + 1) * RECORDS;
        apply(&store, u64::from(file) + 1, |batch| {
            records.for_each(|n| batch.put(Family::Head, &key(n), &[7; 100]))
        });
        store.flush().unwrap();
    }
    let grown_by = |looks: &dyn Fn()| {
        let before = shared.cache_used();
        looks();
        shared.cache_used() - before
    };
    let new = 10 * RECORDS..12 * RECORDS;
    let before_writes = grown_by(&|| {
        new.clone()
            .for_each(|n| assert_eq!(store.get_replaced(Family::Head, &key(n)).unwrap(), None))
    });
    let by_readers = grown_by(&|| {
        new.clone().for_each(|n| assert_eq!(store.get(Family::Head, &key(n)).unwrap(), None))
    });
    assert!(
        before_writes < 64 << 10 && by_readers > 512 << 10,
        "{before_writes} and {by_readers} bytes"
    );
    let replaced = grown_by(&|| {
        (0..RECORDS)
            .for_each(|n| assert!(store.get_replaced(Family::Head, &key(n)).unwrap().is_some()))
    });
    assert!(replaced > 512 << 10, "{replaced} bytes: what is replaced is looked at again");
    let full = shared.cache_used();
    store.compact().unwrap().wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while shared.cache_used() > full / 2 {
        assert!(Instant::now() < deadline, "{} of {full} bytes", shared.cache_used());
        std::thread::sleep(Duration::from_millis(20));
    }
}
