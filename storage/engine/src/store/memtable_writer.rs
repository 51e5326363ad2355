//! Writes what was applied to RocksDB's memtables, much of it at a time: one thread for
//! all stores of a node.
//!
//! A store's words gather until it rests, until there are many in all, or for a few
//! seconds. What rests longer is flushed, when it is worth a file: it takes no memory
//! then, and nothing has to be replayed.
//!
//! # Invariants
//! - What waits has a bound, over all stores together (`what_waits_has_a_bound`).
//! - A store with words in front of its memtables is due (`tests/store.rs`,
//!   `what_is_applied_gets_to_the_memtables_by_itself`).
//! - Once a store is retired nobody here holds its database: it can be opened again at
//!   once (`a_store_that_is_let_go_can_be_opened_at_once`, there).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::db::Db;
use super::{Fault, background};

/// How often stores that are due are looked at; one to which no words came for so long
/// rests.
const LOOK: Duration = Duration::from_millis(250);
/// The shortest time between two looks, however urgent.
const PAUSE: Duration = Duration::from_millis(1);
/// How long words gather in a store that does not rest. Longer makes larger writes, in
/// which more was overwritten; shorter leaves less to do at once.
const GATHER: Duration = Duration::from_secs(5);
/// The memtables of a store that rests for so long are flushed.
const REST: Duration = Duration::from_secs(1);
/// Less than this is not worth a file of its own.
const FILE_BYTES: usize = 1 << 20;
/// With so many sealed pieces a store had better be drained soon.
const MANY_PIECES: usize = 8;
/// Words are drained when they are more than a half of the budget, and more than this is
/// not worth the wait.
const LARGE_BYTES: usize = 32 << 20;

/// Of so many bytes for memtables and what gathers in front of them, the part of the
/// latter: two fifths, as far as that is worth the wait.
pub(super) fn front_bytes(all: usize) -> usize {
    (all / 5 * 2).min(LARGE_BYTES / 3 * 4)
}

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
    /// The budget of the memtables of all stores; bytes. Words take up to two thirds of
    /// it on top.
    budget: usize,
}

#[derive(Default)]
struct Due {
    stores: Vec<DueStore>,
    is_urgent: bool,
    is_over: bool,
}

/// A store that has something to drain, or had lately.
#[derive(Clone)]
struct DueStore {
    db: Weak<Db>,
    /// When the oldest word came that was not drained, or a little earlier.
    since: Instant,
    /// How often words had come by the last look.
    additions: u64,
    /// At which look there were the last new ones.
    changed: Instant,
}

impl Drainer {
    /// For stores whose memtables are to take `budget` bytes.
    pub(super) fn start(budget: usize) -> Result<Drainer, Fault> {
        let state = Arc::new(State { budget, ..State::default() });
        let thread = state.clone();
        background::spawn("memtables", move || thread.run())?;
        Ok(Drainer { state })
    }

    /// Bytes in front of all memtables.
    pub(super) fn total(&self) -> &Arc<AtomicUsize> {
        &self.state.total
    }

    /// Whether there is no more room in front of the memtables: whoever applies more
    /// drains its store itself.
    pub(super) fn is_full(&self) -> bool {
        self.state.total.load(Ordering::Relaxed) >= self.state.full_bytes()
    }

    /// The store has something to drain, and so many sealed pieces.
    pub(super) fn note(&self, db: &Arc<Db>, pieces: usize) {
        let is_new = db.becomes_due();
        let is_urgent = pieces >= MANY_PIECES || self.state.is_much();
        if !is_new && !is_urgent {
            return;
        }
        let mut due = self.state.due.lock();
        if is_new {
            let now = Instant::now();
            due.stores.push(DueStore {
                db: Arc::downgrade(db),
                since: now,
                additions: 0,
                changed: now,
            });
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
        due.stores.retain(|store| !std::ptr::eq(store.db.as_ptr(), Arc::as_ptr(db)));
        drop(due);
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
    fn much_bytes(&self) -> usize {
        (self.budget / 2).min(LARGE_BYTES)
    }

    fn full_bytes(&self) -> usize {
        self.much_bytes() / 3 * 4
    }

    fn is_much(&self) -> bool {
        self.total.load(Ordering::Relaxed) >= self.much_bytes()
    }

    fn run(&self) {
        while self.wait() {
            let stores = self.due.lock().stores.clone();
            // While there is much in all, it goes where most is.
            let part =
                if self.is_much() { self.much_bytes() / stores.len().max(1) } else { usize::MAX };
            for store in stores {
                self.visit(store, part);
            }
        }
    }

    /// Waits until something is due and has had its time; `false` when it is over.
    fn wait(&self) -> bool {
        let mut due = self.due.lock();
        while due.stores.is_empty() && !due.is_over {
            self.news.wait(&mut due);
        }
        let now = Instant::now();
        loop {
            let until = now + if due.is_urgent { PAUSE } else { LOOK };
            if due.is_over || self.news.wait_until(&mut due, until).timed_out() {
                break;
            }
        }
        due.is_urgent = false;
        !due.is_over
    }

    /// Does for a store what is to be done now.
    fn visit(&self, mut store: DueStore, part: usize) {
        let _visit = {
            let due = self.due.lock();
            // It may have been retired meanwhile.
            if !due.stores.iter().any(|other| other.db.ptr_eq(&store.db)) {
                return;
            }
            self.visit.lock()
        };
        let is_due = store.db.upgrade().is_some_and(|db| self.look(&db, &mut store, part));
        let mut due = self.due.lock();
        if let Some(at) = due.stores.iter().position(|other| other.db.ptr_eq(&store.db)) {
            if is_due {
                due.stores[at] = store;
            } else {
                due.stores.remove(at);
            }
        }
    }

    /// Looks at a store; says whether it is to be looked at again.
    fn look(&self, db: &Arc<Db>, store: &mut DueStore, part: usize) -> bool {
        let amount = db.write_buffer.amount();
        let now = Instant::now();
        if amount.additions != store.additions {
            (store.additions, store.changed) = (amount.additions, now);
        }
        let quiet = now - store.changed;
        let is_large = amount.bytes >= part || amount.pieces >= MANY_PIECES;
        if amount.bytes > 0 && (is_large || quiet >= LOOK || now - store.since >= GATHER) {
            store.since = now;
            if db.drain_now() && db.memtable_bytes() >= self.budget / 3 {
                db.flush_soon();
            }
            return db.failed().is_ok();
        }
        if amount.bytes > 0 || quiet < REST {
            return true;
        }
        if db.memtable_bytes() >= FILE_BYTES {
            db.flush_soon();
        }
        db.is_not_due();
        // Words that came meanwhile found it due.
        db.write_buffer.amount().additions != store.additions && db.becomes_due()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::{BatchWriter, Family};
    use crate::store::{EntryWrite, OnStall, SharedResources, Store, StoreSettings};

    #[test]
    fn memtables_and_what_precedes_them_share_what_there_is() {
        for all in [1 << 20, 8 << 20, 40 << 20, 107 << 20, 512 << 20, 1 << 30] {
            let state = State { budget: all - front_bytes(all), ..State::default() };
            let both = state.budget + state.full_bytes();
            assert!(both.abs_diff(all) < 16, "{both} of {all}");
        }
    }

    #[test]
    fn what_waits_has_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let shared = SharedResources::new(StoreSettings::default()).unwrap();
        let store = Store::open(&shared, directory.path()).unwrap();
        let apply = |index: u64, on_stall| {
            let mut writer = BatchWriter::new();
            writer.put(Family::Head, &index.to_be_bytes(), &[7; 100_000]);
            store.apply(
                &[EntryWrite {
                    index,
                    log_id: Bytes::new(),
                    batch: writer.finish(),
                    membership: None,
                }],
                on_stall,
            )
        };
        let full = shared.drainer().state.full_bytes();
        let db = store.db().unwrap();
        let held_up = db.hold_up();
        let stalled =
            (1..1000).find(|index| apply(*index, OnStall::Fail) == Err(Fault::Stalled)).unwrap();
        assert!(
            (full..full + 600_000).contains(&shared.write_buffer_bytes()),
            "{} of {full}",
            shared.write_buffer_bytes()
        );
        assert_eq!(store.applied().unwrap().unwrap().index, stalled - 1);
        drop(held_up);
        apply(stalled, OnStall::Wait).unwrap();
        assert_eq!(store.applied().unwrap().unwrap().index, stalled);
        // Each look at all of it seals a piece.
        db.drain(OnStall::Wait).unwrap();
        let held_up = db.hold_up();
        let stalled = (stalled + 1..stalled + 100).find(|index| {
            drop(store.snapshot().unwrap());
            apply(*index, OnStall::Fail) == Err(Fault::Stalled)
        });
        assert!(
            stalled.is_some() && shared.write_buffer_bytes() < full,
            "{} bytes",
            shared.write_buffer_bytes()
        );
        drop(held_up);
        drop(db);
        drop(store);
        assert_eq!(shared.write_buffer_bytes(), 0);
    }
}
