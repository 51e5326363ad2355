//! The log's maintenance thread: work that must not delay an append.
//!
//! It prepares the next segment, monitors the disks (those of an idle log as well), syncs
//! on time where appends do not (`Interval`, `Os`), writes committed ids that no append
//! has carried, recycles or removes obsolete segments, and relocates entries of old ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::segment::{self, Segment};
use super::{Durability, HEALTHY_FSYNC_MAX, LogError, LogInner};

/// Requests to the maintenance thread.
#[derive(Default)]
pub(crate) struct MaintenanceWork {
    pub(crate) obsolete: Vec<Arc<Segment>>,
    pub(crate) woken: bool,
}

/// Interval of the work that nothing triggers.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before another attempt to make a spare.
const SPARE_RETRY_DELAY: Duration = Duration::from_millis(250);

pub(crate) fn run(shared: &LogInner) {
    let mut last_tick = Instant::now();
    while !shared.closing.load(Ordering::Acquire) && shared.alive().is_ok() {
        let has_spare = !shared.needs_spare() || shared.make_spare();
        if last_tick.elapsed() >= MAINTENANCE_INTERVAL {
            last_tick = Instant::now();
            shared.queue_committed();
            shared.disk_monitor.check_space(
                &*shared.options.disk,
                [&shared.options.dir].into_iter().chain(&shared.options.watched),
            );
            if let Err(e) = mark_idle_log(shared) {
                return shared.poison(&e);
            }
        }
        let more = match sync(shared)
            .and_then(|()| remove(shared))
            .and_then(|()| relocate_entries(shared))
        {
            Ok(more) => more,
            Err(e) => return shared.poison(&e),
        };
        let wait = match shared.options.durability {
            _ if more => Duration::ZERO,
            _ if !has_spare => SPARE_RETRY_DELAY,
            Durability::Interval(interval) => interval.min(MAINTENANCE_INTERVAL),
            Durability::Os => Duration::from_millis(100),
            Durability::Always => MAINTENANCE_INTERVAL,
        };
        let mut chores = shared.maintenance.lock();
        if !chores.woken && !wait.is_zero() && !shared.closing.load(Ordering::Acquire) {
            shared.maintenance_woken.wait_for(&mut chores, wait);
        }
        chores.woken = false;
    }
}

/// Marks an idle log as synced, so that damage to the last batch is told from a torn
/// write of it. Also syncs once more if the last sync was slow, since nothing else may
/// use a disk that counts as slow.
fn mark_idle_log(shared: &LogInner) -> Result<(), LogError> {
    #[cfg(test)]
    if shared.faults.no_marks.load(Ordering::Relaxed) {
        return Ok(());
    }
    // An active writer needs no mark.
    let Some(mut writer) = shared.writer.try_lock() else { return Ok(()) };
    if shared.writable().is_err() {
        return Ok(());
    }
    let asks = shared.disk_monitor.last(Instant::now()) > HEALTHY_FSYNC_MAX;
    writer.mark(shared, asks)?;
    drop(writer);
    // An operation that was queued meanwhile found the writer taken.
    shared.drive_if_inline();
    if asks { shared.timed_sync(&shared.active.lock().clone()) } else { Ok(()) }
}

/// Syncs the active segment where appends do not: in each interval, or when much is
/// unsynced, so that the end of a segment has little to sync.
fn sync(shared: &LogInner) -> Result<(), LogError> {
    let active = shared.active.lock().clone();
    let waiting = active.end() - active.synced();
    let due = match shared.options.durability {
        Durability::Always => 0,
        Durability::Interval(_) => 1,
        Durability::Os => shared.options.segment_bytes / 16,
    };
    if due > 0 && waiting >= due { shared.timed_sync(&active) } else { Ok(()) }
}

/// Removes obsolete segments, oldest first, once everything that made them obsolete is on
/// disk.
fn remove(shared: &LogInner) -> Result<(), LogError> {
    let obsolete = std::mem::take(&mut shared.maintenance.lock().obsolete);
    if obsolete.is_empty() {
        return Ok(());
    }
    // A purge in a segment before the active one was synced when that segment ended.
    let active = shared.active.lock().clone();
    if active.synced() < active.end() {
        shared.timed_sync(&active)?;
    }
    for segment in obsolete {
        let Some(segment) = shared.recycle(segment)? else { continue };
        std::fs::remove_file(&segment.path)
            .map_err(|e| LogError::io("remove", &segment.path, e))?;
        // Removed in order on disk as well: a crash must leave no gap in the numbers.
        segment::sync_dir(&shared.options.dir)?;
        tracing::debug!(file = %segment.path.display(), "removed a segment of the log");
    }
    Ok(())
}

/// Relocates a few entries if needed; returns true if there is more to do at once.
fn relocate_entries(shared: &LogInner) -> Result<bool, LogError> {
    // On a full disk this thread must not block in a write: the segments that it removes
    // may be the missing space.
    if shared.writable().is_err() {
        return Ok(false);
    }
    let more = shared.writer.lock().relocate_entries(shared)?;
    // An operation that was queued meanwhile found the writer taken.
    shared.drive_if_inline();
    Ok(more)
}
