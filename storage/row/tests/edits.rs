//! An overlay of edits on a view reads as if they had been applied, in both directions,
//! layer upon layer.

use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;
use row::edits::Overlay;
use row::memory::Memory;
use row::{Edits, Family, View};

#[derive(Debug, Clone)]
enum Change {
    Put(Family, Bytes, Bytes),
    Delete(Family, Bytes),
    Clear,
}

fn family() -> impl Strategy<Value = Family> {
    prop::sample::select(&Family::ALL[..])
}

/// Short keys that meet; those with an `x` are the time index where the family is
/// `State`.
fn name() -> impl Strategy<Value = Bytes> {
    "[abx]{1,2}".prop_map(Bytes::from)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        12 => (family(), name(), "[0-9]")
            .prop_map(|(family, key, value)| Change::Put(family, key, value.into())),
        8 => (family(), name()).prop_map(|(family, key)| Change::Delete(family, key)),
        1 => Just(Change::Clear),
    ]
}

fn edits() -> impl Strategy<Value = Edits> {
    prop::collection::vec(change(), 0..20).prop_map(|changes| {
        let mut edits = Edits::default();
        for change in changes {
            match change {
                Change::Put(family, key, value) => edits.put(family, key, value),
                Change::Delete(family, key) => edits.delete(family, key),
                Change::Clear => edits.clear_rows(),
            }
        }
        edits
    })
}

fn walk(
    view: &dyn View,
    family: Family,
    from: &[u8],
    to: &[u8],
    reverse: bool,
    most: usize,
) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    view.range(family, from, to, reverse, &mut |key, value| {
        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .expect("memory has no faults");
    found
}

proptest! {
    #[test]
    fn over_a_view_as_if_applied(
        base in edits(), first in edits(), second in edits(),
        family in family(), from in name(), to in name(), reverse: bool, most in 1..6usize,
    ) {
        let mut memory = Memory::new();
        memory.apply(base);
        let lower = Overlay { edits: &first, view: &memory };
        let upper = Overlay { edits: &second, view: &lower };

        let mut applied = memory.clone();
        applied.apply(first.clone());
        applied.apply(second.clone());
        prop_assert_eq!(upper.get(family, &from), applied.get(family, &from));
        prop_assert_eq!(
            walk(&upper, family, &from, &to, reverse, most),
            walk(&applied, family, &from, &to, reverse, most)
        );

        let mut merged = first.clone();
        merged.merge(second);
        let bytes = merged
            .iter()
            .map(|(_, key, value)| 12 + key.len() + value.map_or(0, Bytes::len));
        prop_assert_eq!(merged.bytes(), bytes.sum::<usize>());
        let mut at_once = memory.clone();
        at_once.apply(merged);
        prop_assert_eq!(at_once, applied, "merged edits do what both did");
    }
}
