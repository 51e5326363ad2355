//! Snapshots of a store: its state at one moment.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{DB, ReadOptions, SnapshotWithThreadMode};

use super::Fault;
use super::db::Db;
use super::write_buffer::ImmutableMemtables;
use crate::batch::Family;

/// The state of a store at one moment, unaffected by later writes. It keeps the database
/// open, and old versions of records on disk, until it is dropped. So it is meant for one
/// batch or one step of a scan, not for a session.
pub struct Snapshot {
    /// The records that RocksDB does not have yet.
    immutables: ImmutableMemtables,
    // Dropped before `db`, which it points into.
    pinned: Arc<PinnedSnapshot>,
    db: Arc<Db>,
}

impl Snapshot {
    pub(super) fn new(db: Arc<Db>) -> Self {
        let (immutables, pinned) = db.consistent_view();
        Self { immutables, pinned, db }
    }

    /// The value of `key`.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.immutables.get(family, key) {
            Some(point) => Ok(point.map(Bytes::copy_from_slice)),
            None => self.db.get(&self.pinned.options, family, key),
        }
    }

    /// Visits the records with `from <= key < to` in key order, or in reverse, until
    /// `each` breaks. An empty `to` means no upper end.
    pub fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.pinned.snapshot);
        let mut points = self.immutables.range(family, from, to, reverse).peekable();
        let mut flow = ControlFlow::Continue(());
        self.db.range(options, family, from, to, reverse, &mut |key, value| {
            while let Some((before, point)) =
                points.next_if(|(word_key, _)| comes_before(word_key, key, reverse))
            {
                if let Some(value) = point {
                    flow = each(before, value);
                }
                if flow.is_break() {
                    return flow;
                }
            }
            flow = match points.next_if(|(word_key, _)| *word_key == key) {
                Some((_, Some(value))) => each(key, value),
                Some((_, None)) => ControlFlow::Continue(()),
                None => each(key, value),
            };
            flow
        })?;
        if flow.is_continue() {
            let _ = points
                .filter_map(|(key, point)| Some((key, point?)))
                .map(|(key, value)| each(key, value))
                .find(ControlFlow::is_break);
        }
        Ok(())
    }
}

fn comes_before(a: &[u8], b: &[u8], reverse: bool) -> bool {
    if reverse { a > b } else { a < b }
}

/// A RocksDB snapshot. It does not keep the database open.
pub(super) struct PinnedSnapshot {
    options: ReadOptions,
    snapshot: SnapshotWithThreadMode<'static, DB>,
    number: u64,
    open_snapshots: Arc<OpenSnapshots>,
}

impl PinnedSnapshot {
    pub(super) fn options(&self) -> &ReadOptions {
        &self.options
    }

    pub(super) fn snapshot(&self) -> &SnapshotWithThreadMode<'static, DB> {
        &self.snapshot
    }
}

impl Drop for PinnedSnapshot {
    fn drop(&mut self) {
        self.open_snapshots.live.lock().retain(|(number, _)| *number != self.number);
    }
}

/// The snapshots that readers hold, oldest first. The compaction filters must not drop
/// records that the oldest of them can see.
#[derive(Default)]
pub(super) struct OpenSnapshots {
    next: AtomicU64,
    // There are few, and nearly all are dropped in the order of their creation: a list is
    // faster than a tree.
    live: Mutex<Vec<(u64, std::sync::Weak<PinnedSnapshot>)>>,
}

impl OpenSnapshots {
    /// Takes a snapshot of `db` and lists it.
    ///
    /// # Safety
    /// `db` must outlive the result, wherever that is moved.
    pub(super) unsafe fn pin(self: &Arc<Self>, db: &DB) -> Arc<PinnedSnapshot> {
        // SAFETY: the caller keeps `db` alive for as long as the snapshot.
        let db: &'static DB = unsafe { &*std::ptr::from_ref(db) };
        // Under the lock, so that the list is complete and in the order of the snapshots'
        // sequence numbers.
        let mut live = self.live.lock();
        let snapshot = db.snapshot();
        let mut options = ReadOptions::default();
        options.set_snapshot(&snapshot);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let pinned =
            Arc::new(PinnedSnapshot { options, snapshot, number, open_snapshots: self.clone() });
        live.push((number, Arc::downgrade(&pinned)));
        pinned
    }

    /// The oldest open snapshot.
    pub(super) fn oldest(&self) -> Option<Arc<PinnedSnapshot>> {
        // Upgraded under the lock, but released outside of it: dropping the last
        // reference locks again.
        let live = self.live.lock();
        live.iter().find_map(|(_, pinned)| pinned.upgrade())
    }

    /// Waits until all snapshots that are open now are dropped, or until `deadline`; true
    /// if they are.
    pub(super) fn wait_for_older(&self, deadline: Instant) -> bool {
        // A snapshot gets its number under the lock: one that was taken before has it by
        // now.
        let newest = {
            let _live = self.live.lock();
            self.next.load(Ordering::Relaxed)
        };
        loop {
            if self.live.lock().iter().all(|(number, _)| *number >= newest) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
