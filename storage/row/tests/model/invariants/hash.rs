//! Invariants of hashes.

use std::collections::BTreeSet;

use row::key::KeySpace;
use row::value::{Cell, CollectionHead, Hash};

use super::Spaces;

/// The head counts the fields and their expiries, each expiry has its entry, and none is
/// below the floor. Returns the time of the row's entry in the time index.
pub(super) fn check(
    hashkey: &[u8],
    head: &CollectionHead<Hash>,
    mut spaces: Spaces,
) -> Option<u64> {
    let fields = spaces.remove(&KeySpace::Members).unwrap_or_default();
    let stored = spaces.remove(&KeySpace::Expiries).unwrap_or_default();
    assert!(spaces.is_empty(), "{hashkey:?} has cells in spaces of other kinds");
    assert!(stored.values().all(|value| value.is_empty()));
    let stored: BTreeSet<_> = stored.into_keys().map(Vec::from).collect();
    let expiry = |(name, value)| {
        let at: u64 = Cell::decode(value).expect("a cell").header.expires_at_ms?;
        Some([&at.to_be_bytes()[..], name].concat())
    };
    let expected: BTreeSet<_> =
        fields.iter().map(|(name, value)| (&name[..], value)).filter_map(expiry).collect();
    let expiries = &head.own.expiries;
    assert_eq!(head.count, fields.len() as u64, "count of {hashkey:?}");
    assert_eq!(stored, expected, "expiries of {hashkey:?}");
    assert_eq!(expiries.expiring, stored.len() as u64, "how many members of {hashkey:?} expire");
    assert_eq!(expiries.due_ms().is_some(), !stored.is_empty());
    if let (Some(first), Some(due_ms)) = (stored.first(), expiries.due_ms()) {
        let floor = [&due_ms.to_be_bytes()[..], &expiries.floor.name].concat();
        assert!(floor <= *first, "an expiry of {hashkey:?} lies below the floor");
    }
    expiries.due_ms()
}
