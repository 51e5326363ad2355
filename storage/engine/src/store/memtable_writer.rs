//! Writes the write buffers to RocksDB's memtables, in large batches: one thread for all
//! stores of a node.
//!
//! A store's records are buffered until the store is idle, until all buffers together are
//! large, or for a few seconds. The memtables of a store that stays idle are flushed if
//! they are worth a file: that frees their memory and leaves nothing to replay.
//!
//! # Invariants
//! - The write buffers of all stores together are bounded
//!   (`the_write_buffer_is_bounded`).
//! - A store with buffered records is in the backlog (`tests/store.rs`,
//!   `applied_entries_reach_the_memtables_automatically`).
//! - A retired store's database is not held here, so it can be opened again at once
//!   (`a_dropped_store_can_be_opened_at_once`, there).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::db::Db;
use super::{Fault, background};

/// Interval of checks of the stores in the backlog. A store without new records for this
/// long counts as idle.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The shortest time between two checks, however urgent.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(1);
/// The time after which the records of a busy store are written. A longer time makes
/// larger writes, in which more was overwritten; a shorter one leaves less to do at once.
const WRITE_AFTER: Duration = Duration::from_secs(5);
/// The memtables of a store that is idle for this long are flushed.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// Fewer bytes are not worth a file.
const FLUSH_BYTES_MIN: usize = 1 << 20;
/// A store with this many immutable memtables is written soon.
const IMMUTABLES_URGENT: usize = 8;
/// The write buffers are written when they exceed half of the budget, or this.
const BUFFER_BYTES_MAX: usize = 32 << 20;

/// The part of a budget for memtables and write buffers that goes to the latter: two
/// fifths, up to a bound.
pub(super) fn write_buffer_part(all: usize) -> usize {
    (all / 5 * 2).min(BUFFER_BYTES_MAX / 3 * 4)
}

/// The thread that writes memtables; it ends when this is dropped.
pub(super) struct MemtableWriter {
    state: Arc<WriterState>,
}

#[derive(Default)]
struct WriterState {
    due: Mutex<Backlog>,
    wakeup: Condvar,
    /// Held while the thread works on a store.
    visit: Mutex<()>,
    total: Arc<AtomicUsize>,
    /// The budget of the memtables of all stores, bytes. The write buffers take up to two
    /// thirds of it in addition.
    budget: usize,
}

#[derive(Default)]
struct Backlog {
    stores: Vec<PendingStore>,
    is_urgent: bool,
    is_over: bool,
}

/// A store that has buffered records, or had some lately.
#[derive(Clone)]
struct PendingStore {
    db: Weak<Db>,
    /// A time at or shortly before the arrival of its oldest buffered record.
    since: Instant,
    /// Its number of additions at the last check.
    additions: u64,
    /// The check that last found new records.
    changed: Instant,
}

impl MemtableWriter {
    /// Starts the thread, for memtables of `budget` bytes in all.
    pub(super) fn start(budget: usize) -> Result<MemtableWriter, Fault> {
        let state = Arc::new(WriterState { budget, ..WriterState::default() });
        let thread = state.clone();
        background::spawn("memtables", move || thread.run())?;
        Ok(MemtableWriter { state })
    }

    /// Bytes of all write buffers.
    pub(super) fn total(&self) -> &Arc<AtomicUsize> {
        &self.state.total
    }

    /// True if the write buffers are full: callers that apply more write the memtables of
    /// their store themselves.
    pub(super) fn is_full(&self) -> bool {
        self.state.total.load(Ordering::Relaxed) >= self.state.hard_limit_bytes()
    }

    /// Adds a store with buffered records and this number of immutable memtables to the
    /// backlog.
    pub(super) fn notify(&self, db: &Arc<Db>, immutables: usize) {
        let is_new = db.mark_pending();
        let is_urgent = immutables >= IMMUTABLES_URGENT || self.state.is_above_soft_limit();
        if !is_new && !is_urgent {
            return;
        }
        let mut due = self.state.due.lock();
        if is_new {
            let now = Instant::now();
            due.stores.push(PendingStore {
                db: Arc::downgrade(db),
                since: now,
                additions: 0,
                changed: now,
            });
        }
        // While the backlog is empty the thread sleeps without a timeout; otherwise it
        // wakes by itself.
        let is_asleep = due.stores.len() == 1 && is_new;
        let is_news = is_urgent && !due.is_urgent;
        due.is_urgent |= is_urgent;
        if is_asleep || is_news {
            self.state.wakeup.notify_one();
        }
    }

    /// Removes a store from the backlog; waits while the thread works on it.
    pub(super) fn retire(&self, db: &Arc<Db>) {
        let mut due = self.state.due.lock();
        due.stores.retain(|store| !std::ptr::eq(store.db.as_ptr(), Arc::as_ptr(db)));
        drop(due);
        drop(self.state.visit.lock());
    }
}

impl Drop for MemtableWriter {
    fn drop(&mut self) {
        self.state.due.lock().is_over = true;
        self.state.wakeup.notify_one();
    }
}

impl WriterState {
    fn soft_limit_bytes(&self) -> usize {
        (self.budget / 2).min(BUFFER_BYTES_MAX)
    }

    fn hard_limit_bytes(&self) -> usize {
        self.soft_limit_bytes() / 3 * 4
    }

    fn is_above_soft_limit(&self) -> bool {
        self.total.load(Ordering::Relaxed) >= self.soft_limit_bytes()
    }

    fn run(&self) {
        while self.wait() {
            let stores = self.due.lock().stores.clone();
            // While there is much in all, only the stores with more than an average part
            // are written.
            let part = if self.is_above_soft_limit() {
                self.soft_limit_bytes() / stores.len().max(1)
            } else {
                usize::MAX
            };
            for store in stores {
                self.visit(store, part);
            }
        }
    }

    /// Waits for the next check; `false` at the end.
    fn wait(&self) -> bool {
        let mut due = self.due.lock();
        while due.stores.is_empty() && !due.is_over {
            self.wakeup.wait(&mut due);
        }
        let now = Instant::now();
        loop {
            let until = now + if due.is_urgent { POLL_INTERVAL_MIN } else { POLL_INTERVAL };
            if due.is_over || self.wakeup.wait_until(&mut due, until).timed_out() {
                break;
            }
        }
        due.is_urgent = false;
        !due.is_over
    }

    /// Does the pending work of a store.
    fn visit(&self, mut store: PendingStore, part: usize) {
        let _visit = {
            let due = self.due.lock();
            // It may have been retired meanwhile.
            if !due.stores.iter().any(|other| other.db.ptr_eq(&store.db)) {
                return;
            }
            self.visit.lock()
        };
        let is_pending = store.db.upgrade().is_some_and(|db| self.look(&db, &mut store, part));
        let mut due = self.due.lock();
        if let Some(at) = due.stores.iter().position(|other| other.db.ptr_eq(&store.db)) {
            if is_pending {
                due.stores[at] = store;
            } else {
                due.stores.remove(at);
            }
        }
    }

    /// Checks a store and writes its buffer if it is time; true if it stays in the
    /// backlog.
    fn look(&self, db: &Arc<Db>, store: &mut PendingStore, part: usize) -> bool {
        let size = db.write_buffer.size();
        let now = Instant::now();
        if size.additions != store.additions {
            (store.additions, store.changed) = (size.additions, now);
        }
        let quiet = now - store.changed;
        let is_large = size.bytes >= part || size.immutables >= IMMUTABLES_URGENT;
        if size.bytes > 0
            && (is_large || quiet >= POLL_INTERVAL || now - store.since >= WRITE_AFTER)
        {
            store.since = now;
            if db.try_write_memtables() && db.memtable_bytes() >= self.budget / 3 {
                db.flush_soon();
            }
            return db.write_fault().is_ok();
        }
        if size.bytes > 0 || quiet < IDLE_AFTER {
            return true;
        }
        if db.memtable_bytes() >= FLUSH_BYTES_MIN {
            db.flush_soon();
        }
        db.clear_pending();
        // Records that arrived meanwhile found it still pending.
        db.write_buffer.size().additions != store.additions && db.mark_pending()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::{BatchWriter, Family};
    use crate::store::{EntryWrite, OnStall, SharedResources, Store, StoreSettings};

    #[test]
    fn memtables_and_write_buffer_share_the_budget() {
        for all in [1 << 20, 8 << 20, 40 << 20, 107 << 20, 512 << 20, 1 << 30] {
            let state =
                WriterState { budget: all - write_buffer_part(all), ..WriterState::default() };
            let both = state.budget + state.hard_limit_bytes();
            assert!(both.abs_diff(all) < 16, "{both} of {all}");
        }
    }

    #[test]
    fn the_write_buffer_is_bounded() {
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
        let full = shared.memtable_writer().state.hard_limit_bytes();
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
        // Each snapshot makes a memtable immutable.
        db.write_memtables(OnStall::Wait).unwrap();
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
