//! The expiry cycle's part in a replica: when something is due, where the search for it
//! begins, and the steps that remove it ([`cycle`]).

pub(crate) mod cycle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use row::edits::Edits;
use row::expire::DueItems;
use row::view::Rules;
use row::{Family, key};

/// The next time at which the partitions of a node are to be checked, ms by the process's
/// steady clock. All partitions share it: hundreds of them have nothing to remove for
/// hours.
///
/// A caller that learns of an earlier expiry records it first and then calls
/// [`NextExpiry::wake`], so that the check that follows sees it.
#[derive(Debug, Default)]
pub(crate) struct NextExpiry(AtomicU64);

impl NextExpiry {
    /// Somebody is to look at once.
    pub(crate) fn wake(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Somebody is to look then, or before.
    pub(crate) fn schedule(&self, at_ms: u64) {
        self.0.fetch_min(at_ms, Ordering::AcqRel);
    }

    /// True when the check is due now; the caller then schedules the next one.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.0.load(Ordering::Acquire) <= now_ms
            && self.0.swap(u64::MAX, Ordering::AcqRel) <= now_ms
    }
}

/// The expiry cycle's state for a partition.
#[derive(Debug)]
pub(crate) struct Expiry {
    state: Mutex<ExpiryState>,
    /// The cycle is at work in the partition.
    is_busy: AtomicBool,
    /// The longest that a step has held the executor, ns.
    longest_step_ns: AtomicU64,
    next_expiry: Arc<NextExpiry>,
}

#[derive(Debug, Default)]
struct ExpiryState {
    /// The beginning of the time index: the last search found nothing below it, and
    /// nothing was put there since. Removed entries leave tombstones there.
    from: Bytes,
    /// The time at which the next row or field may be due, ms. It is a lower bound: a
    /// search that finds nothing is harmless.
    next_due_ms: u64,
    /// The earliest time that a batch has put into the time index since the last search
    /// began.
    noted_ms: u64,
    /// Grows whenever all this is forgotten.
    epoch: u64,
    /// The position of the walk over rows that only the table's `default_ttl` expires;
    /// `None`: it is finished.
    walk: Option<u64>,
    /// The `default_ttl_since_ms` that the walk belongs to.
    walk_of_ms: u64,
}

/// The expiry cycle's next work in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpiryWork {
    /// To search for what is due.
    Now,
    /// Nothing for so long, ms.
    In(u64),
}

/// A search that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Search {
    /// The start in the time index; empty = its beginning.
    pub(crate) from: Bytes,
    /// The position of the walk over old rows, if one is under way.
    pub(crate) walk: Option<u64>,
    epoch: u64,
}

impl Expiry {
    /// At start something may be due.
    pub(crate) fn new(next_expiry: Arc<NextExpiry>) -> Expiry {
        Expiry {
            state: Mutex::default(),
            is_busy: AtomicBool::new(false),
            longest_step_ns: AtomicU64::new(0),
            next_expiry,
        }
    }

    /// Something else has changed that [`due`](Expiry::due) or the caller goes by: the
    /// rules, who leads.
    pub(crate) fn wake(&self) {
        self.next_expiry.wake();
    }

    /// Forgets what is known: others may have led meanwhile, or what was found is not
    /// removed.
    pub(crate) fn reset(&self) {
        let mut state = self.state.lock();
        (state.from, state.next_due_ms, state.noted_ms) = (Bytes::new(), 0, 0);
        state.epoch += 1;
        drop(state);
        self.next_expiry.wake();
    }

    /// A batch that is applied put this time into the time index (or left it there);
    /// `u64::MAX`: none.
    pub(crate) fn note_expiry(&self, due_ms: u64) {
        if due_ms == u64::MAX {
            return;
        }
        let mut state = self.state.lock();
        state.noted_ms = state.noted_ms.min(due_ms);
        let is_news = due_ms < state.next_due_ms;
        state.next_due_ms = state.next_due_ms.min(due_ms);
        if key_of(due_ms) < state.from {
            state.from = key_of(due_ms);
        }
        drop(state);
        if is_news {
            self.next_expiry.wake();
        }
    }

    /// Is there something to do now? `rules` tell of a `default_ttl` that is due.
    pub(crate) fn due(&self, now_ms: u64, rules: &Rules) -> ExpiryWork {
        let mut state = self.state.lock();
        let mut next_ms = state.next_due_ms;
        if rules.default_ttl_ms > 0 && state.walk_of_ms != rules.default_ttl_since_ms {
            let walk_ms = rules.default_ttl_since_ms.saturating_add(rules.default_ttl_ms);
            if walk_ms <= now_ms {
                state.walk_of_ms = rules.default_ttl_since_ms;
                state.walk = Some(0);
            }
            next_ms = next_ms.min(walk_ms);
        }
        match next_ms.saturating_sub(now_ms) {
            0 => ExpiryWork::Now,
            _ if state.walk.is_some() => ExpiryWork::Now,
            left_ms => ExpiryWork::In(left_ms),
        }
    }

    /// The cycle begins to work in the partition; `None`: it is at work there already.
    pub(crate) fn start_work(self: &Arc<Self>) -> Option<WorkGuard> {
        (!self.is_busy.swap(true, Ordering::AcqRel)).then(|| WorkGuard(self.clone()))
    }

    /// Before the state to be searched is taken.
    pub(crate) fn begin_search(&self) -> Search {
        let mut state = self.state.lock();
        state.noted_ms = u64::MAX;
        Search { from: state.from.clone(), walk: state.walk, epoch: state.epoch }
    }

    /// A search is over: what it found in the time index, and where its walk over old
    /// rows has come to (0 = through).
    pub(crate) fn end_search(&self, search: &Search, found: &DueItems, walked_to: u64) {
        let mut state = self.state.lock();
        if state.epoch != search.epoch {
            return;
        }
        // What came meanwhile may have come behind the state that was searched.
        state.from = found.from.clone().min(key_of(state.noted_ms));
        state.next_due_ms = found.next_ms.min(state.noted_ms);
        if search.walk.is_some() && state.walk == search.walk {
            state.walk = (walked_to > 0).then_some(walked_to);
        }
    }

    /// A step has held the executor for so long.
    pub(crate) fn record_step(&self, time: Duration) {
        self.longest_step_ns.fetch_max(time.as_nanos() as u64, Ordering::Relaxed);
        metrics::histogram!("bridle_expiry_step_seconds").record(time.as_secs_f64());
    }

    /// The longest that a step has held the executor.
    pub(crate) fn longest_step(&self) -> Duration {
        Duration::from_nanos(self.longest_step_ns.load(Ordering::Relaxed))
    }
}

/// The cycle is at work in a partition, until this is dropped.
#[derive(Debug)]
pub(crate) struct WorkGuard(Arc<Expiry>);

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::Release);
        // What is due next was not asked while it was.
        self.0.next_expiry.wake();
    }
}

/// The first key of a time in the time index.
fn key_of(at_ms: u64) -> Bytes {
    key::time_index(at_ms, key::ExpiryTarget::Row, &[])
}

/// The earliest expiry that a batch sets, ms; `u64::MAX` when it sets none.
pub(crate) fn earliest_expiry(edits: &Edits) -> u64 {
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
    use super::*;

    fn rules(default_ttl_ms: u64, default_ttl_since_ms: u64) -> Rules {
        Rules { default_ttl_ms, default_ttl_since_ms, write_bytes_max: 0, answer_bytes_max: 0 }
    }

    /// A search that finds nothing due, and that the next entry is due then.
    fn nothing(next_ms: u64) -> DueItems {
        let from = if next_ms == u64::MAX { key_of(1001) } else { key_of(next_ms) };
        DueItems { items: Vec::new(), from, next_ms }
    }

    #[test]
    fn an_earlier_expiry_wakes_the_cycle() {
        let next_expiry = Arc::new(NextExpiry::default());
        let expiry = Expiry::new(next_expiry.clone());
        assert!(next_expiry.is_due(1000) && !next_expiry.is_due(1000), "it rings once");
        assert_eq!(expiry.due(1000, &rules(0, 0)), ExpiryWork::Now);
        expiry.end_search(&expiry.begin_search(), &nothing(u64::MAX), 0);
        assert_eq!(expiry.due(1000, &rules(0, 0)), ExpiryWork::In(u64::MAX - 1000));
        expiry.note_expiry(u64::MAX);
        assert!(!next_expiry.is_due(1000));
        expiry.note_expiry(5000);
        assert!(next_expiry.is_due(1000));
        assert_eq!(expiry.due(1000, &rules(0, 0)), ExpiryWork::In(4000));
        next_expiry.schedule(5000);
        expiry.note_expiry(6000);
        assert!(!next_expiry.is_due(4999) && next_expiry.is_due(5000));
        assert_eq!(expiry.due(5000, &rules(0, 0)), ExpiryWork::Now);
    }

    #[test]
    fn a_search_begins_where_the_last_one_found_the_index_to_begin() {
        let expiry = Expiry::new(Arc::default());
        let first = expiry.begin_search();
        assert!(first.from.is_empty());
        expiry.end_search(&first, &nothing(7000), 0);
        assert_eq!(expiry.begin_search().from, key_of(7000));
        // What comes while a search is under way may have come behind the state that it
        // looks at.
        let second = expiry.begin_search();
        expiry.note_expiry(3000);
        expiry.end_search(&second, &nothing(7000), 0);
        assert_eq!(
            (expiry.begin_search().from, expiry.due(1000, &rules(0, 0))),
            (key_of(3000), ExpiryWork::In(2000))
        );
        // Before or after, it is not passed over.
        expiry.end_search(&expiry.begin_search(), &nothing(7000), 0);
        expiry.note_expiry(4000);
        assert_eq!(expiry.begin_search().from, key_of(4000));
        // A search that another leadership began tells nothing.
        let third = expiry.begin_search();
        expiry.reset();
        expiry.end_search(&third, &nothing(7000), 0);
        assert!(expiry.begin_search().from.is_empty());
        assert_eq!(expiry.due(1000, &rules(0, 0)), ExpiryWork::Now);
    }

    #[test]
    fn one_works_at_a_time_and_looks_again_when_done() {
        let next_expiry = Arc::new(NextExpiry::default());
        let expiry = Arc::new(Expiry::new(next_expiry.clone()));
        let work = expiry.start_work().expect("nobody is at work");
        assert!(expiry.start_work().is_none());
        next_expiry.is_due(0);
        drop(work);
        assert!(next_expiry.is_due(0) && expiry.start_work().is_some());
    }

    #[test]
    fn a_default_ttl_walks_once_when_it_is_due() {
        let expiry = Expiry::new(Arc::default());
        expiry.end_search(&expiry.begin_search(), &nothing(u64::MAX), 0);
        assert_eq!(expiry.due(1000, &rules(500, 900)), ExpiryWork::In(400));
        assert_eq!(
            (expiry.due(1400, &rules(500, 900)), expiry.begin_search().walk),
            (ExpiryWork::Now, Some(0))
        );
        expiry.end_search(&expiry.begin_search(), &nothing(u64::MAX), 7);
        assert_eq!(
            (expiry.due(1400, &rules(500, 900)), expiry.begin_search().walk),
            (ExpiryWork::Now, Some(7)),
            "it goes on"
        );
        expiry.end_search(&expiry.begin_search(), &nothing(u64::MAX), 0);
        assert!(matches!(expiry.due(1400, &rules(500, 900)), ExpiryWork::In(_)));
        assert_eq!(expiry.due(1400, &rules(500, 1000)), ExpiryWork::In(100));
    }
}
