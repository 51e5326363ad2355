//! The expiry cycle's part in a replica: when something is due, and the steps that remove it.

use std::sync::atomic::{AtomicU64, Ordering};

use row::edits::Edits;
use row::{Family, key};

/// The most rows and fields that one step removes, so that a step never holds up a batch for long.
pub(crate) const STEP_MAX: u64 = 1000;

/// When the next row or field of this partition may be due. A lower bound: finding nothing is harmless.
#[derive(Debug)]
pub(crate) struct Expiry {
    next_due_ms: AtomicU64,
    /// Where the walk over rows that only the table's `default_ttl` expires stands; `WALKED` when it is through.
    walk: AtomicU64,
    /// The `default_ttl_since_ms` that the walk belongs to.
    walk_of_ms: AtomicU64,
}

/// No walk is under way.
const WALKED: u64 = u64::MAX;

impl Expiry {
    /// At start something may be due.
    pub(crate) fn new() -> Expiry {
        Expiry { next_due_ms: AtomicU64::new(0), walk: AtomicU64::new(WALKED), walk_of_ms: AtomicU64::new(0) }
    }

    /// A batch gave something an expiry then.
    pub(crate) fn note(&self, due_ms: u64) {
        self.next_due_ms.fetch_min(due_ms, Ordering::AcqRel);
    }

    /// Should a step run now, and where does its walk stand? `rules` tell of a `default_ttl` that is due.
    pub(crate) fn due(&self, now_ms: u64, rules: &row::view::Rules) -> Option<u64> {
        let walk_due = rules.default_ttl_ms > 0 && rules.default_ttl_since_ms.saturating_add(rules.default_ttl_ms) <= now_ms;
        if walk_due && self.walk_of_ms.swap(rules.default_ttl_since_ms, Ordering::AcqRel) != rules.default_ttl_since_ms {
            self.walk.store(0, Ordering::Release);
        }
        let walk = self.walk.load(Ordering::Acquire);
        (now_ms >= self.next_due_ms.load(Ordering::Acquire) || walk != WALKED).then_some(walk)
    }

    /// After a step, by the executor (which is the only one to note or to step): the walk's next place (0 = through), and when the next
    /// entry of the time index is due.
    pub(crate) fn stepped(&self, walked_from: u64, next: u64, next_due_ms: u64) {
        let next = if walked_from == WALKED || next == 0 { WALKED } else { next };
        self.walk.store(next, Ordering::Release);
        self.next_due_ms.store(next_due_ms, Ordering::Release);
    }
}

/// The earliest expiry that a batch sets, ms; `u64::MAX` when it sets none.
pub(crate) fn earliest(edits: &Edits) -> u64 {
    edits
        .iter()
        .take_while(|(family, ..)| *family == Family::State)
        .filter(|(_, _, value)| value.is_some())
        .filter_map(|(_, key, _)| key::parse_time_index(key))
        .map(|(due_ms, ..)| due_ms)
        .min()
        .unwrap_or(u64::MAX)
}
