//! The log's housekeeper: a thread that does what must not delay an append.
//!
//! It has the next segment ready, syncs on time where appends do not (`Interval`, `Os`), writes committed ids that no append has carried, removes
//! segments, and moves entries out of old ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::segment::{self, Segment};
use super::{Durability, LogError, Shared, Spare};

/// What the keeper was asked for.
#[derive(Default)]
pub(crate) struct Chores {
    pub(crate) doomed: Vec<Arc<Segment>>,
    pub(crate) woken: bool,
}

/// How often it looks around without being asked.
const TICK: Duration = Duration::from_secs(1);
/// How soon it tries again to make a spare.
const RETRY: Duration = Duration::from_millis(250);

pub(crate) fn run(shared: &Shared) {
    let mut last_tick = Instant::now();
    while !shared.closing.load(Ordering::Acquire) && shared.alive().is_ok() {
        let wait = match (make_spare(shared), shared.options.durability) {
            (false, _) => RETRY,
            (true, Durability::Interval(interval)) => interval.min(TICK),
            (true, Durability::Os) => Duration::from_millis(100),
            (true, Durability::Always) => TICK,
        };
        if last_tick.elapsed() >= TICK {
            last_tick = Instant::now();
            shared.queue_committed();
        }
        if let Err(e) = sync(shared).and_then(|()| remove(shared)).and_then(|()| move_entries(shared)) {
            shared.poison(&e);
        }
        let mut chores = shared.keeper.lock();
        if !chores.woken && !shared.closing.load(Ordering::Acquire) {
            shared.keeper_woken.wait_for(&mut chores, wait);
        }
        chores.woken = false;
    }
}

/// Sees that there is a spare; false when it could not be made.
fn make_spare(shared: &Shared) -> bool {
    if !matches!(*shared.spare.lock(), Spare::Wanted) {
        return true;
    }
    let options = &shared.options;
    match segment::spare(&options.dir, options.segment_bytes, options.preallocate) {
        Ok((file, path)) => {
            *shared.spare.lock() = Spare::Ready(file, path);
            shared.spare_changed.notify_all();
            shared.admit();
            true
        }
        Err(e) => {
            shared.refuse(e);
            false
        }
    }
}

/// Syncs the active segment where appends do not: in each interval, or when much has gathered, so that the end of a segment finds little to do.
fn sync(shared: &Shared) -> Result<(), LogError> {
    let active = shared.active();
    let waiting = active.end() - active.synced();
    let due = match shared.options.durability {
        Durability::Always => 0,
        Durability::Interval(_) => 1,
        Durability::Os => shared.options.segment_bytes / 16,
    };
    if due > 0 && waiting >= due { shared.timed_sync(&active) } else { Ok(()) }
}

/// Removes what is doomed, oldest first, once everything that made it so is on the disk.
fn remove(shared: &Shared) -> Result<(), LogError> {
    let doomed = std::mem::take(&mut shared.keeper.lock().doomed);
    if doomed.is_empty() {
        return Ok(());
    }
    // A purge in an earlier segment than the active was synced when that one ended.
    let active = shared.active();
    if active.synced() < active.end() {
        shared.timed_sync(&active)?;
    }
    for segment in doomed {
        std::fs::remove_file(&segment.path).map_err(|e| LogError::io("remove", &segment.path, e))?;
        // In order on the disk too: a crash must leave no gap in the numbers.
        segment::sync_dir(&shared.options.dir)?;
        tracing::debug!(file = %segment.path.display(), "removed a segment of the log");
    }
    Ok(())
}

fn move_entries(shared: &Shared) -> Result<(), LogError> {
    while !shared.closing.load(Ordering::Acquire) {
        if !shared.writer.lock().move_some(shared)? {
            break;
        }
        // Appends that came meanwhile found the writer taken.
        shared.drive_if_inline();
    }
    remove(shared)
}
