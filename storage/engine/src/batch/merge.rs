//! Several batches as one: what a follower that hears of many entries at once writes.
//!
//! # Invariants
//! - Records after their merger are as after one batch after another (`merged_batches_leave_the_same_records`).

use super::{BadBatch, Change, Family, read};

/// The last word of several batches on a key: its value, or `None` when it is deleted.
pub(crate) type LastWord<'a> = (Family, &'a [u8], Option<&'a [u8]>);

/// What several batches say in the end of each key, in key order, so that what was overwritten is not written at all; empty batches are none. `None` when there are fewer than two, or when
/// one of them deletes more than single keys: their records must then be taken one after another.
pub(crate) fn last_words<'a>(batches: impl Iterator<Item = &'a [u8]> + Clone) -> Result<Option<Vec<LastWord<'a>>>, BadBatch> {
    let batches = batches.filter(|batch| !batch.is_empty());
    if batches.clone().nth(1).is_none() {
        return Ok(None);
    }
    let mut words: Vec<LastWord<'a>> = Vec::new();
    for batch in batches {
        for change in read(batch)? {
            match change? {
                Change::Put { family, key, value } => words.push((family, key, Some(value))),
                Change::Delete { family, key } => words.push((family, key, None)),
                Change::DeleteRange { .. } | Change::Clear { .. } => return Ok(None),
            }
        }
    }
    // Stable: of equal keys the last stays last.
    words.sort_by_key(|(family, key, _)| (*family, *key));
    words.dedup_by(|later, kept| {
        let is_same = (later.0, later.1) == (kept.0, kept.1);
        if is_same {
            *kept = *later;
        }
        is_same
    });
    Ok(Some(words))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::BatchWriter;
    use super::*;

    proptest! {
        #[test]
        fn merged_batches_leave_the_same_records(
            batches in prop::collection::vec(prop::collection::vec((0u8..3, "[a-c]{1,2}", prop::option::of("[x-z]{0,3}")), 0..8), 0..5),
        ) {
            let mut records = BTreeMap::new();
            let written: Vec<_> = batches
                .iter()
                .map(|batch| {
                    let mut writer = BatchWriter::new();
                    for (family, key, value) in batch {
                        let family = Family::from_byte(*family).unwrap();
                        records.insert((family, key.as_bytes()), value.as_ref().map(|value| value.as_bytes()));
                        match value {
                            Some(value) => writer.put(family, key.as_bytes(), value.as_bytes()),
                            None => writer.delete(family, key.as_bytes()),
                        }
                    }
                    writer.finish()
                })
                .collect();
            let merged = last_words(written.iter().map(|batch| &batch[..])).unwrap();
            let expected: Vec<LastWord<'_>> = records.into_iter().map(|((family, key), value)| (family, key, value)).collect();
            prop_assert_eq!(merged, (batches.len() > 1).then_some(expected));
        }
    }

    #[test]
    fn ranges_are_not_merged_and_damage_is_told() {
        let mut range = BatchWriter::new();
        range.delete_range(Family::Head, b"a", b"b");
        let (range, empty) = (range.finish(), BatchWriter::new().finish());
        assert_eq!(last_words([&empty[..], &range].into_iter()).unwrap(), None);
        assert_eq!(last_words([&empty[..], b""].into_iter()).unwrap(), None, "one batch, and an entry without any");
        assert!(last_words([&empty[..], b"\x01\x01"].into_iter()).is_err());
    }
}
