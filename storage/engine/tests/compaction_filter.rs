//! Compaction drops cells of dead generations, and only when no reader and no crash can
//! bring them back.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use engine::batch::{BatchWriter, Family};
use engine::store::{EntryWrite, Liveness, OnStall, Owner, SharedResources, Store, StoreSettings};

/// Heads are named by one byte and hold a generation (8 bytes) or a string. A cell's key
/// is the head's name, the generation, the member.
struct Toy;

impl Liveness for Toy {
    fn find_owner(&self, cell: &[u8], head: &mut Vec<u8>) -> Option<u64> {
        head.push(*cell.first()?);
        Some(u64::from_be_bytes(cell.get(1..9)?.try_into().ok()?))
    }

    fn parse_owner(&self, head: &[u8]) -> Owner {
        match head.len() {
            8 => Owner::Generation(u64::from_be_bytes(head.try_into().unwrap()), None),
            1 => Owner::Nothing,
            _ => Owner::Unreadable,
        }
    }

    fn kept_len(&self, _head: &[u8], _stamp_ms: u64) -> Option<usize> {
        None
    }

    fn stamp_key(&self) -> &[u8] {
        b"stamp"
    }

    fn stamp_ms(&self, _stamp: &[u8]) -> Option<u64> {
        None
    }

    fn counter_key(&self) -> &[u8] {
        b"generation"
    }

    fn first_unused(&self, counter: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(counter.try_into().ok()?) + 1)
    }
}

struct Fixture {
    store: Store,
    index: u64,
    generation: u64,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shared = SharedResources::new(StoreSettings::default()).unwrap();
        let store = Store::open_with_filter(&shared, directory.path(), Arc::new(Toy)).unwrap();
        Self { store, index: 0, generation: 0, _directory: directory }
    }

    fn apply(&mut self, fill: impl FnOnce(&mut BatchWriter)) {
        self.index += 1;
        let mut writer = BatchWriter::new();
        fill(&mut writer);
        let write = EntryWrite {
            index: self.index,
            log_id: Bytes::from_static(b"x"),
            batch: writer.finish(),
            membership: None,
        };
        self.store.apply(&[write], OnStall::Wait).unwrap();
    }

    /// A new collection under `name`: a new generation.
    fn create(&mut self, name: u8, members: u32) {
        self.generation += 1;
        let generation = self.generation;
        self.apply(|batch| {
            batch.put(Family::Default, b"generation", &generation.to_be_bytes());
            batch.put(Family::Head, &[name], &generation.to_be_bytes());
            for member in 0..members {
                batch.put(Family::Cell, &cell(name, generation, member), &[b'v'; 100]);
            }
        });
    }

    fn cells(&self) -> usize {
        let mut cells = 0;
        let each = &mut |_: &[u8], _: &[u8]| {
            cells += 1;
            ControlFlow::Continue(())
        };
        self.store.range(Family::Cell, b"", b"", false, each).unwrap();
        cells
    }

    fn compact(&self) {
        let compaction = self.store.compact().unwrap();
        compaction.wait().unwrap();
        assert_eq!(compaction.progress(), 1.0);
    }
}

fn cell(name: u8, generation: u64, member: u32) -> Vec<u8> {
    [&[name][..], &generation.to_be_bytes(), &member.to_be_bytes()].concat()
}

#[test]
fn dead_generations_are_dropped_and_live_ones_kept() {
    let mut fixture = Fixture::new();
    fixture.create(b'a', 1000);
    fixture.create(b'b', 1000);
    fixture.create(b'c', 1000);
    fixture.create(b'd', 1000);
    fixture.create(b'a', 10); // replaced
    fixture.apply(|batch| batch.delete(Family::Head, b"b")); // deleted
    fixture.apply(|batch| batch.put(Family::Head, b"c", b"s")); // became a string
    fixture.apply(|batch| batch.put(Family::Head, b"d", b"???")); // not understood
    assert_eq!(fixture.cells(), 4010);
    fixture.compact();
    assert_eq!(fixture.cells(), 1010, "10 of a, 1000 of d");
    let stats = fixture.store.stats().unwrap();
    assert_eq!(stats.filtered_cells, 3000);
    assert!(stats.filtered_bytes > 300_000);
}

#[test]
fn cells_are_kept_while_a_reader_can_see_their_head() {
    let mut fixture = Fixture::new();
    fixture.create(b'a', 1000);
    let reader = fixture.store.snapshot().unwrap();
    fixture.apply(|batch| batch.delete(Family::Head, b"a"));
    fixture.compact();
    assert!(reader.get(Family::Head, b"a").unwrap().is_some());
    for member in 0..1000 {
        assert!(
            reader.get(Family::Cell, &cell(b'a', 1, member)).unwrap().is_some(),
            "member {member}"
        );
    }
    drop(reader);
    fixture.compact();
    assert_eq!(fixture.cells(), 0);
}

#[test]
fn cells_of_generations_that_are_not_given_yet_are_kept() {
    let mut fixture = Fixture::new();
    fixture.create(b'a', 10);
    let early = cell(b'z', 99, 1);
    fixture.apply(|batch| batch.put(Family::Cell, &early, b"v"));
    fixture.compact();
    assert_eq!(fixture.cells(), 11);
}

#[test]
fn readers_see_whole_rows_while_compaction_drops_old_ones() {
    let mut fixture = Fixture::new();
    fixture.create(b'a', 200);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (store, stop) = (fixture.store.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut rows = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let snapshot = store.snapshot().unwrap();
                    let head = snapshot.get(Family::Head, b"a").unwrap().unwrap();
                    let generation = u64::from_be_bytes(head[..].try_into().unwrap());
                    std::thread::yield_now();
                    for member in 0..200 {
                        assert!(
                            snapshot
                                .get(Family::Cell, &cell(b'a', generation, member))
                                .unwrap()
                                .is_some(),
                            "member {member} of generation {generation}"
                        );
                    }
                    rows += 1;
                }
                rows
            })
        })
        .collect();
    for _ in 0..30 {
        for _ in 0..5 {
            fixture.create(b'a', 200);
        }
        fixture.compact();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let rows: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    assert!(rows > 30, "{rows} rows read: too few to prove anything");
    fixture.compact();
    assert_eq!(fixture.cells(), 200);
}

#[test]
fn a_clear_gives_its_space_back() {
    let mut fixture = Fixture::new();
    for name in 0..50 {
        fixture.create(name, 2_000);
    }
    fixture.compact();
    let before = fixture.store.stats().unwrap().live_file_bytes;
    let reader = fixture.store.snapshot().unwrap();
    fixture.apply(|batch| {
        batch.clear(Family::Head);
        batch.clear(Family::Cell);
    });
    assert_eq!(fixture.cells(), 0);
    assert!(
        reader.get(Family::Cell, &cell(1, 2, 7)).unwrap().is_some(),
        "who read before goes on reading"
    );
    drop(reader);
    // A clear and later writes in one batch: the writes stay.
    fixture.create(b'x', 100);
    let generation = fixture.generation;
    fixture.apply(|batch| {
        batch.clear(Family::Head);
        batch.clear(Family::Cell);
        batch.put(Family::Head, b"x", &generation.to_be_bytes());
        batch.put(Family::Cell, &cell(b'x', generation, 7), b"v");
    });
    assert_eq!(fixture.cells(), 1);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let now = fixture.store.stats().unwrap().live_file_bytes;
        if now < before / 20 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{now} of {before} bytes are still there");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(fixture.cells(), 1);
}
