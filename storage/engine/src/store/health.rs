//! A store's ability to take writes: errors of RocksDB's background threads, and free
//! space.
//!
//! RocksDB stops taking writes when a flush fails. With an SST file manager it polls for
//! space after "no space left" and resumes automatically. It does not report that it has
//! resumed, so a stopped store is probed with an empty write. Before that happens, writes
//! are refused above while a reserve is left, so that neither RocksDB nor the log fails
//! first.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use librocksdb_sys as ffi;
use parking_lot::Mutex;
use rocksdb::{AsRawPtr, Env, Options};
use tokio::sync::Notify;

use super::fault::{Fault, is_no_space};
use super::progress::{ApplyProgress, on_disk};
use super::read_applied;

/// The time for which a reading of the file system's free space is used.
const SPACE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A store's ability to take writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreHealth {
    /// It takes writes.
    Good,
    /// The file system is full or nearly so: refuse new writes, serve reads, ask again.
    DiskFull(String),
    /// A flush or compaction failed for another reason: the replica is to be set aside.
    Failing(Fault),
}

/// Errors of background threads, and the last reading of the file system.
pub(super) struct BackgroundErrors {
    state: Mutex<HealthState>,
    changes: Arc<ChangeCounter>,
    progress: Arc<ApplyProgress>,
}

/// Counts changes of a store's records and files.
#[derive(Debug, Default)]
pub(super) struct ChangeCounter {
    /// Writes, flushes and compactions so far.
    pub(super) count: AtomicU64,
    /// Notified at the end of a flush.
    pub(super) flushed: Notify,
}

#[derive(Default)]
struct HealthState {
    reported: Option<String>,
    looked: Option<(Instant, Option<String>)>,
}

impl BackgroundErrors {
    pub(super) fn new(changes: Arc<ChangeCounter>, progress: Arc<ApplyProgress>) -> Self {
        BackgroundErrors { state: Mutex::default(), changes, progress }
    }

    pub(super) fn report(&self, error: String) {
        tracing::error!(%error, "RocksDB failed in the background");
        let mut state = self.state.lock();
        // Only errors about space pass; others stay.
        if state.reported.as_ref().is_none_or(|old| is_no_space(old)) {
            state.reported = Some(error);
        }
    }

    /// The reported error, unless it has passed.
    pub(super) fn reported(&self) -> Option<String> {
        self.state.lock().reported.clone()
    }

    /// The store's health; `works` tries a write that changes nothing.
    pub(super) fn health(
        &self,
        directory: &Path,
        reserve: u64,
        works: impl FnOnce() -> bool,
    ) -> StoreHealth {
        let mut state = self.state.lock();
        let fresh = state.looked.as_ref().filter(|(at, _)| at.elapsed() < SPACE_CHECK_INTERVAL);
        let looked_now = fresh.is_none();
        let shortage = match fresh {
            Some((_, shortage)) => shortage.clone(),
            None => space_shortage(directory, reserve),
        };
        if looked_now {
            state.looked = Some((Instant::now(), shortage.clone()));
        }
        match (&state.reported, shortage) {
            (Some(error), _) if !is_no_space(error) => {
                StoreHealth::Failing(Fault::from_text("compact", directory, error.clone()))
            }
            (_, Some(shortage)) => StoreHealth::DiskFull(shortage),
            (Some(error), None) => {
                let error = error.clone();
                if looked_now && works() {
                    state.reported = None;
                    StoreHealth::Good
                } else {
                    StoreHealth::DiskFull(error)
                }
            }
            (None, None) => StoreHealth::Good,
        }
    }
}

/// Describes the shortage when less than `reserve` (on small file systems: a sixteenth)
/// is free. A file system that cannot be read counts as having space.
pub(super) fn space_shortage(directory: &Path, reserve: u64) -> Option<String> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let reserve = reserve.min(stat.f_blocks.saturating_mul(stat.f_frsize) / 16);
    (free < reserve).then(|| {
        format!(
            "{free} bytes are free at {}, less than the reserve of {reserve}",
            directory.display()
        )
    })
}

/// Makes RocksDB resume automatically when a full disk has space again.
pub(super) fn resume_when_space_returns(options: &Options, env: &Env) {
    // SAFETY: `env` and `options` are alive; the options take their own reference to the
    // manager, ours is released.
    unsafe {
        let manager = ffi::rocksdb_sst_file_manager_create(env.as_raw_ptr());
        ffi::rocksdb_options_set_sst_file_manager(options.as_raw_ptr(), manager);
        ffi::rocksdb_sst_file_manager_destroy(manager);
    }
}

/// Sends RocksDB's background errors, flushes and compactions to `background_errors`.
pub(super) fn listen(options: &Options, background_errors: Arc<BackgroundErrors>) {
    let state = Arc::into_raw(background_errors).cast_mut().cast::<c_void>();
    // SAFETY: the listener owns `state` and gives it back in `release`; the options own
    // the listener. RocksDB calls every callback, so none may be null.
    unsafe {
        let listener = ffi::rocksdb_eventlistener_create(
            state,
            Some(release),
            Some(ignore_flush),
            Some(flushed),
            Some(ignore_compaction),
            Some(compacted),
            Some(ignore_subcompaction),
            Some(ignore_subcompaction),
            Some(ignore_ingested),
            Some(background_error),
            Some(ignore_stall),
            Some(ignore_sealed),
        );
        ffi::rocksdb_options_add_eventlistener(options.as_raw_ptr(), listener);
    }
}

unsafe extern "C" fn release(state: *mut c_void) {
    // SAFETY: made by `Arc::into_raw` in `listen`; RocksDB calls this once.
    drop(unsafe { Arc::from_raw(state.cast::<BackgroundErrors>()) });
}

unsafe extern "C" fn background_error(
    state: *mut c_void,
    _reason: u32,
    status: *mut ffi::rocksdb_status_ptr_t,
) {
    let mut text: *mut c_char = std::ptr::null_mut();
    // SAFETY: `state` is alive until `release`; `status` is alive during the call; the
    // text is ours to free.
    unsafe {
        ffi::rocksdb_status_ptr_get_error(status, &raw mut text);
        if !text.is_null() {
            (*state.cast::<BackgroundErrors>())
                .report(CStr::from_ptr(text).to_string_lossy().into_owned());
            ffi::rocksdb_free(text.cast());
        }
    }
}

/// # Safety
/// `state` is that of a listener that is not released.
unsafe fn note_change<'a>(state: *mut c_void) -> &'a ChangeCounter {
    // SAFETY: the caller guarantees it.
    let changes = unsafe { &(*state.cast::<BackgroundErrors>()).changes };
    changes.count.fetch_add(1, Ordering::Release);
    changes
}

unsafe extern "C" fn flushed(
    state: *mut c_void,
    db: *mut ffi::rocksdb_t,
    _: *const ffi::rocksdb_flushjobinfo_t,
) {
    // SAFETY: RocksDB is open while it calls, and holds no lock.
    let flushed = read_applied(|key| unsafe { on_disk(db, key) }, str::to_owned);
    // SAFETY: `state` is alive until `release`.
    let background_errors = unsafe { &*state.cast::<BackgroundErrors>() };
    match flushed {
        Ok(flushed) => background_errors.progress.set_flushed(flushed),
        // The previous value is still on disk.
        Err(error) => tracing::warn!(%error, "cannot read the last applied entry after a flush"),
    }
    // SAFETY: as above.
    unsafe { note_change(state) }.flushed.notify_one();
}

unsafe extern "C" fn compacted(
    state: *mut c_void,
    _: *mut ffi::rocksdb_t,
    _: *const ffi::rocksdb_compactionjobinfo_t,
) {
    // SAFETY: `state` is alive until `release`.
    unsafe { note_change(state) };
}

unsafe extern "C" fn ignore_flush(
    _: *mut c_void,
    _: *mut ffi::rocksdb_t,
    _: *const ffi::rocksdb_flushjobinfo_t,
) {
}
unsafe extern "C" fn ignore_compaction(
    _: *mut c_void,
    _: *mut ffi::rocksdb_t,
    _: *const ffi::rocksdb_compactionjobinfo_t,
) {
}
unsafe extern "C" fn ignore_subcompaction(
    _: *mut c_void,
    _: *const ffi::rocksdb_subcompactionjobinfo_t,
) {
}
unsafe extern "C" fn ignore_ingested(
    _: *mut c_void,
    _: *mut ffi::rocksdb_t,
    _: *const ffi::rocksdb_externalfileingestioninfo_t,
) {
}
unsafe extern "C" fn ignore_stall(_: *mut c_void, _: *const ffi::rocksdb_writestallinfo_t) {}
unsafe extern "C" fn ignore_sealed(_: *mut c_void, _: *const ffi::rocksdb_memtableinfo_t) {}
