//! Invariants of a partition's records.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use row::key::{self, CellKey, ExpiryTarget};
use row::memory::Memory;
use row::op::{Answer, RowContent};
use row::value::{Body, Cell, Head, decode_counter};
use row::view::Rules;
use row::{Edits, Family, Op, PartitionOp, RowOp, Stamp, Tx, View, eval};

/// Counters and time index are exact; every hash has the members and expiries that its
/// head tells.
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
        if let Body::Hash(hash) = head.body {
            assert!(
                hash.generation <= counter(key::GENERATION),
                "a generation that was never given out"
            );
            let mut members = BTreeMap::new();
            let mut expiries = BTreeSet::new();
            for (_, cell_key, value) in
                memory.records().filter(|(family, ..)| *family == Family::Cell)
            {
                let cell_key = CellKey::parse(cell_key).expect("a cell key");
                assert_eq!(cell_key.head()[..8], key::head(cell_key.hashkey)[..8]);
                if (cell_key.hashkey, cell_key.generation) != (hashkey, hash.generation) {
                    continue;
                }
                if cell_key.space == key::Space::Members {
                    members.insert(
                        cell_key.sortkey.to_vec(),
                        Cell::decode(value).expect("a cell").header.expires_at_ms,
                    );
                } else {
                    assert!(value.is_empty());
                    expiries.insert(cell_key.sortkey.to_vec());
                }
            }
            let expected: BTreeSet<_> = members
                .iter()
                .filter_map(|(name, at)| Some([&(*at)?.to_be_bytes()[..], name].concat()))
                .collect();
            assert_eq!(hash.count, members.len() as u64, "count of {hashkey:?}");
            assert_eq!(expiries, expected, "expiries of {hashkey:?}");
            assert_eq!(
                hash.own.expiries.expiring,
                expiries.len() as u64,
                "how many members of {hashkey:?} expire"
            );
            assert_eq!(hash.own.expiries.due_ms().is_some(), !expiries.is_empty());
            if let (Some(first), Some(due_ms)) = (expiries.first(), hash.own.expiries.due_ms()) {
                let floor = [&due_ms.to_be_bytes()[..], &hash.own.expiries.floor.name].concat();
                assert!(floor <= *first, "an expiry of {hashkey:?} lies below the floor");
                index.insert(key::time_index(due_ms, ExpiryTarget::Field, head_key));
            }
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
