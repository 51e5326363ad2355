//! The expiry cycle's part in a replica: when something is due, and the steps that remove it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use row::edits::Edits;
use row::{Family, key};

/// The most rows and fields that one step removes, so that a step never holds up a batch for long.
pub(crate) const STEP_MAX: u64 = 1000;

/// When the partitions of a node are to be looked at, by the steady clock, ms: hundreds of them have nothing to remove for hours. They share it.
///
/// Whoever finds something to be due earlier than was known sounds it after having noted that, so that a look that comes after sees it.
#[derive(Debug, Default)]
pub(crate) struct Alarm(AtomicU64);

impl Alarm {
    /// Somebody is to look at once.
    pub(crate) fn sound(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Somebody is to look then, or before.
    pub(crate) fn set(&self, at_ms: u64) {
        self.0.fetch_min(at_ms, Ordering::AcqRel);
    }

    /// Whether to look now; who does must set it again.
    pub(crate) fn rings(&self, now_ms: u64) -> bool {
        self.0.load(Ordering::Acquire) <= now_ms && self.0.swap(u64::MAX, Ordering::AcqRel) <= now_ms
    }
}

/// When the next row or field of this partition may be due. A lower bound: finding nothing is harmless.
#[derive(Debug)]
pub(crate) struct Expiry {
    next_due_ms: AtomicU64,
    /// Where the walk over rows that only the table's `default_ttl` expires stands; `WALKED` when it is through.
    walk: AtomicU64,
    /// The `default_ttl_since_ms` that the walk belongs to.
    walk_of_ms: AtomicU64,
    alarm: Arc<Alarm>,
}

/// What the expiry cycle has to do in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// A step, whose walk stands there.
    Now(u64),
    /// Nothing for so long, ms.
    In(u64),
}

/// No walk is under way.
const WALKED: u64 = u64::MAX;

impl Expiry {
    /// At start something may be due.
    pub(crate) fn new(alarm: Arc<Alarm>) -> Expiry {
        Expiry { next_due_ms: AtomicU64::new(0), walk: AtomicU64::new(WALKED), walk_of_ms: AtomicU64::new(0), alarm }
    }

    /// Something else has changed that [`due`](Expiry::due) or the caller goes by: the rules, who leads.
    pub(crate) fn look(&self) {
        self.alarm.sound();
    }

    /// A batch gave something an expiry then.
    pub(crate) fn note(&self, due_ms: u64) {
        if due_ms < self.next_due_ms.fetch_min(due_ms, Ordering::AcqRel) || due_ms == 0 {
            self.alarm.sound();
        }
    }

    /// Should a step run now? `rules` tell of a `default_ttl` that is due.
    pub(crate) fn due(&self, now_ms: u64, rules: &row::view::Rules) -> Due {
        let mut next_ms = self.next_due_ms.load(Ordering::Acquire);
        if rules.default_ttl_ms > 0 && self.walk_of_ms.load(Ordering::Acquire) != rules.default_ttl_since_ms {
            let walk_ms = rules.default_ttl_since_ms.saturating_add(rules.default_ttl_ms);
            if walk_ms <= now_ms {
                self.walk_of_ms.store(rules.default_ttl_since_ms, Ordering::Release);
                self.walk.store(0, Ordering::Release);
            }
            next_ms = next_ms.min(walk_ms);
        }
        let walk = self.walk.load(Ordering::Acquire);
        match next_ms.saturating_sub(now_ms) {
            0 => Due::Now(walk),
            _ if walk != WALKED => Due::Now(walk),
            left_ms => Due::In(left_ms),
        }
    }

    /// After a step, by the executor (which is the only one to note or to step): the walk's next place (0 = through), and when the next
    /// entry of the time index is due.
    pub(crate) fn stepped(&self, walked_from: u64, next: u64, next_due_ms: u64) {
        let next = if walked_from == WALKED || next == 0 { WALKED } else { next };
        self.walk.store(next, Ordering::Release);
        self.next_due_ms.store(next_due_ms, Ordering::Release);
        self.alarm.sound();
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

#[cfg(test)]
mod tests {
    use row::view::Rules;

    use super::*;

    fn rules(default_ttl_ms: u64, default_ttl_since_ms: u64) -> Rules {
        Rules { default_ttl_ms, default_ttl_since_ms, write_bytes_max: 0, answer_bytes_max: 0 }
    }

    #[test]
    fn what_is_due_earlier_than_was_known_sounds_the_alarm() {
        let alarm = Arc::new(Alarm::default());
        let expiry = Expiry::new(alarm.clone());
        assert!(alarm.rings(1000) && !alarm.rings(1000), "it rings once");
        assert_eq!(expiry.due(1000, &rules(0, 0)), Due::Now(WALKED));
        expiry.stepped(WALKED, 0, u64::MAX);
        assert!(alarm.rings(1000));
        assert_eq!(expiry.due(1000, &rules(0, 0)), Due::In(u64::MAX - 1000));
        expiry.note(u64::MAX);
        assert!(!alarm.rings(1000));
        expiry.note(5000);
        assert!(alarm.rings(1000));
        assert_eq!(expiry.due(1000, &rules(0, 0)), Due::In(4000));
        alarm.set(5000);
        expiry.note(6000);
        assert!(!alarm.rings(4999) && alarm.rings(5000));
        assert_eq!(expiry.due(5000, &rules(0, 0)), Due::Now(WALKED));
    }

    #[test]
    fn a_default_ttl_walks_once_when_it_is_due() {
        let alarm = Arc::new(Alarm::default());
        let expiry = Expiry::new(alarm.clone());
        expiry.stepped(WALKED, 0, u64::MAX);
        assert_eq!(expiry.due(1000, &rules(500, 900)), Due::In(400));
        assert_eq!(expiry.due(1400, &rules(500, 900)), Due::Now(0));
        expiry.stepped(0, 7, u64::MAX);
        assert!(alarm.rings(1400), "it goes on");
        assert_eq!(expiry.due(1400, &rules(500, 900)), Due::Now(7));
        expiry.stepped(7, 0, u64::MAX);
        assert!(matches!(expiry.due(1400, &rules(500, 900)), Due::In(_)));
        assert_eq!(expiry.due(1400, &rules(500, 1000)), Due::In(100));
    }
}
