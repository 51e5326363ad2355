//! The possible size of an op's answer, known before the op is evaluated. (The size of an
//! actual answer: `op_info.rs`.)
//!
//! The match is total, so that a new op is bounded from the start: an op is
//! [`Large`](AnswerSize::Large) if its answer may be a value or many, and
//! [`Small`](AnswerSize::Small) otherwise.

use crate::op::Op;

/// The possible size of an op's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerSize {
    /// A number, a word or a key; or at most as much as the op itself names.
    Small,
    /// A value, or many.
    Large,
}

/// The longest part of a string that is a small answer, bytes.
const SMALL_PART_BYTES: i64 = 1024;

impl Op {
    /// The possible size of its answer.
    pub fn answer_size(&self) -> AnswerSize {
        let large_if = |is_large| if is_large { AnswerSize::Large } else { AnswerSize::Small };
        match self {
            Op::Inspect { .. }
            | Op::Size { .. }
            | Op::Delete { .. }
            | Op::Expire { .. }
            | Op::Persist { .. } => AnswerSize::Small,
            Op::Rename { .. } | Op::Copy { .. } | Op::Restore { .. } | Op::Encoding { .. } => {
                AnswerSize::Small
            }
            Op::FirstAtOrAfter { .. }
            | Op::Rows
            | Op::Expiring
            | Op::Clear
            | Op::ExpireDue { .. }
            | Op::SetDefaultTtl { .. }
            | Op::AdvanceClock { .. }
            | Op::Watch { .. } => AnswerSize::Small,
            Op::StringSetAllIfAbsent { .. }
            | Op::StringAppend { .. }
            | Op::StringIncr { .. }
            | Op::StringIncrFloat { .. } => AnswerSize::Small,
            Op::StringSetRange { .. } | Op::StringLen { .. } | Op::Sync => AnswerSize::Small,
            Op::HashPut { .. }
            | Op::HashDelete { .. }
            | Op::HashLen { .. }
            | Op::HashIncr { .. }
            | Op::HashIncrFloat { .. } => AnswerSize::Small,
            Op::HashRangeCount { .. } | Op::HashRangeDelete { .. } => AnswerSize::Small,
            // One number for each field that is named.
            Op::HashExpire { .. } | Op::HashExpiry { .. } | Op::HashPersist { .. } => {
                AnswerSize::Small
            }
            Op::StringSet { want_old, .. } => large_if(*want_old),
            Op::CheckAndMutate { want_value, .. } => large_if(*want_value),
            Op::StringGetRange { start, end, .. } => {
                large_if(*start < 0 || *end < 0 || end.saturating_sub(*start) >= SMALL_PART_BYTES)
            }
            Op::Dump { .. } | Op::Scan { .. } => AnswerSize::Large,
            Op::StringGet { .. } | Op::StringGetDelete { .. } | Op::StringGetExpire { .. } => {
                AnswerSize::Large
            }
            Op::HashGet { .. } | Op::HashGetDelete { .. } | Op::HashGetExpire { .. } => {
                AnswerSize::Large
            }
            Op::HashRange { .. } | Op::HashScan { .. } | Op::HashRandom { .. } => AnswerSize::Large,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn reads_of_values_are_large_and_what_names_its_length_is_not() {
        let key = Bytes::from_static(b"a");
        let part = |start, end| Op::StringGetRange { key: key.clone(), start, end }.answer_size();
        assert_eq!(
            (part(0, 100), part(0, -1), part(0, i64::MAX)),
            (AnswerSize::Small, AnswerSize::Large, AnswerSize::Large)
        );
        let random =
            Op::HashRandom { key: key.clone(), count: -100_000, seed: 0, want_values: false };
        assert_eq!(
            (random.answer_size(), Op::StringGet { key }.answer_size()),
            (AnswerSize::Large, AnswerSize::Large)
        );
    }
}
