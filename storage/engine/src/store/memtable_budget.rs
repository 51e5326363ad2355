//! The budget of all memtables, and each open store's share of it.
//!
//! RocksDB flushes a store that writes while all stores together exceed the budget. Empty
//! memtables must therefore be small in comparison, however many there are
//! (`tests/store.rs`, `many_stores_with_little_in_each_are_not_flushed_for_it`).

use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::WriteBufferManager;

/// The size of a store's empty memtables, all families together, with some room to write.
/// If the budget is smaller than this times the number of stores, it grows: otherwise
/// RocksDB would flush a store at each of its writes.
const STORE_BYTES: usize = 64 << 10;
/// The part of the budget that the Bloom filter of one memtable takes.
const BUDGET_PER_FILTER: usize = 200;
/// The upper bound of a filter. Its memory is allocated at once, for nearly empty stores
/// as well.
const FILTER_BYTES_MAX: usize = 512 << 10;
/// The part of the budget that all filters together may take. Further stores get none.
const FILTERS_PART: usize = 8;

/// The families of a store whose memtables may have filters.
const FAMILIES: usize = 2;

/// The budget of all memtables.
pub(super) struct MemtableBudget {
    manager: WriteBufferManager,
    /// The configured budget.
    bytes: usize,
    open: Mutex<OpenStores>,
}

/// The number of open stores, and of those whose memtables have filters.
#[derive(Default)]
struct OpenStores {
    stores: usize,
    filtered: usize,
}

/// An open store's share of the memtables.
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

    /// The share of a store that is about to be opened.
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

    /// Bytes of the memtables of all stores.
    pub(super) fn used(&self) -> usize {
        self.manager.get_usage()
    }

    /// Bytes of one memtable's filter.
    fn filter_bytes(&self) -> usize {
        (self.bytes / BUDGET_PER_FILTER).min(FILTER_BYTES_MAX)
    }

    fn resize(&self, open: &OpenStores) {
        self.manager.set_buffer_size(self.bytes.max(open.stores * STORE_BYTES));
    }
}

impl StoreShare {
    /// Bytes of the filter of each of the store's memtables; `None` if they have none.
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
