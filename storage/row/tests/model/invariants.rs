//! Invariants of a partition's records. Each kind of rows with cells has its file.

mod hash;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use row::key::{self, CellKey, ExpiryTarget, KeySpace};
use row::memory::Memory;
use row::op::{Answer, RowContent};
use row::value::{Body, Head, decode_counter};
use row::view::Rules;
use row::{Edits, Family, Op, PartitionOp, RowOp, Stamp, Tx, View, eval};

/// The cells of one generation of a row, by space and sortkey.
type Spaces = BTreeMap<KeySpace, BTreeMap<Bytes, Bytes>>;

fn spaces(memory: &Memory, hashkey: &[u8], generation: u64) -> Spaces {
    let mut spaces = Spaces::new();
    for (_, key, value) in memory.records().filter(|(family, ..)| *family == Family::Cell) {
        let cell = CellKey::parse(key).expect("a cell key");
        assert_eq!(cell.head()[..8], key::head(cell.hashkey)[..8]);
        if (cell.hashkey, cell.generation) == (hashkey, generation) {
            let sortkey = key.slice_ref(cell.sortkey);
            spaces.entry(cell.space).or_default().insert(sortkey, value.clone());
        }
    }
    spaces
}

/// Counters and time index are exact; every row has the cells that its head tells: each
/// kind has its own check.
pub(crate) fn check(memory: &Memory) {
    let counter = |name| {
        memory
            .get(Family::State, name)
            .expect("memory has no faults")
            .map_or(0, |n| decode_counter(&n).expect("a counter"))
    };
    let mut index = BTreeSet::new();
    let mut heads = 0;
    for (_, head_key, value) in memory.records().filter(|(family, ..)| *family == Family::Head) {
        heads += 1;
        let head = Head::decode(value).expect("a head");
        let hashkey = key::head_hashkey(head_key).expect("a head key");
        assert_eq!(key::head(hashkey)[..], head_key[..]);
        index.extend(
            head.header.expires_at_ms.map(|at| key::time_index(at, ExpiryTarget::Row, head_key)),
        );
        if let Some(collection) = head.body.collection() {
            assert!(
                collection.generation <= counter(key::GENERATION),
                "a generation that was never given out"
            );
            let spaces = spaces(memory, hashkey, collection.generation);
            let due_ms = match &head.body {
                Body::String(_) => panic!("a string has no cells"),
                Body::Hash(hash) => hash::check(hashkey, hash, spaces),
            };
            index.extend(due_ms.map(|at| key::time_index(at, ExpiryTarget::Field, head_key)));
        }
    }
    let stored: BTreeSet<Bytes> = memory
        .records()
        .filter(|(family, key, _)| *family == Family::State && key.starts_with(key::TIME_INDEX))
        .map(|(_, key, _)| key.clone())
        .collect();
    assert_eq!(stored, index, "the time index");
    assert_eq!(counter(key::ROWS), heads, "the counter of rows");
    let expiring = index
        .iter()
        .filter(|entry| matches!(key::parse_time_index(entry), Some((_, ExpiryTarget::Row, _))))
        .count() as u64;
    assert_eq!(counter(key::EXPIRING), expiring, "the counter of rows that expire");
}

/// Readers see the same as the model.
pub(crate) fn same(
    memory: &Memory,
    model: &BTreeMap<Bytes, (RowContent, Option<u64>)>,
    stamp: Stamp,
    rules: Rules,
) {
    let mut edits = Edits::default();
    let mut tx = Tx { view: memory, edits: &mut edits, stamp, rules };
    let mut seen = BTreeMap::new();
    let mut cursor = 0;
    loop {
        let answer = eval(
            &Op::Partition(PartitionOp::Scan { cursor, count: 2, glob: None, kind: None }),
            &mut tx,
        )
        .expect("scans");
        let Answer::Page { keys, next, .. } = answer else { panic!("no page: {answer:?}") };
        for key in keys {
            let Ok(Answer::RowContent { content, expires_at_ms }) =
                eval(&Op::Row(RowOp::Dump { key: key.clone().into() }), &mut tx)
            else {
                panic!("{key:?} is gone")
            };
            seen.insert(key, (content, expires_at_ms));
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(&seen, model, "what a scan sees at {}", stamp.now_ms);
}
