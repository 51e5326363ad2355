//! The budget of all memtables, and each open store's part of it.
//!
//! RocksDB flushes a store when it writes while all stores together are over the budget.
//! Empty memtables must therefore be small beside it, however many there are
//! (`tests/store.rs`, `many_stores_with_little_in_each_are_not_flushed_for_it`).

use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::WriteBufferManager;

/// What an empty memtable of a store takes at most, all families together, and some room
/// to write to. When there are so many stores that this would not fit the budget, the
/// budget grows: or RocksDB would flush a store at each of its writes.
const STORE_BYTES: usize = 64 << 10;
/// The part of the budget that the filter of a memtable's keys takes.
const BUDGET_PER_FILTER: usize = 200;
/// It takes this at most: it takes its memory at once, of stores that hold next to
/// nothing as well.
const FILTER_BYTES_MAX: usize = 512 << 10;
/// The part of the budget that all filters may take: stores beyond go without.
const FILTERS_PART: usize = 8;

/// The families of a store whose memtables may have filters.
const FAMILIES: usize = 2;

/// The budget of all memtables.
pub(super) struct MemtableBudget {
    manager: WriteBufferManager,
    /// As configured.
    bytes: usize,
    open: Mutex<OpenStores>,
}

/// The stores that are open, and those of them whose memtables have filters.
#[derive(Default)]
struct OpenStores {
    stores: usize,
    filtered: usize,
}

/// An open store's part of the memtables.
pub(super) struct StoreShare {
    memtables: Arc<MemtableBudget>,
    is_filtered: bool,
}

impl MemtableBudget {
    pub(super) fn new(bytes: usize) -> MemtableBudget {
        MemtableBudget {
            manager: WriteBufferManager::new_write_buffer_manager(bytes, false),
            bytes,
            open: Mutex::default(),
        }
    }

    /// For a store that is about to be opened.
    pub(super) fn share(self: &Arc<Self>) -> StoreShare {
        let mut open = self.open.lock();
        let is_filtered =
            (open.filtered + 1) * FAMILIES * self.filter_bytes() <= self.bytes / FILTERS_PART;
        open.stores += 1;
        open.filtered += usize::from(is_filtered);
        self.resize(&open);
        StoreShare { memtables: self.clone(), is_filtered }
    }

    pub(super) fn manager(&self) -> &WriteBufferManager {
        &self.manager
    }

    /// Bytes of memtables, all stores.
    pub(super) fn used(&self) -> usize {
        self.manager.get_usage()
    }

    /// Of one memtable's filter.
    fn filter_bytes(&self) -> usize {
        (self.bytes / BUDGET_PER_FILTER).min(FILTER_BYTES_MAX)
    }

    fn resize(&self, open: &OpenStores) {
        self.manager.set_buffer_size(self.bytes.max(open.stores * STORE_BYTES));
    }
}

impl StoreShare {
    /// The filters of the store's memtables take so many bytes each; `None`: they have
    /// none.
    pub(super) fn filter_bytes(&self) -> Option<usize> {
        self.is_filtered.then(|| self.memtables.filter_bytes())
    }
}

impl Drop for StoreShare {
    fn drop(&mut self) {
        let mut open = self.memtables.open.lock();
        open.stores -= 1;
        open.filtered -= usize::from(self.is_filtered);
        self.memtables.resize(&open);
    }
}
