//! Writes what was applied to RocksDB's memtables, a few times a second: one thread for all stores of a node.
//!
//! # Invariants
//! - What waits has a bound, over all stores together (`what_waits_has_a_bound`).
//! - A store with words in front of its memtables is due (`tests/store.rs`, `what_is_applied_gets_to_the_memtables_by_itself`).
//! - Once a store is retired nobody here holds its database: it can be opened again at once (`a_store_that_is_let_go_can_be_opened_at_once`, there).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Fault;
use super::db::Db;

/// How long words gather. Longer makes larger and therefore cheaper writes, shorter less to hold in memory.
const GATHER: Duration = Duration::from_millis(200);
/// With so many bytes in front of all memtables, whoever applies more drains its store itself.
const FULL_BYTES: usize = 8 << 20;

/// The thread that drains; it ends with this.
pub(super) struct Drainer {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    due: Mutex<Due>,
    news: Condvar,
    /// Held while a store is being drained by the thread.
    visit: Mutex<()>,
    total: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Due {
    stores: Vec<Weak<Db>>,
    is_urgent: bool,
    is_over: bool,
}

impl Drainer {
    pub(super) fn start() -> Result<Drainer, Fault> {
        let state: Arc<State> = Arc::default();
        let thread = state.clone();
        std::thread::Builder::new()
            .name("memtables".into())
            .spawn(move || thread.run())
            .map_err(|error| Fault::io("start a thread for memtables", error))?;
        Ok(Drainer { state })
    }

    /// Bytes in front of all memtables.
    pub(super) fn total(&self) -> &Arc<AtomicUsize> {
        &self.state.total
    }

    /// Whether there is no more room in front of the memtables.
    pub(super) fn is_full(&self) -> bool {
        self.state.total.load(Ordering::Relaxed) >= FULL_BYTES
    }

    /// The store has something to drain: soon, or as soon as possible.
    pub(super) fn note(&self, db: &Arc<Db>, is_urgent: bool) {
        let is_new = db.becomes_due();
        if !is_new && !is_urgent {
            return;
        }
        let mut due = self.state.due.lock();
        if is_new {
            due.stores.push(Arc::downgrade(db));
        }
        // The thread sleeps without an end while nothing is due; else it wakes by itself.
        let is_asleep = due.stores.len() == 1 && is_new;
        let is_news = is_urgent && !due.is_urgent;
        due.is_urgent |= is_urgent;
        if is_asleep || is_news {
            self.state.news.notify_one();
        }
    }

    /// The store is not to be drained any more; waits while it is.
    pub(super) fn retire(&self, db: &Arc<Db>) {
        let mut due = self.state.due.lock();
        due.stores.retain(|store| !std::ptr::eq(store.as_ptr(), Arc::as_ptr(db)));
        drop(self.state.visit.lock());
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.state.due.lock().is_over = true;
        self.state.news.notify_one();
    }
}

impl State {
    fn run(&self) {
        while self.gather() {
            let stores = self.due.lock().stores.len();
            (0..stores).for_each(|_| self.visit());
        }
    }

    /// Waits until something is due and has had its time to gather; `false` when it is over.
    fn gather(&self) -> bool {
        let mut due = self.due.lock();
        while due.stores.is_empty() && !due.is_over {
            self.news.wait(&mut due);
        }
        let until = Instant::now() + GATHER;
        while !due.is_urgent && !due.is_over && !self.news.wait_until(&mut due, until).timed_out() {}
        due.is_urgent = false;
        !due.is_over
    }

    /// Drains the store that is due for the longest. If that can't be done now, it is due again, after the others.
    fn visit(&self) {
        let (visit, store) = {
            let due = self.due.lock();
            let Some(store) = due.stores.first().cloned() else { return };
            (self.visit.lock(), store)
        };
        let is_due = store.upgrade().is_some_and(|db| !db.drain_now() && db.becomes_due());
        drop(visit);
        let mut due = self.due.lock();
        // It may have been retired meanwhile.
        if let Some(at) = due.stores.iter().position(|other| other.ptr_eq(&store)) {
            due.stores.remove(at);
            if is_due {
                due.stores.push(store);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::{BatchWriter, Family};
    use crate::store::{Patience, Settings, Shared, Store, Write};

    #[test]
    fn what_waits_has_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::new(Settings::default()).unwrap();
        let store = Store::open(&shared, directory.path()).unwrap();
        let apply = |index, patience| {
            let mut writer = BatchWriter::new();
            writer.put(Family::Head, b"a", &[7; 100_000]);
            store.apply(&[Write { index, log_id: Bytes::new(), batch: writer.finish(), membership: None }], patience)
        };
        let db = store.db().unwrap();
        let held_up = db.hold_up();
        let stalled = (1..1000).find(|index| apply(*index, Patience::Now) == Err(Fault::Stalled)).unwrap();
        assert!((FULL_BYTES..FULL_BYTES + 200_000).contains(&shared.waiting_bytes()), "{}", shared.waiting_bytes());
        assert_eq!(store.applied().unwrap().unwrap().index, stalled - 1);
        drop(held_up);
        apply(stalled, Patience::Wait).unwrap();
        assert_eq!(store.applied().unwrap().unwrap().index, stalled);
        // Each look at all of it seals a piece.
        db.drain(Patience::Wait).unwrap();
        let held_up = db.hold_up();
        let stalled = (stalled + 1..stalled + 100).find(|index| {
            drop(store.snapshot().unwrap());
            apply(*index, Patience::Now) == Err(Fault::Stalled)
        });
        assert!(stalled.is_some() && shared.waiting_bytes() < FULL_BYTES, "{} bytes", shared.waiting_bytes());
        drop(held_up);
        drop(db);
        drop(store);
        assert_eq!(shared.waiting_bytes(), 0);
    }
}
