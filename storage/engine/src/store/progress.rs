//! The last applied entry of a store, and the last one on disk, in memory: Raft's threads
//! read both and must not wait for a disk.
//!
//! The latter is read when it changes: by the RocksDB thread that has flushed, and by the
//! caller that has waited for a flush.
//!
//! # Invariants
//! - The flushed entry is on disk: it is the value that RocksDB returns without its
//!   memtables, at that moment or an earlier one (`tests/store.rs`,
//!   `flushes_that_rocksdb_starts_are_known`).

use std::ffi::{CStr, c_char};

use bytes::Bytes;
use librocksdb_sys as ffi;
use parking_lot::Mutex;

use super::AppliedPoint;

/// RocksDB's `kPersistedTier`: memtables are skipped, because RocksDB's own log is off.
const PERSISTED: i32 = 2;

/// Both entries of one open database.
#[derive(Debug, Default)]
pub(super) struct ApplyProgress {
    applied: Mutex<Option<AppliedPoint>>,
    flushed: Mutex<Option<AppliedPoint>>,
}

impl ApplyProgress {
    pub(super) fn applied(&self) -> Option<AppliedPoint> {
        self.applied.lock().clone()
    }

    pub(super) fn flushed(&self) -> Option<AppliedPoint> {
        self.flushed.lock().clone()
    }

    /// Records an applied entry. If it sets no membership, the previous one stays in
    /// force.
    pub(super) fn set_applied(&self, mut applied: AppliedPoint) {
        let mut before = self.applied.lock();
        applied.membership = applied.membership.or_else(|| before.take()?.membership);
        *before = Some(applied);
    }

    /// Records the entry on disk; the latest of several concurrent reports is kept.
    pub(super) fn set_flushed(&self, flushed: Option<AppliedPoint>) {
        let mut before = self.flushed.lock();
        if flushed.as_ref().map(|flushed| flushed.index)
            >= before.as_ref().map(|before| before.index)
        {
            *before = flushed;
        }
    }
}

/// Reads a record of the family `default` from disk.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn on_disk(db: *mut ffi::rocksdb_t, key: &[u8]) -> Result<Option<Bytes>, String> {
    let mut error: *mut c_char = std::ptr::null_mut();
    // SAFETY: the caller guarantees `db`; everything else is made and freed here.
    unsafe {
        let options = ffi::rocksdb_readoptions_create();
        ffi::rocksdb_readoptions_set_read_tier(options, PERSISTED);
        let value =
            ffi::rocksdb_get_pinned(db, options, key.as_ptr().cast(), key.len(), &raw mut error);
        ffi::rocksdb_readoptions_destroy(options);
        if !error.is_null() {
            let text = CStr::from_ptr(error).to_string_lossy().into_owned();
            ffi::rocksdb_free(error.cast());
            return Err(text);
        }
        if value.is_null() {
            return Ok(None);
        }
        let mut len = 0;
        let bytes = ffi::rocksdb_pinnableslice_value(value, &raw mut len);
        let found = Bytes::copy_from_slice(std::slice::from_raw_parts(bytes.cast::<u8>(), len));
        ffi::rocksdb_pinnableslice_destroy(value);
        Ok(Some(found))
    }
}
