//! The budget of all memtables, and each open store's part of it.
//!
//! RocksDB flushes a store when it writes while all stores together are over the budget. Empty memtables must therefore be small beside it, however
//! many there are (`tests/store.rs`, `many_stores_with_little_in_each_are_not_flushed_for_it`).

use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::WriteBufferManager;

/// What an empty memtable of a store takes at most, all families together, and some room to write to. When there are so many stores that this
/// would not fit the budget, the budget grows: or RocksDB would flush a store at each of its writes.
const STORE_BYTES: usize = 64 << 10;
/// The part of a memtable that a filter of its keys takes.
pub(super) const FILTER_RATIO: f64 = 0.005;
/// The part of the budget that all filters may take: stores beyond go without.
const FILTERS_PART: usize = 8;

/// The budget of all memtables.
pub(super) struct Memtables {
    manager: WriteBufferManager,
    /// As configured.
    bytes: usize,
    open: Mutex<Open>,
}

/// The stores that are open, and those of them whose memtables have filters.
#[derive(Default)]
struct Open {
    stores: usize,
    filtered: usize,
}

/// An open store's part of the memtables.
pub(super) struct Part {
    memtables: Arc<Memtables>,
    is_filtered: bool,
}

impl Memtables {
    pub(super) fn new(bytes: usize) -> Memtables {
        Memtables { manager: WriteBufferManager::new_write_buffer_manager(bytes, false), bytes, open: Mutex::default() }
    }

    /// For a store that is about to be opened.
    pub(super) fn part(self: &Arc<Self>) -> Part {
        let mut open = self.open.lock();
        let is_filtered = (open.filtered + 1) * self.filter_bytes() <= self.bytes / FILTERS_PART;
        open.stores += 1;
        open.filtered += usize::from(is_filtered);
        self.resize(&open);
        Part { memtables: self.clone(), is_filtered }
    }

    pub(super) fn manager(&self) -> &WriteBufferManager {
        &self.manager
    }

    /// Bytes of memtables, all stores.
    pub(super) fn used(&self) -> usize {
        self.manager.get_usage()
    }

    /// The two families with filters.
    fn filter_bytes(&self) -> usize {
        (2.0 * FILTER_RATIO * self.bytes as f64) as usize
    }

    fn resize(&self, open: &Open) {
        self.manager.set_buffer_size(self.bytes.max(open.stores * STORE_BYTES));
    }
}

impl Part {
    /// Whether the store's memtables have filters of their keys.
    pub(super) fn is_filtered(&self) -> bool {
        self.is_filtered
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut open = self.memtables.open.lock();
        open.stores -= 1;
        open.filtered -= usize::from(self.is_filtered);
        self.memtables.resize(&open);
    }
}
